"""The comparison as people read it: headline, columns, caption, and the Markdown page. Formats and nothing else: hpc.stats computes.

hpc.table_screen shows it on a terminal, hpc.table_latex in a paper, hpc.table_data to programs. One invariant: a table that is partial,
or that mixes what should be equal, says so on its first line.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpc.checks import warnings
from hpc.comparison import Comparison
from hpc.gather import Gathered, RunRow
from hpc.metrics import DEFAULT, Metric
from hpc.states import label
from hpc.stats import TEST, ArmSummary, Difference, Spread, count_states
from seresnet.errors import printable

__all__ = ["Comparison", "warnings"]

NONE = "-"
NO_DIFFERENCE = "baseline"
_KIND = {"gpu": "GPU", "cpu": "core"}


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
        "data": {f"{result.data_name} {result.data_digest[:8]}".rstrip() for result in results},
    }
    return [f"MIXED {what}: {'; '.join(sorted(found))}." for what, found in kinds.items() if len(found) > 1]


def caption(comparison: Comparison) -> list[str]:
    """What the numbers are: the data set with its sizes, the machines, the selection rules, the interval and its test."""
    lines = [f"Data: {_data_line(comparison.gathered)}", f"Hardware: {_hardware_line(comparison.gathered)}"]
    if comparison.grouped_by:
        lines.append(f"Rows: runs grouped by {', '.join(comparison.grouped_by)}; a run of several sweeps counts once.")
    lines.append(_numbers_line(comparison))
    if len(comparison.arms) > 1:
        of = comparison.metrics[0].heading
        lines.append(
            f"Difference: {of} minus {comparison.baseline}, mean [95 % interval] of the {TEST}, with pairs - 1 degrees of freedom."
        )
    heading = _device_heading(comparison)
    return [*lines, f"Cost: {heading} and restarts are of all attempts of all runs of an arm; s/epoch is the mean of its finished runs."]


def _numbers_line(comparison: Comparison) -> str:
    several = any(arm.n > 1 for arm in comparison.arms)
    how = ", mean ± sample standard deviation over n seeds" if several else ""
    if tuple(metric.name for metric in comparison.metrics) == DEFAULT:
        return (
            f"Numbers: test accuracy in %{how}. Last epoch and validation-chosen (epoch of the best validation accuracy) are the figures to"
            " compare; best-on-test chose its epoch on the test set and is biased upwards."
        )
    said = "; ".join(f"{metric.heading}: {metric.meaning}{f' ({metric.unit})' if metric.unit else ''}" for metric in comparison.metrics)
    return f"Numbers: of finished runs{how}. {said}."


def _data_line(gathered: Gathered) -> str:
    found = {_data_text(row) for row in gathered.finished}
    return " | ".join(sorted(found)) + "." if found else "no finished run."


def _data_text(row: RunRow) -> str:
    assert row.result is not None
    result = row.result
    held_out = f"{result.val_images:,} validation images held out" if result.val_images else "no validation images"
    classes = [f"{len(result.classes)} classes"] if result.classes else []
    if not result.train_images and not result.test_images:  # a program that does not count them
        return ", ".join([result.data_name, *classes])
    counts = f"{result.train_images:,} training images, {held_out}, {result.test_images:,} test images"
    return ", ".join([result.data_name, counts, *classes])


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


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table as people read it."""

    name: str
    short: str  # for narrow terminals, on two lines
    cells: tuple[str, ...]  # in the order of Comparison.arms
    is_text: bool = False  # to the left; numbers stand to the right
    value: int = 0  # the lower, the sooner a narrow terminal goes without it; 0: never


def columns(comparison: Comparison) -> tuple[Column, ...]:
    """Every column, in order."""
    arms, first = comparison.arms, comparison.metrics[0]
    of = "" if first.name == DEFAULT[0] else f" of {first.heading}"
    device = _device_heading(comparison)
    found = [
        Column(name="arm", short="arm", cells=tuple(arm.arm for arm in arms), is_text=True),
        Column(name="parameters", short="params", cells=tuple(_counts(arm.parameters) for arm in arms), value=5),
        Column(name="multiply-adds", short="mult-\nadds", cells=tuple(_sizes(arm.multiply_adds) for arm in arms), value=3),
        Column(name="n", short="n", cells=tuple(str(arm.n) for arm in arms)),
        *(_metric_column(comparison, metric, number) for number, metric in enumerate(comparison.metrics)),
        Column(
            name=f"difference{of}",
            short=f"difference{of.replace(' of ', chr(10) + 'of ')}",
            cells=tuple(NO_DIFFERENCE if arm.is_baseline else _difference_text(arm.difference, first.digits) for arm in arms),
        ),
        Column(name=device, short=device.replace("-", "-\n", 1).replace(" ", "\n"), cells=tuple(_hours(arm) for arm in arms), value=4),
        Column(name="s/epoch", short="s/\nepoch", cells=tuple(_seconds(arm.metrics["seconds_per_epoch"]) for arm in arms), value=2),
        Column(name="restarts", short="re-\nstarts", cells=tuple(str(arm.restarts) for arm in arms), value=1),
        Column(name="states", short="states", cells=tuple(_states(arm) for arm in arms), is_text=True, value=6),
    ]
    return tuple(found)


