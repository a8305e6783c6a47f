"""Endings: every word that is written has its meaning in the one table."""

import pytest

from hpc import requeue
from hpc.gather import STATES, state_after
from hpc.states import MISSING, decide
from seresnet.exits import AFTER_ENDING, ENDING_OF_EXIT, after_ending, ending_of_status


def test_every_ending_that_is_written_is_in_the_table() -> None:
    written = {*ENDING_OF_EXIT.values(), ending_of_status(-9), ending_of_status(1)}
    verdicts = {"preempted", "timed_out", "cancelled", "stopped", "node_failed", "unknown"}  # requeue.judge, claims
    assert AFTER_ENDING.keys() == written | verdicts
    assert AFTER_ENDING.keys() >= requeue.FAILING | requeue.EVICTED | requeue.FINAL


@pytest.mark.parametrize("ending", [*AFTER_ENDING, "a word of a later version"])
def test_a_launch_and_the_table_agree_on_what_needs_a_person(ending: str) -> None:
    state = decide(has_result=False, attempts=1, ending=ending, is_beating=False, listed=None)
    assert state_after(ending) in STATES
    assert (state == "failed") == (state_after(ending) in ("failed", "diverged")) == (after_ending(ending) == "failed")
    assert (state in MISSING) == (state != "failed")
