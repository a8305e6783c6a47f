"""No combination of facts leaves a run stuck: it is finished, somebody has it, a plain launch sends it, or --retry names it."""

import itertools

import pytest

from hpc.relaunch import RETRY_WORDS, SENDABLE, TRAINED
from hpc.states import MISSING, OWNED, STATES, State, decide
from seresnet.exits import AFTER_ENDING, after_ending

NEEDS_A_PERSON: tuple[State, ...] = ("failed", "cancelled")
YES_OR_NO = (False, True)
ENDINGS = (None, *AFTER_ENDING, "a word of a later version")
FACTS = [
    dict(zip(("has_result", "has_short_result", "is_unreadable", "is_beating", "attempts", "ending", "listed"), values, strict=True))
    for values in itertools.product(YES_OR_NO, YES_OR_NO, YES_OR_NO, YES_OR_NO, (0, 1, 3), ENDINGS, (None, "pending", "running"))
]


def test_every_state_has_exactly_one_way_on() -> None:
    groups = ("finished",), OWNED, MISSING, NEEDS_A_PERSON
    assert sorted(state for group in groups for state in group) == sorted(STATES)
    assert {*MISSING, *NEEDS_A_PERSON} == set(SENDABLE) == set(RETRY_WORDS["all"])
    assert set(TRAINED) == {"finished", "extend"}


@pytest.mark.parametrize("after", ["finished", "interrupted", "cancelled", "failed", None])
def test_no_facts_leave_a_run_stuck(after: str | None) -> None:
    chosen = [facts for facts in FACTS if (after_ending(facts["ending"]) if facts["ending"] else None) == after]
    assert len(chosen) >= 144
    for facts in chosen:
        state = decide(**facts)  # type: ignore[arg-type]
        has_owner = facts["is_beating"] or facts["listed"] is not None
        if facts["has_result"]:
            assert state == "finished", facts
        elif state in OWNED:
            assert has_owner, f"{facts} is {state}, and nobody has it"
        elif facts["is_unreadable"]:
            assert state == "failed", facts
        else:
            assert not has_owner, f"{facts} is {state}, and somebody may have it: it would be trained twice"
            assert (state in NEEDS_A_PERSON) == (after in ("cancelled", "failed")), facts
            assert state in SENDABLE, facts
