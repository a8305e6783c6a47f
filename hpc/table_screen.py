"""The table on a terminal of any width from 80 columns up: first whole, then with numbers over two lines, then without what matters least.

hpc.tables has the texts. One invariant: what is left out for want of room is named.
"""

import re
import textwrap
from collections.abc import Sequence
from enum import IntEnum

import rich.box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpc.comparison import Comparison
from hpc.tables import Column, caption, columns, headline, lists
from seresnet.errors import printable

#: So wide an arm's name is before it is broken.
_NAME_WIDTH = 24
#: Wider than any terminal: how much room a table would take.
_ENDLESS = 10_000


def print_table(comparison: Comparison, console: Console) -> None:
    """The whole table page."""
    first = headline(comparison.gathered)
    console.print(Text(first, style="bold yellow" if "PARTIAL" in first or "MIXED" in first else "bold green"))
    table, left_out = _fitting(columns(comparison), console)
    console.print(table)
    if left_out:
        console.print(Text(f"No room at {console.width} columns for {', '.join(left_out)}: table.md has them.", style="dim"))
    for line in caption(comparison):
        console.print(Text(line, style="dim"))
    for title, entries in lists(comparison):
        style = "bold yellow" if title == "Warnings" else "bold"
        console.print(Text(f"\n{title}", style=style))
        for entry in entries:
            console.print(Padding(Text(printable(entry)), (0, 0, 0, 2), expand=False))


class _Form(IntEnum):
    """How much room a table takes, from most to least."""

    WHOLE = 0
    SHORT_HEADS = 1
    FOLDED_TEXT = 2  # names and states over several lines
    FOLDED = 3  # numbers, too


def _fitting(every: Sequence[Column], console: Console) -> tuple[Table, list[str]]:
    """The widest form that fits, and the names of the columns that it lacks."""
    for form in _Form:
        table = _table(every, form)
        if _width(table, console) <= console.width:
            return table, []
    shown = list(every)
    while _width(table, console) > console.width and any(column.value for column in shown):
        shown.remove(min((column for column in shown if column.value), key=lambda column: column.value))
        table = _table(shown, _Form.FOLDED)
    return table, [column.name for column in every if column not in shown]


def _width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update(width=_ENDLESS)).maximum


def _table(shown: Sequence[Column], form: _Form) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in shown:
        name = column.name if form is _Form.WHOLE else column.short
        table.add_column(name, justify="left" if column.is_text else "right", overflow="fold", vertical="top")
    texts = [[_cell(column, text, form) for text in column.cells] for column in shown]
    for line in zip(*texts, strict=True):
        table.add_row(*line, end_section=form >= _Form.FOLDED_TEXT)
    return table


def _cell(column: Column, text: str, form: _Form) -> Text:
    text = printable(text)
    if form is _Form.FOLDED or (form is _Form.FOLDED_TEXT and column.is_text):
        text = "\n".join(textwrap.wrap(text, _NAME_WIDTH, break_on_hyphens=False)) if column.name == "arm" else _fold(text)
    return Text(text)


def _fold(text: str) -> str:
    """Over several lines: mean, spread, both ends of the interval, pairs; a state each."""
    text = re.sub(r" (?=[±\[/]|\+ |\(n)", "\n", text)
    return re.sub(r", (?=[-+\d])", ",\n", text)
