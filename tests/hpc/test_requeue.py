"""Every row of the requeue rule (ADR 7) and of the budgets, as a table."""

import dataclasses
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from hpc import requeue, task
from hpc.canceller import parse_cancellers, refine, who_cancelled
from hpc.paths import Plan, SweepFolder, WandbSettings
from hpc.requeue import UNASKED, Attempt, JobFacts, budget_of, budget_of_time_limits, canceller, judge, why_stop
from seresnet.signals import StopFlag

NOW = 1_000_000.0
RUNNING = JobFacts(job_id="7_1", state="RUNNING", start_time=NOW - 600, end_time=NOW + 3600)


def _but(**changes: object) -> JobFacts:
    return dataclasses.replace(RUNNING, **changes)


ROWS = pytest.mark.parametrize(
    ("facts", "ending", "requeue"),
    [
        pytest.param(_but(preempt_time=NOW - 1), "preempted", True, id="running with a PreemptTime"),
        pytest.param(_but(preempt_time=NOW - 1, state="COMPLETING"), "preempted", True, id="grace is over"),
        pytest.param(_but(preempt_time=NOW - 700), "stopped", False, id="PreemptTime of the attempt before"),
        pytest.param(_but(restarts=3, state="PENDING"), "preempted", False, id="Slurm did it already"),
        pytest.param(_but(restarts=3, preempt_time=NOW - 1), "preempted", False, id="Slurm did it already, while preempting"),
        pytest.param(_but(reason="TimeLimit", state="COMPLETING"), "timed_out", True, id="killed at the limit"),
        pytest.param(_but(reason="TimeLimit"), "timed_out", True, id="at the limit"),
        pytest.param(_but(end_time=NOW + 124), "timed_out", True, id="user signal, 60 s early at the most"),
        pytest.param(_but(end_time=NOW + 126), "stopped", False, id="a signal too early for the time limit"),
        pytest.param(_but(end_time=NOW - 5), "timed_out", True, id="past the end"),
        pytest.param(_but(end_time=None), "stopped", False, id="no time limit"),
        pytest.param(_but(state="COMPLETING"), "cancelled", False, id="scancel"),
        pytest.param(_but(state="CANCELLED"), "cancelled", False, id="scancel, seen late"),
        pytest.param(_but(state="CANCELLED", preempt_time=NOW - 1), "cancelled", False, id="scancel inside a grace"),
        pytest.param(_but(state="COMPLETING", end_time=NOW), "cancelled", False, id="scancel sets EndTime to now"),
        pytest.param(RUNNING, "stopped", False, id="a bare signal"),
        pytest.param(_but(state="CANCELLED+"), "cancelled", False, id="scancel, seen while it completes"),
        pytest.param(_but(state="TIMEOUT", end_time=NOW - 300), "timed_out", True, id="the limit, seen late"),
        pytest.param(_but(start_time=None, preempt_time=NOW - 1), "preempted", True, id="no StartTime"),
        pytest.param(_but(state="NODE_FAIL"), "node_failed", True, id="a node of the job is lost"),
        pytest.param(_but(state="NODE_FAIL", restarts=3), "preempted", False, id="a node is lost and Slurm has requeued"),
        pytest.param(_but(state="OUT_OF_MEMORY"), "out_of_memory", False, id="ended for its memory"),
        pytest.param(None, "stopped", False, id="no answer"),
        pytest.param(_but(restarts=2, start_time=NOW - 34), "interrupted", True, id="a late signal, right after a restart"),
        pytest.param(_but(restarts=2, start_time=NOW - 300), "interrupted", True, id="a late signal, as late as they come"),
        pytest.param(_but(restarts=2, start_time=NOW - 301), "stopped", False, id="a bare signal, long after a restart"),
        pytest.param(_but(start_time=NOW - 34), "stopped", False, id="a bare signal, right after the first start"),
        pytest.param(_but(restarts=2, start_time=None), "stopped", False, id="a bare signal, restarted nobody knows when"),
        pytest.param(_but(restarts=2, start_time=NOW - 5, preempt_time=NOW - 6), "interrupted", True, id="late, of the eviction before"),
        pytest.param(_but(restarts=2, start_time=NOW - 5, preempt_time=NOW - 1), "preempted", True, id="evicted right after a restart"),
        pytest.param(_but(restarts=2, start_time=NOW - 5, end_time=NOW + 60), "timed_out", True, id="limit right after a restart"),
        pytest.param(_but(restarts=2, start_time=NOW - 5, state="COMPLETING"), "cancelled", False, id="scancel right after a restart"),
        pytest.param(_but(restarts=2, start_time=NOW - 5, state="CANCELLED"), "cancelled", False, id="scancel after a restart, seen late"),
        pytest.param(_but(restarts=3, start_time=NOW - 5), "preempted", False, id="restarted and requeued again"),
        pytest.param(_but(state="SIGNALING"), "stopped", False, id="a bare signal that one node has not had yet"),
        pytest.param(_but(state="SIGNALING", preempt_time=NOW - 1), "preempted", True, id="evicted, and one node does not know yet"),
        pytest.param(_but(state="SIGNALING", end_time=NOW + 60), "timed_out", True, id="the limit, and one node does not know yet"),
    ],
)


