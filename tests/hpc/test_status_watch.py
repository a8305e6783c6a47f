"""status --watch and --logs: redrawn on a terminal, lines elsewhere, few questions to the scheduler, and an end by itself."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from fake_sweep import FakeSweep, in_every_state
from rich.console import Console

from hpc import slurm, status, status_look, status_watch
from hpc.paths import Submissions
from hpc.status_watch import watch


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.slept = 1000.0, list[float]()
        monkeypatch.setattr(status_look.time, "monotonic", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    monkeypatch.chdir(tmp_path)
    return in_every_state(tmp_path / "runs")[0]


def watch_for(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, seconds: float) -> tuple[list[float], list[float]]:
    """(when squeue was asked, when files were read) while a watch ran so long; then Ctrl-C."""
    clock, asked, looked, take = Clock(monkeypatch), list[float](), list[float](), status_look.take
    jobs = in_every_state(sweep.folder.path.parent / "again")[1]

    def sleep(wanted: float) -> None:
        clock.sleep(wanted)
        if clock.now > 1000 + seconds:
            raise KeyboardInterrupt

    def ask() -> dict[str, slurm.ListedJob]:
        asked.append(clock.now - 1000)
        return jobs

    monkeypatch.setattr(slurm, "listed_jobs", ask)
    monkeypatch.setattr(status_look, "take", lambda *args: (looked.append(clock.now - 1000), take(*args))[1])
    watch(sweep.folder, Console(file=StringIO(), width=120), sleep)
    return asked, looked


def test_squeue_is_asked_every_15_s_and_files_are_read_every_5(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch_for(sweep, monkeypatch, 44) == ([0, 15, 30], [0, 5, 10, 15, 20, 25, 30, 35, 40])


def test_a_sites_rule_holds_for_every_look(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = Submissions.read(sweep.folder).submissions
    Submissions().with_entry(replace(entry, site={"name": "x", "status_every_s": 60})).write(sweep.folder)
    assert watch_for(sweep, monkeypatch, 170) == ([0, 60, 120], [0, 60, 120])


def test_it_ends_by_itself_when_nobody_has_a_run_any_more(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    monkeypatch.setattr(slurm, "listed_jobs", lambda: {})
    text = StringIO()
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        sweep.attempt("baseline", 1, "stopped", "asked to stop", generation=2)

    look = watch(sweep.folder, Console(file=text, width=120), sleep)
    assert len(looks) == 1 and {row.run.state for row in look.rows} & {"running", "queued"} == set()
    assert "baseline-seed1: running, epoch 141/300" in text.getvalue() and "12 runs: " in text.getvalue()


def test_a_look_that_fails_keeps_the_last_one_and_says_so(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    monkeypatch.setattr(slurm, "listed_jobs", lambda: {})

    def sleep(seconds: float) -> None:
        if not sweep.folder.plan.exists():
            raise KeyboardInterrupt
        sweep.folder.plan.unlink()

    look = watch(sweep.folder, Console(file=StringIO(), width=120), sleep)
    assert len(look.rows) == 12 and "the last look failed" in look.notes[0]


def on_a_terminal(*command: str, rows: int = 40, columns: int = 100) -> tuple["subprocess.Popen[bytes]", int]:
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm-256color"}
    process = subprocess.Popen([sys.executable, *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True)
    os.close(theirs)
    return process, mine


def read_until(mine: int, word: str, limit_s: float = 60) -> str:
    text, until = "", time.monotonic() + limit_s
    while word not in text and time.monotonic() < until:
        try:
            text += os.read(mine, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            break
    return text


def test_ctrl_c_leaves_a_terminal_with_the_last_look_and_its_cursor(sweep: FakeSweep) -> None:
    sweep.folder.submission.unlink()
    process, mine = on_a_terminal("-m", "hpc.status", str(sweep.folder.path), "--watch")
    drawn = read_until(mine, "12 runs: ")
    assert "\x1b[?25l" in drawn and "baseline-seed1" in drawn
    process.send_signal(signal.SIGINT)
    rest = read_until(mine, "\0", limit_s=20)
    assert process.wait(20) in (status.SOME_FAILED, status.STILL_TO_COME), "as the squeue of this machine, if any, answers"
    assert "Traceback" not in drawn + rest
    assert "\x1b[?25h" in rest, "the cursor is back"
    assert "12 runs: " in re.sub(r"\x1b\[[0-9;?]*\w", "", rest)
    os.close(mine)


def test_logs_shows_the_end_of_a_log_and_the_tasks_logs(sweep: FakeSweep, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep.of("baseline", 1)
    folder.log.write_text("".join(f"line {number}\n" for number in range(100)))
    sweep.folder.logs.mkdir()
    theirs = sweep.folder.logs / "7_1_0_log.out"
    theirs.write_text("")
    (sweep.folder.logs / "7_11_0_log.out").write_text("")
    assert status.main([str(sweep.folder.path), "--logs", "baseline-seed1"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"task log: {theirs}", f"log: {folder.log}", *(f"line {n}" for n in range(60, 100))]


def test_logs_of_an_unknown_run_names_those_there_are(sweep: FakeSweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([str(sweep.folder.path), "--logs", "baseline"]) == 2
    assert capsys.readouterr().err.startswith("baseline is not a run of this sweep. Runs: baseline-seed0 (")


def test_following_a_log_prints_each_line_once_and_ends_with_the_run(
    sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hpc import status_logs

    clock = Clock(monkeypatch)
    monkeypatch.setattr(slurm, "listed_jobs", lambda: {})
    log = sweep.of("baseline", 1).log
    log.write_text("first\n")

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now < 1005:
            log.write_text(log.read_text() + f"at {clock.now:.0f}\n")
        elif clock.now < 1006:
            sweep.attempt("baseline", 1, "stopped", generation=2)
        assert clock.now < 1100, "it goes on for ever"

    status_logs.show(sweep.folder, "baseline-seed1", follow=True, sleep=sleep)
    assert capsys.readouterr().out.splitlines()[-5:] == ["first", "at 1001", "at 1002", "at 1003", "at 1004"]


def test_a_pipe_gets_the_whole_table_at_once(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(slurm, "listed_jobs", lambda: {})
    status_watch.print_look(status_look.take(sweep.folder))
    assert "\x1b" not in (out := capsys.readouterr().out) and out.count("-seed") >= 12
