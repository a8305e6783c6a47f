"""Every row of design.md's requeue rule and budgets, as a table."""

import dataclasses

import pytest

from hpc.requeue import Attempt, JobFacts, judge, why_stop

NOW = 1_000_000.0
RUNNING = JobFacts(job_id="7_1", state="RUNNING", start_time=NOW - 600, end_time=NOW + 3600)


def _but(**changes: object) -> JobFacts:
    return dataclasses.replace(RUNNING, **changes)


@pytest.mark.parametrize(
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
        pytest.param(None, "stopped", False, id="no answer"),
    ],
)
def test_judge(facts: JobFacts | None, ending: str, requeue: bool) -> None:
    verdict = judge(facts, restart_count=2 if facts and facts.restarts else 0, now=NOW, signal_delay_s=60)
    assert (verdict.ending, verdict.requeue) == (ending, requeue), verdict


def test_restarts_equal_to_ours_are_no_requeue_by_slurm() -> None:
    assert judge(_but(restarts=2, preempt_time=NOW - 1), restart_count=2, now=NOW, signal_delay_s=60).requeue


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
