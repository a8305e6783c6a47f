"""The mirror as the supervisor's child: it delays nothing, is started again, and leaves nothing behind, wherever its core lives."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mirror_scene import is_running, linux_only, wait_for
from test_supervisor import _run, _sweep
from wandb_stub import Stub

from hpc import mirror_child
from hpc.mirror_child import MirrorChild
from hpc.paths import Plan, SweepFolder, WandbSettings
from seresnet import journal
from seresnet.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("no_slurm")

#: Starts a process in a session of its own, as wandb does with its core, and then hears nothing.
DEAF = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
core = subprocess.Popen(["sleep", "600"], start_new_session=True)
with open(sys.argv[1], "a") as file:
    file.write(f"{core.pid}\\n")
time.sleep(600)
"""


def child(tmp_path: Path, program: str) -> MirrorChild:
    sweep = SweepFolder(tmp_path / "sweep")
    sweep.path.mkdir()
    command = (sys.executable, "-c", program, str(tmp_path / "cores"))
    return MirrorChild.start(sweep, ["x"], "auto", command, env={**os.environ, "TMPDIR": str(tmp_path)}, cwd=tmp_path)


def cores(tmp_path: Path) -> list[int]:
    path = tmp_path / "cores"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@linux_only
def test_a_deaf_mirror_and_a_core_in_a_session_of_its_own_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_child, "STOP_LIMIT_S", 0.3)
    mirror = child(tmp_path, DEAF)
    (core,) = wait_for(lambda: cores(tmp_path))
    mirror.stop()
    wait_for(lambda: not is_running(core), 5)
    assert not list(tmp_path.glob("hpc-mirror-*")), "its folder on the node is left"


@linux_only
def test_a_mirror_that_dies_is_started_again_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_child, "_START_AGAIN_S", 0.0)
    mirror = child(tmp_path, DEAF.replace("time.sleep(600)", "sys.exit(9)"))
    limit = time.monotonic() + 3.0
    while time.monotonic() < limit:
        mirror.keep_alive()
        time.sleep(0.02)
    mirror.stop()
    assert len(cores(tmp_path)) == 3
    wait_for(lambda: not any(map(is_running, cores(tmp_path))), 5)


def test_an_eviction_during_the_end_leaves_five_seconds_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_child, "STOP_LIMIT_S", 0.3)
    mirror, began = child(tmp_path, DEAF), time.monotonic()
    mirror.stop(lambda: time.monotonic() > began + 0.5)
    assert time.monotonic() - began < 3.0


def first_epoch_s(tmp_path: Path, mode: str) -> float:
    """Seconds from the start of a task to its first epoch."""
    tmp_path.mkdir()
    sweep = _sweep(tmp_path, "epochs 1 finish")
    replace(Plan.read(sweep), wandb=WandbSettings(mode=mode)).write(sweep)  # type: ignore[arg-type]
    began = time.time()
    assert _run(sweep) == 0
    return journal.read(RunFolder(path=sweep.path / "run0"))[0].time - began


@pytest.mark.parametrize("how", ["silent", pytest.param("503", marks=pytest.mark.nightly), pytest.param("401", marks=pytest.mark.nightly)])
def test_no_server_delays_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    stub = Stub()
    for name, value in stub.environment().items():
        monkeypatch.setenv(name, value)
    stub.behaviour = how
    plain = first_epoch_s(tmp_path / "disabled", "disabled")
    assert first_epoch_s(tmp_path / how, "auto") < plain + 1.0
    stub.close()
    told = [line for line in capfd.readouterr().out.splitlines() if "W&B: offline" in line]
    assert len(told) == 1, "the task's log says once why it is offline"
