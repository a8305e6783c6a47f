"""Ranks that hang under a real supervisor are found, say where they were, and end with the same bits; slow ones are left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ranks as ring
from conftest import Amount, Report
from test_packs import _endings, _pack

from hpc import supervisor
from hpc.requeue import RETRIED, Attempt, why_stop
from seresnet import attempts
from seresnet.config import run_id
from seresnet.config_file import read_run_config
from seresnet.run_folder import RunFolder

ROW = "SIGSTOPped rank, blocked collective, blocked reader (scaled limits)"
#: Instead of 120 s. Long enough for a step on a machine that is busy with other tests.
LIMIT_S = 3.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stops processes with SIGSTOP and looks for them in /proc")


@dataclass(frozen=True)
class Hang:
    """What happens where, in which rank, and what the stacks of the ranks that can speak must show."""

    story: str
    shown: dict[int, str]


HANGS = (
    Hang("sleeps step 1", {0: "all_reduce|backward|wait", 1: "sleep_for_good"}),
    Hang("stops step 0", {1: "all_reduce|backward|wait"}),  # only the supervisor can see it
    Hang("opens reader 1", {0: "all_reduce|backward|wait", 1: "open_a_fifo"}),
    Hang("opens start 0", {0: "open_a_fifo"}),
    Hang("stops step 1", {0: "all_reduce|backward|wait"}),
)


class Task:
    """One task with one run of two ranks, and its supervisor as a process."""

    def __init__(self, folder: Path, digits_dir: Path, story: str) -> None:
        folder.mkdir()
        config = ring.tiny_config(folder, digits_dir, 2)
        run = run_id(read_run_config(config, []).config)
        self.sweep, self.story = _pack(folder, {run: config}, at_a_time=1), story
        self.folder, self.log = RunFolder(path=self.sweep.path / run), folder / "supervisor.txt"
        (self.folder.path / "fault.txt").write_text(story)
        env = {**os.environ, "SERESNET_WATCHDOG_S": str(LIMIT_S), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("supervise.py")), str(self.sweep.path)]
        with open(self.log, "w") as log:
            code = Path(supervisor.__file__).parent.parent
            self.process = subprocess.Popen(command, env=env, cwd=code, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> int:
        return self.process.wait(240)

    def say(self) -> str:
        return f"{self.story}\n{self.log.read_text()[-1500:]}\n{self.folder.log.read_text()[-3000:]}"

    def pids(self) -> list[int]:
        """The supervisor and everything below it."""
        found = [self.process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
        return found


def _assert_found_and_mended(task: Task, shown: dict[int, str], digits_dir: Path) -> None:
    assert task.wait() == 0, task.say()
    assert _endings(task.folder) == ["hung", "finished"], task.say()
    for rank, words in shown.items():
        path = task.folder.stacks(1, rank)
        stacks = path.read_text() if path.exists() else "nothing"
        assert any(word in stacks for word in words.split("|")), f"rank {rank} wrote {stacks}\n{task.say()}"
    end = attempts.read_end(task.folder, 1)
    assert end is not None and end.facts["code"] == 76, f"{end}\n{task.say()}"
    ring.assert_same(task.folder.path, ring.undisturbed(digits_dir, 2), task.story)


def test_a_rank_that_hangs_is_found_and_tried_again(
    digits_dir: Path, tmp_path: Path, amount: Amount, report: Report, request: pytest.FixtureRequest
) -> None:
    ring.undisturbed(digits_dir, 2)
    count = amount(1, 4, 20)
    draw = random.Random(request.config.getoption("--seed", default=0))
    hangs = [HANGS[number] if number < len(HANGS) else draw.choice(HANGS) for number in range(count)]
    # Two at a time: they mostly wait.
    for first in range(0, count, 2):
        tasks = [Task(tmp_path / str(first + at), digits_dir, hang.story) for at, hang in enumerate(hangs[first : first + 2])]
        for task, hang in zip(tasks, hangs[first:], strict=False):
            _assert_found_and_mended(task, hang.shown, digits_dir)
    report(ROW, f"{count} hangs", "all found, stacks written, tried again in the task, equal digests")


def test_what_is_slow_or_suspended_is_not_called_hung(digits_dir: Path, tmp_path: Path, amount: Amount, report: Report) -> None:
    if not amount(0, 1, 1):
        pytest.skip("waits for half a minute: RING=full")
    slow, suspended = (Task(tmp_path / word, digits_dir, story) for word, story in (("slow", "slow - -"), ("suspended", "suspended - -")))
    ring.wait_until(lambda: bool(list(suspended.folder.checkpoints.glob("*.safetensors"))) or suspended.process.poll() is not None)
    pids = suspended.pids()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(3 * LIMIT_S)
    assert len(pids) >= 3, f"{pids}: nothing was suspended\n{suspended.say()}"
    for task in (slow, suspended):
        assert task.wait() == 0 and _endings(task.folder) == ["finished"], task.say()
    report(ROW, "slow first step, evaluation and saves; a suspended job", "none called hung")


def test_a_run_that_hangs_is_requeued_within_its_budget() -> None:
    assert "hung" in RETRIED
    hung = Attempt(ending="hung", made_progress=False)
    assert why_stop([hung, hung]) is None
    assert why_stop([Attempt(ending="hung", made_progress=True), hung, hung]) is None, "a new checkpoint fills the budget again"
    assert why_stop([hung, hung, hung]) == "3 attempts in a row without a new checkpoint: hung, hung, hung"
