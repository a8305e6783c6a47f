"""Two launchers of one sweep at the same moment, as processes: every run is in exactly one task that was sent."""

import os
import sys
from io import StringIO
from pathlib import Path

import pytest
from fake_slurm import Books
from launch_bench import SWEEP
from rich.console import Console

from hpc.launcher import Request, launch
from hpc.paths import Plan, SweepFolder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has loaded much")

ROUNDS = 20


def start_launcher(file: Path, gate: int) -> int:
    """A process that launches as soon as the gate opens; its id."""
    child = os.fork()
    if not child:
        os.read(gate, 1)
        try:
            code = launch(Request(sweep_file=file, overrides=("site=slurm",)), Console(file=StringIO(), width=160))
        except BaseException:
            code = 99
        os._exit(code)
    return child


def test_two_launchers_at_the_same_moment_send_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HPC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("hpc.launcher.ensure_prepared", lambda runs: None)
    books = Books(tmp_path, monkeypatch)
    for number in range(ROUNDS):
        work = tmp_path / str(number)
        work.mkdir()
        monkeypatch.chdir(work)
        (work / "demo.yaml").write_text(SWEEP)
        (books.path / "jobs").unlink(missing_ok=True)
        gate, opener = os.pipe()
        children = [start_launcher(work / "demo.yaml", gate) for _ in range(2)]
        os.write(opener, b"go")
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0], f"round {number}"
        sweep = SweepFolder(Path("runs/demo"))
        assert books.sent_runs(sweep) == ["baseline-s0", "baseline-s1", "se-s0", "se-s1"], f"round {number}"
        assert len(Plan.read(sweep).tasks) == 4, f"round {number}"
        os.close(gate)
        os.close(opener)
