"""What the page says before its figures: what was asked, what came of it in one sentence, and the table's cells.

Words only, from a comparison; hpc.report puts them into the template. One invariant: a lead is never named without how sure it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc import settings, tables
from hpc.comparison import Comparison
from hpc.gather import RunRow
from hpc.report_series import Measure, measure, ranked
from hpc.stats import ArmSummary, Difference

_NUMBER = re.compile(r"([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)(?: ([kMG])\b)?")
#: A value and what qualifies it: "94.21 ± 0.20", "+1.2 [+0.8, +1.6], 3 pairs".
_QUALIFIED = re.compile(r"^([^±\[]*[^±\[ ,])(?: (±.*|\[.*)|(, \d+ pairs?))$")

#: Classes up to which a confusion matrix is a table; of more the commonest confusions are listed.
_MOST_CLASSES = 20
_MOST_PAIRS = 15


@dataclass(frozen=True, kw_only=True)
class Cell:
    """value stands large, rest small below or beside it; order is what the column is sorted by, None sorts last."""

    value: str
    rest: tuple[str, ...]  # each stays on one line
    order: str | None
    is_text: bool


@dataclass(frozen=True, kw_only=True)
class ArmAsked:
    """One line of what was compared: the values of the keys that differ."""

    arm: str
    is_baseline: bool
    runs: int
    finished: int
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """keys: what differs between arms. common: what all runs share and is not this version's default."""

    arms: tuple[ArmAsked, ...]
    keys: tuple[str, ...]
    seeds: str
    common: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """One arm's errors. lines: (true class, ((count, share step 0..10, share text), ...)) or pairs where classes are many."""

    arm: str
    runs: int
    is_open: bool
    classes: tuple[str, ...]
    lines: tuple[tuple[str, tuple[tuple[int, int, str], ...]], ...]
    pairs: tuple[tuple[str, str, int], ...]


def asked(comparison: Comparison) -> Asked:
    """From the configs that can be read, whatever state their runs are in."""
    rows = [row for row in comparison.gathered.rows if row.arms]
    by_arm = {arm.arm: settings.shared(settings.configs_of(comparison.gathered.of_arm(arm.arm))) for arm in comparison.arms}
    known = [config for config in by_arm.values() if config]
    keys = settings.varied(known)
    common = settings.unusual(settings.shared(settings.configs_of(rows)))
    return Asked(
        arms=tuple(_arm_asked(comparison, arm, by_arm[arm.arm], keys) for arm in comparison.arms),
        keys=tuple(keys),
        seeds=_seeds(rows),
        common=tuple((key, settings.text(value)) for key, value in common.items() if key != settings.SEED),
    )


def _arm_asked(comparison: Comparison, arm: ArmSummary, config: settings.Settings, keys: Sequence[str]) -> ArmAsked:
    rows = comparison.gathered.of_arm(arm.arm)
    values = tuple(settings.text(config[key]) if key in config else "unknown" if not config else "-" for key in keys)
    return ArmAsked(arm=arm.arm, is_baseline=arm.is_baseline, runs=len(rows), finished=arm.n, values=values)


def _seeds(rows: Sequence[RunRow]) -> str:
    """0-4, or 0, 2, 7."""
    seeds = sorted({row.seed for row in rows if row.seed is not None})
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}\u2013{seeds[-1]}"
    return ", ".join(map(str, seeds)) or "unknown"


def verdict(comparison: Comparison) -> tuple[str, str]:
    """(what leads and by how much, how sure that is), of the first metric."""
    counted, of = ranked(comparison), measure(comparison)
    if not counted:
        return "Nothing has finished yet, so there is no result to compare.", ""
    best = counted[0]
    value = f"{of.words} of {_value(comparison, best)}" if len(counted) == 1 else f"{of.words}: {_value(comparison, best)}"
    if len(counted) == 1:
        others = f" No other of the {len(comparison.arms)} arms has a finished run yet." if len(comparison.arms) > 1 else ""
        return f"{best.arm} reaches a {value}.{others}", _how_many(best.n)
    extreme = f"the {'highest' if of.is_higher_better else 'lowest'} {value}"
    if best.is_baseline:
        named = "The baseline" if best.arm == "baseline" else f"The baseline, {best.arm},"
        return f"{named} has {extreme}.", _against_baseline(counted)
    by = f", {_signed(best.difference.mean, of)} {of.unit}".rstrip() + f" against {comparison.baseline}" if best.difference else ""
    first = f"{best.arm} has {extreme}{by}."
    if not any(arm.is_baseline for arm in counted):
        return first, f"The baseline {comparison.baseline} has no finished run, so there is no difference to judge."
    return first, " ".join([_how_sure(best.difference, of), _of_many(counted, of)]).strip()


def _value(comparison: Comparison, arm: ArmSummary) -> str:
    metric = comparison.metrics[0]
    text = tables.spread_text(arm.metrics[metric.name], arm.n, metric.digits)
    return f"{text} {metric.unit}".rstrip()


def _signed(value: float, of: Measure) -> str:
    return tables.signed(value, of.digits)


