"""The comparison as Markdown, CSV and a terminal table. Formats and nothing else: hpc.stats computes.

One invariant: a table that is partial, or that mixes what should be equal, says so on its first line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import rich.box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpc.gather import Gathered, RunRow
from hpc.states import label
from hpc.stats import ArmSummary, Difference, Spread, count_states
from seresnet.errors import printable

#: Below this many columns numbers and their spread stand on two lines.
_NARROW = 150

_NONE = "-"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What every form of the table shows."""

    title: str
    baseline: str
    gathered: Gathered
    arms: tuple[ArmSummary, ...]


def headline(gathered: Gathered) -> str:
    """Whether all runs are in, and what is mixed that should be one."""
    # Runs that the sweep no longer asks for are in no arm, and in no line of the table.
    rows = [row for row in gathered.rows if row.arms]
    finished = sum(row.state == "finished" for row in rows)
    counts = ", ".join(f"{count} {state}" for state, count in count_states(rows) if state != "finished")
    whole = (
        f"Complete: {finished} of {len(rows)} runs finished."
        if finished == len(rows)
        else f"PARTIAL: {finished} of {len(rows)} runs finished ({counts})."
    )
    others = len(gathered.rows) - len(rows)
    left = [f"{others} earlier {'run is' if others == 1 else 'runs are'} no longer asked for and not counted."] if others else []
    return " ".join([whole, *left, *_mixtures([row for row in rows if row.state == "finished"])])


def _mixtures(rows: Sequence[RunRow]) -> list[str]:
    results = [row.result for row in rows if row.result]
    kinds = {
        "code versions": {result.code_digest[:8] for result in results},
        "devices": {result.device for result in results},
        "tiers": {result.tier for result in results},
        "data": {f"{result.data_name} {result.data_digest[:8]}" for result in results},
    }
    return [f"MIXED {what}: {'; '.join(sorted(found))}." for what, found in kinds.items() if len(found) > 1]


def caption(comparison: Comparison) -> list[str]:
    """What the numbers are: the data set with its sizes, the machines, the selection rules and the interval."""
    several_seeds = any(arm.n > 1 for arm in comparison.arms)
    lines = [*fork_lines(comparison.gathered), f"Data: {_data_line(comparison.gathered)}"]
    lines.append(f"Hardware: {_hardware_line(comparison.gathered)}")
    lines += [
        "Numbers: test accuracy in %" + (", mean ± sample standard deviation over n seeds." if several_seeds else "."),
        "Last epoch and validation-chosen (epoch of the best validation accuracy) are the figures to compare;"
        " best-on-test chose its epoch on the test set and is biased upwards.",
    ]
    if len(comparison.arms) > 1:
        lines.append(f"Difference: last epoch minus {comparison.baseline} at the same seed, mean and 95 % t interval over the pairs.")
    return lines


def fork_lines(gathered: Gathered) -> list[str]:
    """Runs that began with another run's weights: their numbers are no answer to what a run from step 0 would give."""
    return [
        f"FORK: {row.slug} ({row.run_id}) began as {row.result.parent}." for row in gathered.finished if row.result and row.result.parent
    ]


def _data_line(gathered: Gathered) -> str:
    found = {_data_text(row) for row in gathered.finished}
    return " | ".join(sorted(found)) + "." if found else "no finished run."


def _data_text(row: RunRow) -> str:
    assert row.result is not None
    result = row.result
    held_out = f"{result.val_images:,} validation images held out" if result.val_images else "no validation images"
    counts = f"{result.train_images:,} training images, {held_out}, {result.test_images:,} test images"
    return f"{result.data_name}, {counts}, {len(result.classes)} classes"


def _hardware_line(gathered: Gathered) -> str:
    results = [row.result for row in gathered.finished if row.result]
    found = {
        f"{result.device}, {result.world_size} rank{'s' if result.world_size > 1 else ''}, amp {result.amp}"
        + ("" if result.tier == "T1" else f", tier {result.tier}")
        for result in results
    }
    codes = {result.code_digest[:8] + (f" (commit {_short(result.commit)})" if result.commit else "") for result in results}
    return f"{' | '.join(sorted(found))}; code {', '.join(sorted(codes))}." if found else "no finished run."


def _short(commit: str) -> str:
    """Eight digits, and the mark of a working copy with changes that no commit holds."""
    digits, plus, mark = commit.partition("+")
    return digits[:8] + plus + mark


def problem_lines(gathered: Gathered) -> list[str]:
    """One line for each run that is not in the numbers, and why."""
    several = len({row.sweep for row in gathered.rows}) > 1
    return [(f"{row.sweep}/" if several else "") + _problem(row) for row in gathered.rows if row.state != "finished"]