@ROWS
def test_judge(facts: JobFacts | None, ending: str, requeue: bool) -> None:
    verdict = judge(facts, restart_count=2 if facts and facts.restarts else 0, now=NOW, signal_delay_s=60)
    assert (verdict.ending, verdict.requeue) == (ending, requeue), verdict


SHELL = Path(requeue.__file__).with_name("requeue.sh")


class Batch:
    """A batch script after srun, with a scontrol that answers what the test says and writes down what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, folder / "asked"
        self._program("date", f'[ "$1" != +%s ] || {{ echo {NOW:.0f}; exit; }}\nexec {shutil.which("date")} "$@"')

    def _program(self, name: str, body: str) -> None:
        (self.folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (self.folder / name).chmod(0o755)

    @property
    def logs(self) -> Path:
        return self.folder / "the logs"

    def marks(self) -> dict[str, str]:
        return {path.name: path.read_text().strip() for path in self.logs.glob("batch-*")}

    def ends(self, scontrol: str, code: int = 75, restart_count: int = 0) -> list[str]:
        """What scontrol was asked when srun had returned code."""
        self._program("scontrol", f'echo "$*" >> {self.asked}\n{scontrol}')
        env = {**{key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}, "SLURM_JOB_ID": "9"}
        env |= {"PATH": f"{self.folder}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
        env |= {"SLURM_RESTART_COUNT": str(restart_count)} if restart_count else {}
        script = f"trap : TERM\nsource {SHELL}\n(exit {code})\nend_task $? 60 '{self.logs}'"
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (code, "")
        return self.asked.read_text().splitlines() if self.asked.exists() else []


def _said(facts: JobFacts | None) -> str:
    """The facts as `scontrol show job` prints them, as the body of a program."""
    if facts is None:
        return "exit 1"
    times = {"StartTime": facts.start_time, "EndTime": facts.end_time, "PreemptTime": facts.preempt_time}
    shown = {key: "Unknown" if value is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(value)) for key, value in times.items()}
    first = f"JobId=9 ArrayJobId=7 ArrayTaskId=1 JobName=x\n   JobState={facts.state} Reason={facts.reason} Dependency=(null)"
    rest = f"   Restarts={facts.restarts} BatchFlag=1\n   {' '.join(f'{key}={value}' for key, value in shown.items())} Deadline=N/A"
    return f"cat <<'END'\n{first}\n{rest}\n\nJobId=10 JobState=RUNNING PreemptTime=2100-01-01T00:00:00\nEND"


@ROWS
def test_the_batch_script_judges_alike(tmp_path: Path, facts: JobFacts | None, ending: str, requeue: bool) -> None:
    batch = Batch(tmp_path)
    batch.logs.mkdir()
    asked = batch.ends(_said(facts), restart_count=2 if facts and facts.restarts else 0)
    looks = ["show job 7_1"] * (2 if facts is None else 1)
    assert asked == looks + (["requeue 7_1"] if requeue else []), ending
    assert [word.split()[0] for word in batch.marks().values()] == ([] if ending == "stopped" else [ending])


@pytest.mark.parametrize("code", [0, 1, 78, 130, 138, 143])
def test_the_batch_script_does_not_look_after_an_ending_that_says_all(tmp_path: Path, code: int) -> None:
    assert Batch(tmp_path).ends(_said(_but(preempt_time=NOW - 1)), code=code) == []


@pytest.mark.parametrize("ran_s", [600, 5])
@pytest.mark.parametrize("code", [134, 135, 137, 139])
def test_the_batch_script_requeues_a_job_whose_supervisor_was_killed_three_times(tmp_path: Path, code: int, ran_s: int) -> None:
    batch = Batch(tmp_path)
    batch.logs.mkdir()
    for restart in range(4):
        asked = batch.ends(_said(_but(restarts=restart, start_time=NOW - ran_s)), code=code, restart_count=restart)
    assert asked.count("requeue 7_1") == 3 and asked.count("show job 7_1") == 4
    assert batch.marks() == {f"batch-slurm-7_1-{restart}": f"killed {code}" for restart in range(4)}


def test_a_killed_supervisor_of_a_cancelled_job_stays_dead(tmp_path: Path) -> None:
    batch = Batch(tmp_path)
    batch.logs.mkdir()
    assert batch.ends(_said(_but(state="COMPLETING")), code=137) == ["show job 7_1"]
    assert batch.marks() == {"batch-slurm-7_1-0": "cancelled 137"}


def test_evictions_do_not_count_as_deaths_and_where_deaths_cannot_be_counted_nothing_is_requeued(tmp_path: Path) -> None:
    batch = Batch(tmp_path)
    assert batch.ends(_said(RUNNING), code=137) == ["show job 7_1"]
    batch.logs.mkdir()
    for restart in range(5):
        batch.ends(_said(_but(restarts=restart, preempt_time=NOW - 1)), restart_count=restart)
    assert batch.ends(_said(_but(restarts=5)), code=137, restart_count=5)[-1] == "requeue 7_1"


def test_the_batch_script_asks_again_where_scontrol_fails_once(tmp_path: Path) -> None:
    fails_first = '[ "$(grep -c "^$1" ASKED)" -gt 1 ] || exit 1\n'.replace("ASKED", str(tmp_path / "asked"))
    asked = Batch(tmp_path).ends(fails_first + _said(_but(preempt_time=NOW - 1)))
    assert asked == ["show job 7_1"] * 2 + ["requeue 7_1"] * 2


def test_stop_signals_do_not_keep_the_batch_script_from_requeueing(tmp_path: Path) -> None:
    # At the end of a grace Slurm signals every process of the batch step, scontrol too.
    # coreutils' timeout exits 143 where the signal comes in the moment in which its child begins or leaves; then it is asked once more.
    storm = "sleep 0.1; kill -TERM $$; kill -TERM $PPID; kill -USR2 $$; sleep 0.1\n"
    assert set(Batch(tmp_path).ends(storm + _said(_but(preempt_time=NOW - 1)))) == {"show job 7_1", "requeue 7_1"}


def test_restarts_equal_to_ours_are_no_requeue_by_slurm() -> None:
    assert judge(_but(restarts=2, preempt_time=NOW - 1), restart_count=2, now=NOW, signal_delay_s=60).requeue


def test_two_looks_at_one_stop_agree_also_where_the_window_for_late_signals_ends_between_them() -> None:
    facts = _but(restarts=1, start_time=NOW - 310)
    assert judge(facts, 1, NOW, 60, told_at=NOW - 20).ending == "interrupted"
    assert judge(facts, 1, NOW, 60).ending == judge(facts, 1, NOW, 60, told_at=NOW - 5).ending == "stopped"


def test_a_task_judges_by_the_moment_in_which_it_was_first_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(sweep="s", salt="0", arms={}, runs={}, tasks={}, wandb=WandbSettings(mode="disabled"))
    job, stop = task.Job(job_id="7_1", restart_count=1, end_time=time.time() + 3600), StopFlag()
    told = task.Task(sweep=SweepFolder(tmp_path), name="t", plan=plan, job=job, stop=stop, series="s", code_dir=tmp_path, env={})
    assert told.should_stop() is None and job.told_at is None
    stop.signal_name = "SIGTERM"
    assert told.should_stop() == "SIGTERM" and job.told_at is not None
    first = job.told_at
    assert told.should_stop() == "SIGTERM" and job.told_at == first

    started = first - requeue.LATE_SIGNAL_S + 1
    monkeypatch.setattr(task.slurm, "job_facts", lambda job_id: _but(restarts=1, start_time=started, end_time=first + 9000))
    monkeypatch.setattr(task.time, "time", lambda: first + 25)
    assert job.judge().ending == "interrupted"
    job.told_at = None
    assert job.judge().ending == "stopped"


def _attempts(words: str) -> list[Attempt]:
    """ "crashed+ killed" -> a crash that made progress, then a kill that did not."""
    return [Attempt(ending=word.rstrip("+"), made_progress=word.endswith("+")) for word in words.split()]


@pytest.mark.parametrize(
    ("earlier", "stops"),
    [
        ("", False),
        ("killed crashed", False),
        ("killed crashed hung", True),
        ("killed crashed timed_out", True),
        ("killed crashed out_of_memory+", False),
        ("killed killed+ killed killed", False),
        ("killed+ killed killed killed", True),
        ("killed killed preempted killed", True),
        ("preempted " * 9, False),
        ("preempted " * 9 + "node_failed", True),
        ("interrupted " * 10, True),
        ("preempted " * 9 + "preempted+ preempted", False),
        ("preempted user_error", True),
        ("diverged", True),
        ("cancelled", False),
    ],
)
def test_budget(earlier: str, stops: bool) -> None:
    assert (why_stop(_attempts(earlier)) is not None) == stops, why_stop(_attempts(earlier))


def test_a_spent_budget_says_what_it_was_spent_on() -> None:
    assert why_stop(_attempts("crashed killed hung")) == "3 attempts in a row without a new checkpoint: crashed, killed, hung"


@pytest.mark.parametrize(
    ("seconds", "walltime_s", "limits"), [([60.0] * 3, 3600.0, 4), ([1.0], 3600.0, 2), ([], 3600.0, None), ([60.0], None, None)]
)
def test_time_limits_are_twice_those_planned_from_measured_epochs(
    seconds: list[float], walltime_s: float | None, limits: int | None
) -> None:
    assert budget_of_time_limits(100, seconds, walltime_s) == limits  # 100 epochs of a minute are 1.7 hours


def test_a_run_that_meets_the_time_limit_more_often_than_planned_stops_although_it_saves() -> None:
    attempts = _attempts("timed_out+ preempted+ timed_out+ timed_out+ timed_out+")
    assert why_stop(attempts) is None and why_stop(attempts[:-1], 4) is None
    assert why_stop(attempts, 4) == "met the time limit 4 times, and its measured epochs allow 4"


@pytest.mark.parametrize(
    ("ending", "made_progress", "budget"),
    [
        ("crashed", False, "failures"), ("crashed", True, None), ("timed_out", True, "time limits"), ("preempted", False, "evictions"),
        ("node_failed", True, None), ("interrupted", False, "evictions"), ("cancelled", False, None), ("user_error", False, None),
    ],
)  # fmt: skip
def test_which_budget_an_ending_draws_from(ending: str, made_progress: bool, budget: str | None) -> None:
    assert budget_of(ending, made_progress) == budget


# --- who cancelled ---


@pytest.mark.parametrize(("state", "uid"), [("CANCELLED by 0", 0), ("CANCELLED by 1005", 1005), ("CANCELLED", None), ("FAILED", None)])
def test_sacct_names_who_cancelled(state: str, uid: int | None) -> None:
    assert canceller(state) == uid


def test_only_the_wanted_tasks_of_an_array_are_reported() -> None:
    said = "7_0|CANCELLED by 0\n7_1|COMPLETED\n7_2|CANCELLED by 1005\n7_[3-9]|CANCELLED by 1005\n"
    assert parse_cancellers(said, ["7_0", "7_1", "7_9"]) == {"7_0": 0}


@pytest.mark.parametrize(
    ("uids", "ending", "reason"),
    [
        ({"7_0": 1005}, "cancelled", "SIGTERM: state saved; by the user (scancel) (JobState=COMPLETING)"),
        ({"7_0": 0}, "cancelled_by_site", "SIGTERM: state saved; by the site (root) (JobState=COMPLETING)"),
        ({"7_0": 12}, "cancelled_by_site", "SIGTERM: state saved; by the site (uid 12) (JobState=COMPLETING)"),
        ({}, "cancelled", "SIGTERM: state saved; by the user or the site (JobState=COMPLETING)"),
    ],
)
def test_a_cancelled_ending_is_refined_by_what_accounting_says(uids: dict[str, int], ending: str, reason: str) -> None:
    written = "SIGTERM: state saved; by the user or the site (JobState=COMPLETING)"
    assert refine("cancelled", written, "7_0", uids, owner=1005) == (ending, reason)
    assert refine("preempted", "x", "7_0", uids, owner=1005) == ("preempted", "x")


def test_accounting_may_know_of_a_scancel_what_nobody_on_the_node_could_ask() -> None:
    assert refine("stopped", f"SIGTERM: state saved; {UNASKED}", "7_0", {"7_0": 0}, owner=5)[0] == "cancelled_by_site"
    assert refine("stopped", "SIGTERM: state saved; a signal", "7_0", {"7_0": 0}, owner=5)[0] == "stopped"


def test_without_sacct_nobody_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert who_cancelled(["7_0"]) == {}
    assert judge(_but(state="COMPLETING"), 0, NOW, 60).reason.startswith("by the user or the site")
