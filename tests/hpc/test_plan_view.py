from io import StringIO

import pytest
from rich.console import Console

from hpc.plan_view import PlanSummary, print_plan

LONG = "the longest takes 13 h to 17 h at 60 min of walltime: 13 to 17 requeues; all of them 30 h to 40 h, 2 at a time"


def printed(width: int, *estimate: tuple[str, str]) -> list[str]:
    text = StringIO()
    plan = PlanSummary(
        sweep="s", folder="runs/s", site="x", code=None, data=(), arms=(), states=(), task_shapes=(), runs_to_send=0, estimate=estimate
    )
    print_plan(Console(file=text, width=width), plan)
    return text.getvalue().splitlines()


def test_estimates_stand_below_the_totals_and_are_folded_under_their_own_text() -> None:
    lines = printed(80, ("time", "about 11 s an epoch"), ("tasks", LONG))
    assert lines[-3:] == [
        "time   about 11 s an epoch",
        "tasks  the longest takes 13 h to 17 h at 60 min of walltime: 13 to 17 requeues;",
        "       all of them 30 h to 40 h, 2 at a time",
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_no_line_of_a_plan_is_wider_than_the_terminal_or_ends_in_spaces(width: int) -> None:
    lines = printed(width, ("tasks", LONG))
    assert all(len(line) <= width and line == line.rstrip() for line in lines if "|" not in line), lines


def test_a_plan_without_estimates_ends_with_its_totals() -> None:
    assert printed(80)[-1] == "0 runs in 0 arms: nothing to send."