def _metric_column(comparison: Comparison, metric: Metric, number: int) -> Column:
    cells = tuple(spread_text(arm.metrics[metric.name], arm.n, metric.digits) for arm in comparison.arms)
    # The last goes first, but after everything else: and never the one that the difference is of.
    return Column(name=metric.heading, short=_fold_name(metric.heading), cells=cells, value=0 if number == 0 else max(7, 20 - number))


def markdown(comparison: Comparison) -> str:
    """The whole of table.md: headline, table, caption, warnings, runs that are not in it, skipped files."""
    shown = columns(comparison)
    escaped = [[_as_text(text).replace("|", "\\|") for text in (column.name, *column.cells)] for column in shown]
    widths = [max(3, *map(len, texts)) for texts in escaped]
    rules = ["-" * width if column.is_text else "-" * (width - 1) + ":" for column, width in zip(shown, widths, strict=True)]
    padded = [
        [text.ljust(width) if column.is_text else text.rjust(width) for text in texts]
        for column, texts, width in zip(shown, escaped, widths, strict=True)
    ]
    head, *lines = (f"| {' | '.join(line)} |" for line in zip(*padded, strict=True))
    parts = [
        _as_text(headline(comparison.gathered)),
        "",
        f"# {_as_text(comparison.title)}",
        "",
        head,
        f"| {' | '.join(rules)} |",
        *lines,
        "",
    ]
    parts += [f"- {_as_text(line)}" for line in caption(comparison)]
    for title, entries in lists(comparison):
        parts += ["", f"## {title}", "", *(f"- {_as_text(entry)}" for entry in entries)]
    return "\n".join(parts) + "\n"


def lists(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """What stands under the table, by title; empty ones are left out."""
    gathered = comparison.gathered
    found = [
        ("Warnings", list(warnings(comparison))),
        ("Runs not in the numbers", problem_lines(gathered)),
        ("Files skipped", list(gathered.skipped)),
    ]
    return [(title, entries) for title, entries in found if entries]


def _as_text(text: str) -> str:
    """On one line, and with nothing in it that a Markdown page would take for an element or a heading."""
    return " ".join(printable(text).split()).replace("<", "&lt;")


def spread_text(value: Spread | None, of: int, digits: int) -> str:
    """ "94.10 ± 0.12"; how many runs it is of where that is not the arm's n."""
    if value is None:
        return NONE
    text = f"{value.mean:.{digits}f}" + ("" if value.std is None else f" ± {value.std:.{digits}f}")
    return text if value.n == of else f"{text} (n = {value.n})"


def _difference_text(value: Difference | None, digits: int) -> str:
    if value is None:
        return NONE
    pairs = f"{value.pairs} pair{'s' if value.pairs > 1 else ''}"
    if value.low is None or value.high is None:
        return f"{signed(value.mean, digits)}, {pairs}"
    return f"{signed(value.mean, digits)} [{signed(value.low, digits)}, {signed(value.high, digits)}], {pairs}"


def signed(value: float, digits: int) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0: a table must not say "-0.00".
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _counts(numbers: Sequence[int]) -> str:
    return " / ".join(f"{count:,}" for count in numbers) or NONE


def _sizes(numbers: Sequence[int]) -> str:
    return " / ".join(map(size_text, numbers)) or NONE


def size_text(number: int) -> str:
    """A count with four digits and its unit, "697.7 M": multiply-adds are compared by their ratio."""
    for unit, power in (("G", 9), ("M", 6), ("k", 3)):
        if number >= 10**power:
            return f"{number / 10**power:#.4g} {unit}".replace(". ", " ")
    return str(number)


def _seconds(value: Spread | None) -> str:
    return NONE if value is None else sized(value.mean)


def sized(value: float) -> str:
    """Hours and seconds: three digits or two after the point, whichever says more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.2g}"


def _hours(arm: ArmSummary) -> str:
    if len(arm.device_hours) < 2:
        return "".join(map(sized, arm.device_hours.values())) or NONE
    return " + ".join(f"{sized(hours)} {_KIND[kind]}" for kind, hours in arm.device_hours.items())


def _device_heading(comparison: Comparison) -> str:
    kinds = {kind for arm in comparison.arms for kind in arm.device_hours}
    return {frozenset({"gpu"}): "GPU-hours", frozenset({"cpu"}): "CPU core-hours"}.get(frozenset(kinds), "device-hours")


def _states(arm: ArmSummary) -> str:
    return ", ".join(f"{count} {state}" for state, count in arm.states) or NONE


def _fold_name(name: str) -> str:
    return {"validation-chosen": "val-\nchosen", "best-on-test": "best-\non-test"}.get(name, name.replace(" ", "\n"))
