"""Endings: every word that is written has its meaning in the one table."""

import pytest

from hpc import requeue
from hpc.states import MISSING, STATES, decide
from seresnet.exits import AFTER_ENDING, ENDING_OF_EXIT, after_ending, ending_of_status


def test_every_ending_that_is_written_is_in_the_table() -> None:
    written = {*ENDING_OF_EXIT.values(), ending_of_status(-9), ending_of_status(1)}
    # By requeue.judge, claims, pack_runner and canceller.
    verdicts = {"preempted", "timed_out", "cancelled", "stopped", "node_failed", "unknown", "interrupted", "cancelled_by_site"}
    assert AFTER_ENDING.keys() == written | verdicts
    assert AFTER_ENDING.keys() >= requeue.FAILING | requeue.EVICTED | requeue.FINAL


@pytest.mark.parametrize("ending", [*AFTER_ENDING, "a word of a later version"])
def test_what_needs_a_person_is_not_sent_by_a_plain_launch(ending: str) -> None:
    state = decide(has_result=False, attempts=1, ending=ending, is_beating=False, listed=None)
    assert state in STATES
    assert (state == "failed") == (after_ending(ending) == "failed")
    assert (state in MISSING) == (state not in ("failed", "cancelled"))