def _problem(row: RunRow) -> str:
    words = dict.fromkeys(word for word in (label(row.state, row.ending), row.ending, row.reason) if word)
    if row.state == "failed":
        words.pop(row.ending or "", None)  # the label has it
    return printable(f"{row.slug} ({row.run_id}): {': '.join(words)}")


def cells(arm: ArmSummary, narrow: bool = False) -> tuple[str, ...]:
    """The texts of one line: arm, parameters, n, three accuracies, difference, states."""
    texts = (
        arm.arm,
        " / ".join(f"{count:,}" for count in arm.parameters) or _NONE,
        str(arm.n),
        *(_spread_text(part, arm.n) for part in (arm.last, arm.val_chosen, arm.best_on_test)),
        "baseline" if arm.is_baseline else _difference_text(arm.difference),
        ", ".join(f"{count} {state}" for state, count in arm.states) or _NONE,
    )
    return tuple(_fold(text) for text in texts) if narrow else texts


def header() -> tuple[str, ...]:
    return ("arm", "parameters", "n", "last epoch", "validation-chosen", "best-on-test", "difference", "states")


def markdown(comparison: Comparison) -> str:
    """The whole of table.md: headline, table, caption, runs that are not in it, skipped files."""
    lines = [header(), *(cells(arm) for arm in comparison.arms)]
    escaped = [[_as_text(text).replace("|", "\\|") for text in line] for line in lines]
    widths = [max(3, *(len(line[column]) for line in escaped)) for column in range(len(header()))]
    rules = ["-" * width if column in (0, 7) else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    table = [_markdown_line(line, widths) for line in (escaped[0], rules, *escaped[1:])]
    parts = [_as_text(headline(comparison.gathered)), "", f"# {_as_text(comparison.title)}", "", *table, ""]
    parts += [f"- {_as_text(line)}" for line in caption(comparison)]
    for title, entries in _lists(comparison.gathered):
        parts += ["", f"## {title}", "", *(f"- {_as_text(entry)}" for entry in entries)]
    return "\n".join(parts) + "\n"


def _as_text(text: str) -> str:
    """On one line, and with nothing in it that a Markdown page would take for an element or a heading."""
    return " ".join(printable(text).split()).replace("<", "&lt;")


def print_table(comparison: Comparison, console: Console) -> None:
    """The same for a terminal of any width from 80 columns up."""
    narrow = console.width < _NARROW
    first = headline(comparison.gathered)
    console.print(Text(first, style="bold yellow" if "PARTIAL" in first or "MIXED" in first else "bold green"))
    table = Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    for number, name in enumerate(header()):
        right = 0 < number < 7
        table.add_column(_fold_name(name) if narrow else name, justify="right" if right else "left", overflow="fold", vertical="top")
    for arm in comparison.arms:
        table.add_row(*(Text(text) for text in cells(arm, narrow)), end_section=narrow)
    console.print(table)
    for line in caption(comparison):
        console.print(Text(line, style="dim"))
    for title, entries in _lists(comparison.gathered):
        console.print(Text(f"\n{title}", style="bold"))
        for entry in entries:
            console.print(Text(f"  {entry}"))


def _lists(gathered: Gathered) -> list[tuple[str, list[str]]]:
    lists = [("Runs not in the numbers", problem_lines(gathered)), ("Files skipped", list(gathered.skipped))]
    return [(title, entries) for title, entries in lists if entries]


def _markdown_line(texts: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        text.ljust(width) if column in (0, 7) else text.rjust(width) for column, (text, width) in enumerate(zip(texts, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"


def _spread_text(value: Spread | None, of: int) -> str:
    if value is None:
        return _NONE
    text = f"{value.mean:.2f}" + ("" if value.std is None else f" ± {value.std:.2f}")
    return text if value.n == of else f"{text} (n = {value.n})"


def _difference_text(value: Difference | None) -> str:
    if value is None:
        return _NONE
    pairs = f"{value.pairs} pair{'s' if value.pairs > 1 else ''}"
    if value.low is None or value.high is None:
        return f"{_signed(value.mean)}, {pairs}"
    return f"{_signed(value.mean)} [{_signed(value.low)}, {_signed(value.high)}], {pairs}"


def _signed(value: float) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0: a table must not say "-0.00".
    return f"{round(value, 2) + 0.0:+.2f}"


def _fold(text: str) -> str:
    for mark in (" ± ", " [", " (n", " / "):
        text = text.replace(mark, "\n" + mark.lstrip())
    head, comma, tail = text.rpartition(", ")
    return f"{head},\n{tail}" if comma and tail[:1].isdigit() else text


def _fold_name(name: str) -> str:
    return {"parameters": "params", "last epoch": "last\nepoch", "validation-chosen": "val-\nchosen", "best-on-test": "best-\non-test"}.get(
        name, name
    )
