"""How a plan looks before it is sent: a few lines and one table, readable at 80 columns, plain text where there is no terminal."""

import os
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpc.shapes import TaskShape
from hpc.states import State

#: Of a table in a file or a pipe, where nobody says how wide it may be: wide enough that nothing is folded.
_PLAIN_WIDTH = 160

_COLOURS: dict[str, str] = {
    "finished": "green",
    "running": "cyan",
    "failed": "red",
    "lost": "yellow",
    "cancelled": "yellow",
    "preempted": "yellow",
    "stopped": "yellow",
}


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """One arm of a plan: the ranks and states of its runs, and how many of them will be sent."""

    name: str
    ranks: tuple[int, ...]
    states: tuple[State, ...]
    to_send: int


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """What a reader wants to know of a plan. Runs that belong to several arms count once in the totals."""

    sweep: str
    folder: str
    site: str  # its name and what it means here, in one line
    code: str | None  # None where nothing is sent
    data: tuple[str, ...]
    arms: tuple[ArmRow, ...]
    states: tuple[State, ...]  # one a run
    task_shapes: tuple[TaskShape, ...]  # of each task that will be sent
    runs_to_send: int
    is_local: bool = False  # then tasks wait for each other, and their GPUs do not add up
    notes: tuple[str, ...] = ()
    estimate: tuple[tuple[str, str], ...] = ()  # (label, text) of each line: hpc.estimate.Estimate.lines()


def make_console(file: IO[str] | None = None) -> Console:
    """A console for stdout or file: colours and the terminal's width on a terminal, else plain text that is not folded."""
    target = file or sys.stdout
    columns = os.environ.get("COLUMNS", "")
    width = (int(columns) if columns.isdecimal() else 0) or None
    if not target.isatty():
        return Console(file=target, width=width or _PLAIN_WIDTH, no_color=True, highlight=False)
    return Console(file=target, width=width, highlight=False)


def plain_table(console: Console) -> Table:
    """An empty table in the style of this project: a rule under the head on a terminal, ASCII elsewhere."""
    return Table(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2, pad_edge=False, header_style="bold", show_edge=False)


def print_plan(console: Console, plan: PlanSummary) -> None:
    """Print the whole plan."""
    for name, text in (("sweep", plan.sweep), ("folder", plan.folder), ("site", plan.site), ("code", plan.code)):
        if text:
            _print_labelled(console, name, text)
    for line in plan.data:
        _print_labelled(console, "data", line)
    console.print()
    console.print(_arms_table(console, plan))
    console.print()
    console.print(Text(totals_text(plan), style="bold"))
    for label, text in plan.estimate:
        _print_labelled(console, label, text)
    for note in plan.notes:
        console.print(Text(note))


def _print_labelled(console: Console, label: str, text: str) -> None:
    """Further lines of a narrow terminal stand below the first, as a table's would, without a table's trailing spaces."""
    # A path is never cut: it is there to be copied.
    for line in textwrap.wrap(text, max(20, console.width - 7), break_on_hyphens=False, break_long_words=False):
        console.print(Text.assemble((f"{label:<7}", "bold"), line), soft_wrap=True)
        label = ""


def totals_text(plan: PlanSummary) -> str:
    """The plan in one line: "5 runs in 3 arms: 1 finished, 4 to send as 4 tasks (4 x 1 rank on 1 GPU), 4 GPUs at once."."""
    known = [state for state in plan.states if state != "new"]
    parts = [states_text(known)] if known else []
    if plan.runs_to_send:
        shapes = ", ".join(f"{n} x {shape_text(shape)}" for shape, n in Counter(plan.task_shapes).items())
        parts.append(f"{plan.runs_to_send} to send as {count(len(plan.task_shapes), 'task')} ({shapes})")
        if (gpus := sum(shape.gpus * shape.nodes for shape in plan.task_shapes)) and not plan.is_local:
            parts.append(f"{count(gpus, 'GPU')} at once")
    else:
        parts.append("nothing to send")
    return f"{count(len(plan.states), 'run')} in {count(len(plan.arms), 'arm')}: {', '.join(parts)}."


def shape_text(shape: TaskShape) -> str:
    """What one task is: "2 ranks", "1 rank on 1 GPU", "up to 4 runs side by side on 2 GPUs", "4 ranks on 2 nodes x 2 GPUs"."""
    what = f"up to {shape.at_a_time} runs side by side" if shape.at_a_time > 1 else count(shape.ranks, "rank")
    where = [f"{shape.nodes} nodes"] if shape.nodes > 1 else []
    where += [count(shape.gpus, "GPU")] if shape.gpus else []
    return f"{what} on {' x '.join(where)}" if where else what


def states_text(states: Sequence[State]) -> str:
    """For example "2 finished, 1 running"; states that do not occur are not named."""
    return ", ".join(f"{count} {state}" for state, count in Counter(states).items())


def state_style(state: str) -> str:
    """The colour in which a state is shown on a terminal."""
    return _COLOURS.get(state, "")


def count(number: int, noun: str) -> str:
    """For example "1 rank", "2 ranks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _arms_table(console: Console, plan: PlanSummary) -> Table:
    table = plain_table(console)
    table.add_column("arm", overflow="fold")
    for head in ("runs", "ranks"):
        table.add_column(head, justify="right")
    table.add_column("state", overflow="fold")
    table.add_column("to send", justify="right")
    for arm in plan.arms:
        ranks = "/".join(str(number) for number in sorted(set(arm.ranks)))
        table.add_row(Text(arm.name), str(len(arm.states)), ranks, states_text(arm.states), str(arm.to_send))
    return table