def _how_many(n: int) -> str:
    return f"Mean and standard deviation over {n} seeds." if n > 1 else "One seed: nothing is known about its spread."


def _how_sure(change: Difference | None, of: Measure) -> str:
    if change is None:
        return "No seed is finished in both, or one occurs twice, so the difference is not paired and has no interval."
    if change.low is None or change.high is None:
        return "One pair of seeds: there is no interval, and a difference of this size may be chance."
    interval = f"95 % interval {_signed(change.low, of)} to {_signed(change.high, of)} over {change.pairs} pairs of seeds"
    sure = "does not include zero" if change.low > 0 or change.high < 0 else "includes zero: these runs do not tell the two apart"
    return f"{interval}; it {sure}."


def _of_many(counted: Sequence[ArmSummary], of: Measure) -> str:
    extreme = "highest" if of.is_higher_better else "lowest"
    return f"It is the {extreme} of {len(counted)} arms, and the {extreme} of many is in part luck." if len(counted) > 3 else ""


def _against_baseline(counted: Sequence[ArmSummary]) -> str:
    """counted: the baseline, which leads, and the others."""
    bounds = [(change.low, change.high) for arm in counted if (change := arm.difference)]
    known = [(low, high) for low, high in bounds if low is not None and high is not None]
    clear = sum(low > 0 or high < 0 for low, high in known)
    if not known:
        return "No other arm has two pairs of seeds with it, so there is no interval."
    if clear == 0:
        return "No other arm's 95 % interval excludes zero: these runs do not tell the arms apart from it."
    rest = f"; these runs do not tell the other {len(known) - clear} apart from it" if clear < len(known) else ""
    return f"The 95 % interval of the difference excludes zero for {clear} of {len(known)} other arm{'s' if len(known) > 1 else ''}{rest}."


def table(comparison: Comparison) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """(column names, a line of cells for each arm): what hpc.tables shows, with the columns that matter most first."""
    first = ("arm", comparison.metrics[0].heading, "difference", "n", *(metric.heading for metric in comparison.metrics[1:]))
    places = {name: place for place, name in enumerate(first)}
    columns = sorted(tables.columns(comparison), key=lambda column: places.get(column.name.partition(" of ")[0], len(places)))
    cells = [[_cell(text, column.is_text) for text in column.cells] for column in columns]
    return tuple(column.name for column in columns), tuple(zip(*cells, strict=True))


def _cell(text: str, is_text: bool) -> Cell:
    if is_text:
        return Cell(value=text, rest=(), order=text, is_text=True)
    match = _QUALIFIED.match(text)
    value, rest = (match[1], (match[2] or match[3]).lstrip(", ")) if match else (text, "")
    interval, bracket, pairs = rest.partition("], ")
    parts = (f"{interval}],", pairs) if bracket else (rest,) if rest else ()
    return Cell(value=value, rest=parts, order=_order(text), is_text=False)


def _order(text: str) -> str | None:
    """The number that a cell begins with, "697.7 M" in full; the baseline's own difference is 0."""
    number = _NUMBER.match(text)
    if number is None:
        return "0" if text == tables.NO_DIFFERENCE else None
    return repr(float(number[1].replace(",", "")) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(number[2] or "", 1))


def confusions(comparison: Comparison) -> tuple[Confusion, ...]:
    """Of every arm whose finished runs have the same classes; the baseline and the highest are open."""
    counted = ranked(comparison)
    opened = {comparison.baseline, *(arm.arm for arm in counted[:1])}
    found = [_confusion(comparison, arm.arm, arm.arm in opened) for arm in comparison.arms if arm.n]
    return tuple(one for one in found if one)


def _confusion(comparison: Comparison, arm: str, is_open: bool) -> Confusion | None:
    results = [row.result for row in comparison.gathered.of_arm(arm) if row.result]
    if len({tuple(result.classes) for result in results}) != 1 or not results[0].confusion:
        return None
    counts = np.sum([result.confusion for result in results], axis=0)
    classes = tuple(results[0].classes)
    is_small = len(classes) <= _MOST_CLASSES
    return Confusion(
        arm=arm,
        runs=len(results),
        is_open=is_open,
        classes=classes,
        lines=tuple((name, _shares(counts[place])) for place, name in enumerate(classes)) if is_small else (),
        pairs=_commonest(counts, classes),
    )


def _shares(counts: Any) -> tuple[tuple[int, int, str], ...]:
    """Steps of the square root, which brings out errors of a few percent."""
    share = 100 * counts / max(int(counts.sum()), 1)
    return tuple((int(count), round(float(part) ** 0.5), f"{part:.1f} %") for count, part in zip(counts, share, strict=True))


def _commonest(counts: Any, classes: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
    wrong = [(int(counts[true, said]), true, said) for true in range(len(classes)) for said in range(len(classes)) if true != said]
    top = sorted(wrong, key=lambda one: (-one[0], one[1:]))[:_MOST_PAIRS]
    return tuple((classes[true], classes[said], count) for count, true, said in top if count)
