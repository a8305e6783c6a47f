"""Mirrors as processes, with the real wandb package: started, waited for, killed, and what they left, read back by wandb itself."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_sweep import FakeSweep, record
from wandb_stub import ServerRun, Stub

from hpc import mirror_rows
from hpc.mirror_end import children
from hpc.mirror_state import MirrorState
from seresnet.run_folder import RunFolder

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds wandb-core through /proc, which only Linux has")


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a user whose HOME is empty, whose temporary files are beside it, and who has no key; more: what differs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name not in ("NETRC", "HOME")}
    for folder in (home, home.with_name("tmp")):
        folder.mkdir(exist_ok=True)
    return kept | {"HOME": str(home), "TMPDIR": str(home.with_name("tmp")), "OMP_NUM_THREADS": "1"} | more


def start(sweep: FakeSweep, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    home = sweep.folder.path.parent / "home"
    command = [sys.executable, "-m", "hpc.mirror", str(sweep.folder.path), *arguments]
    return subprocess.Popen(command, env=environment(home, **more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_mirror(sweep: FakeSweep, *arguments: str, **more: str) -> str:
    """Its output; it must end by itself, with 0."""
    process = start(sweep, *arguments, **more)
    output, _ = process.communicate(timeout=60)
    print(output)  # shown by pytest when the test fails
    assert process.returncode == 0, output
    return output


def records(folder: RunFolder) -> list[dict[str, Any]]:
    """Every record of every offline file of the run, oldest file first."""
    found: list[dict[str, Any]] = []
    env = environment(folder.path.parent.parent / "home")
    for path in offline_files(folder):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
        found += [json.loads(line) for line in done.stdout.splitlines()]
    return found


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [entry["history"]["item"] for entry in records(folder) if entry["type"] == "history"]


def steps(folder: RunFolder) -> list[int]:
    return [int(row["_step"]) for row in rows(folder)]


def wait_for(claim: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := claim()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return found


def offline_files(folder: RunFolder) -> list[Path]:
    return sorted((folder.path / "wandb").glob("offline-run-*/*.wandb"))


def cores_of(pid: int) -> list[int]:
    """Pids of the wandb-cores that a mirror has started."""
    return [child for child in children(pid) if "wandb-core" in Path(f"/proc/{child}/cmdline").read_text()]


def core_of(pid: int) -> int | None:
    return next(iter(cores_of(pid)), None)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def kill(process: "subprocess.Popen[str]", *, with_core: bool) -> None:
    """As Slurm does at the end of its patience, or as the kernel does for want of memory."""
    cores = cores_of(process.pid)
    process.kill()
    for core in cores if with_core else ():
        os.kill(core, signal.SIGKILL)
    process.communicate(timeout=30)


def server_run(stub: Stub, sweep: FakeSweep, arm: str = "se", seed: int = 0) -> ServerRun:
    return stub.runs[f"{sweep.ids[arm, seed]}-{sweep.plan.salt}"]


def has_open(stub: Stub, count: int = 1) -> bool:
    """Whether so many runs are open at the server; their rows are with the core then, which sends them every 15 s."""
    is_open = stub.books.requests.count("POST file_stream 200") >= count
    time.sleep(0.3 if is_open else 0.0)
    return is_open


def assert_rows_equal_the_record(stub: Stub, sweep: FakeSweep, epochs: int) -> None:
    run = server_run(stub, sweep)
    assert run.steps == list(range(1, epochs + 1)), run.steps
    for row in run.rows:
        expected = mirror_rows.row(record("se", 0, row["_step"], sweep.epochs, int(row["attempt"])))
        assert {name: row[name] for name in expected} == pytest.approx(expected)


def state_of(folder: RunFolder) -> MirrorState:
    state = MirrorState.read(folder)
    assert state is not None
    return state
