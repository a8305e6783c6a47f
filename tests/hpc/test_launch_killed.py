"""Launchers that are killed by SIGKILL at every write and around every sbatch, and what the next launch makes of it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import Books
from launch_bench import SWEEP
from rich.console import Console

from hpc import locks, slurm
from hpc.launcher import Request, launch
from hpc.paths import Submissions, SweepFolder
from seresnet.durable import Files

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has loaded much")

SENT = ["baseline-s0", "se-s0"]


class Sweep:
    """A sweep in a working directory, launched by processes of their own."""

    def __init__(self, root: Path) -> None:
        self.file, self.folder = root / "demo.yaml", SweepFolder(Path("runs/demo"))
        self.file.write_text(SWEEP.replace("seeds: 2", "seeds: 1"))

    def launch(self, site: str = "slurm", **request: Any) -> str:
        text = StringIO()
        launch(Request(sweep_file=self.file, overrides=(f"site={site}",), **request), Console(file=text, width=160))
        return text.getvalue()

    def killed_at(self, event: int, site: str = "slurm") -> bool:
        """Launch in a child that kills itself before its event-th step; False if it came to its end before."""
        child = os.fork()
        if not child:
            try:
                arm(event)
                self.launch(site)
            except BaseException:
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the launch failed by itself"
        return os.WIFSIGNALED(status)


def arm(event: int) -> None:
    """Count every rename that makes something durable, and the moments before and after sbatch; die at the event-th."""
    seen = 0

    def counted(function: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            value = function(*args, **kwargs) if after else None
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return value if after else function(*args, **kwargs)

        return call

    Files.rename = counted(Files.rename)  # type: ignore[method-assign]
    os.rename = counted(os.rename)
    Path.rename = counted(Path.rename)  # type: ignore[method-assign]
    slurm._sbatch = counted(counted(slurm._sbatch), after=True)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HPC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("hpc.launcher.ensure_prepared", lambda runs: None)
    return Sweep(tmp_path)


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Books:
    return Books(tmp_path, monkeypatch)


def test_killed_at_any_step_a_relaunch_sends_every_run_once(
    tmp_path: Path, sweep: Sweep, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    for event in range(1, 100):
        (books.path / "jobs").unlink(missing_ok=True)
        work = tmp_path / f"at-{event}"
        work.mkdir()
        monkeypatch.chdir(work)
        if not sweep.killed_at(event):
            break
        sweep.launch()
        assert books.sent_runs(sweep.folder) == SENT, f"killed at step {event}"
        assert all(entry.job_id or entry.state != "submitted" for entry in Submissions.read(sweep.folder).submissions)
        job = books.jobs()[0][0]
        assert len(list(sweep.folder.logs.glob(f"{job}_*_submitted.pkl"))) == 2, f"killed at step {event}: no pickles"
    assert event > 12, "steps were not counted"


def test_killed_at_any_step_nothing_is_queued_for_ever_where_there_is_no_slurm(
    tmp_path: Path, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpc.local.run_local", lambda *args: False)
    monkeypatch.setenv("PATH", "/nowhere")
    for event in range(1, 100):
        work = tmp_path / f"at-{event}"
        work.mkdir()
        monkeypatch.chdir(work)
        if not sweep.killed_at(event, "local"):
            break
        assert "2 to send as 2 tasks" in sweep.launch("local", dry_run=True), f"killed at step {event}"
    assert event > 6, "steps were not counted"


def test_while_the_sbatch_of_a_killed_launcher_runs_nobody_else_plans(sweep: Sweep, books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOOKS_SECONDS", "2")
    child = os.fork()
    if not child:
        sweep.launch()
        os._exit(0)
    while not books.jobs():
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert locks.is_held(sweep.folder.launch_lock), "sbatch does not hold the lock"
    monkeypatch.setenv("BOOKS_SECONDS", "0")
    assert "2 of 2 runs are on their way" in sweep.launch()
    assert books.sent_runs(sweep.folder) == SENT
