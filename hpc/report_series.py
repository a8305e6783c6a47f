"""What the page's figures show, as plain numbers: curves thinned to what a screen can show, differences, sizes.

hpc.report_figures and hpc.report_print draw them. One invariant: thinning keeps the first and the last epoch, and changes no value.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc import figure_style, figures
from hpc.comparison import Comparison
from hpc.figure_style import look
from hpc.gather import RunRow
from hpc.metrics import DEFAULT
from hpc.stats import ArmSummary, runs_frame
from seresnet.errors import printable

#: More arms than this look alike (colours x dashes of hpc.figures) and are not drawn.
MOST_ARMS = figure_style.MOST_ARMS

#: Points of a mean, about one for every 2 pixels of a panel, and of a single run, which is only a faint line behind.
MEAN_POINTS, RUN_POINTS = 300, 90

#: Panels of curves: key in the journal, title, unit, decimals that are kept.
CURVES = (
    ("test_top1_pct", "Test accuracy", "accuracy (%)", 3),
    ("val_top1_pct", "Validation accuracy", "accuracy (%)", 3),
    ("test_loss", "Test loss", "loss", 4),
    ("train_loss", "Training loss, as each arm minimises it", "loss", 4),
)

#: What the button "last quarter" shows.
_LATE = 0.75

_MOST_LETTERS = 28

Bounds = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class DrawnArm:
    """An arm with its look, the same in every figure of the page."""

    number: int
    name: str
    colour: str
    dash: str  # of SVG and bokeh; "" = solid


@dataclass(frozen=True, kw_only=True)
class Line:
    """One arm in one panel. low and high are None for a single run. runs: (epochs, values) of each run, where there are several."""

    arm: DrawnArm
    label: str
    x: list[float]
    mean: list[float]
    low: list[float] | None
    high: list[float] | None
    runs: tuple[tuple[list[float], list[float]], ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes. late: the ranges of its last quarter, None where there are too few epochs."""

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    x: Bounds
    y: Bounds
    late: tuple[Bounds, Bounds] | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One arm as a value with an interval, and the single values that it is made from."""

    arm: DrawnArm
    label: str
    place: float  # on the other axis
    mean: float
    low: float | None
    high: float | None
    singles: tuple[tuple[str, float], ...]  # (what it is, value)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What differences are of, and how it is written."""

    name: str  # of hpc.metrics, and a column of runs.csv
    words: str
    unit: str  # of differences
    digits: int
    is_higher_better: bool

    @property
    def axis(self) -> str:
        return f"difference of {self.words}" + (f" ({self.unit})" if self.unit else "")


def measure(comparison: Comparison) -> Measure:
    """The first metric shown."""
    metric = comparison.metrics[0]
    words = "test accuracy" if metric.name == DEFAULT[0] else metric.heading
    unit = {"%": "points"}.get(metric.unit, metric.unit)
    return Measure(name=metric.name, words=words, unit=unit, digits=metric.digits, is_higher_better=metric.name.endswith("_pct"))


def ranked(comparison: Comparison) -> list[ArmSummary]:
    """Arms with a finished run, the best first."""
    of = measure(comparison)
    known = [(spread.mean, arm) for arm in comparison.arms if (spread := arm.metrics[of.name])]
    return [arm for _, arm in sorted(known, key=lambda one: -one[0] if of.is_higher_better else one[0])]


def drawn_arms(comparison: Comparison) -> tuple[DrawnArm, ...]:
    """All arms; of too many the baseline and the best, in the order of the plan."""
    best = [arm.arm for arm in ranked(comparison)]
    others = dict.fromkeys([comparison.baseline, *best, *(arm.arm for arm in comparison.arms)])
    chosen = set(list(others)[:MOST_ARMS])
    names = [arm.arm for arm in comparison.arms if arm.arm in chosen]
    return tuple(_drawn(number, name) for number, name in enumerate(names))


def beside_axis(name: str) -> str:
    """An arm's name where there is little room."""
    shown = printable(name)
    return shown if len(shown) <= _MOST_LETTERS else f"{shown[: _MOST_LETTERS - 1]}…"


def _drawn(number: int, name: str) -> DrawnArm:
    of_arm = look(number)  # as in the figures
    dash = "" if of_arm.dash == "solid" else " ".join(map(str, of_arm.dash[1]))
    return DrawnArm(number=number, name=name, colour=of_arm.colour, dash=dash)


def curve_panels(comparison: Comparison) -> tuple[Panel, ...]:
    """One for each measure of which some run has a value."""
    arms = drawn_arms(comparison)
    panels = [_curve_panel(comparison, arms, *curve) for curve in CURVES]
    return tuple(panel for panel in panels if panel)


def _curve_panel(comparison: Comparison, arms: Sequence[DrawnArm], key: str, title: str, unit: str, decimals: int) -> Panel | None:
    found = [_line(comparison.gathered.of_arm(arm.name), arm, key, decimals) for arm in arms]
    lines = tuple(line for line in found if line)
    if not lines:
        return None
    last = max(line.x[-1] for line in lines)
    late_from = last * _LATE
    late = (late_from, last), _bounds(lines, late_from)
    whole = (min(line.x[0] for line in lines), last)
    return Panel(
        key=key, title=title, unit=unit, lines=lines, x=_padded(*whole), y=_bounds(lines, 0), late=late if last - whole[0] >= 7 else None
    )


def _line(rows: Sequence[RunRow], arm: DrawnArm, key: str, decimals: int) -> Line | None:
    curve = figures.curve(rows, arm.name, key)
    if curve is None or not (np.isfinite(curve.mean).all() and np.isfinite(curve.std).all()):
        return None  # numbers so large that their sum has overflowed
    kept = thinned(len(curve.epochs), MEAN_POINTS)
    low, high = ((curve.mean + sign * curve.std)[kept].round(decimals).tolist() if curve.n > 1 else None for sign in (-1, 1))
    return Line(
        arm=arm,
        label=printable(curve.label),
        x=curve.epochs[kept].tolist(),
        mean=curve.mean[kept].round(decimals).tolist(),
        low=low,
        high=high,
        runs=_single_runs(rows, key, decimals) if curve.n > 1 else (),
    )


def _single_runs(rows: Sequence[RunRow], key: str, decimals: int) -> tuple[tuple[list[float], list[float]], ...]:
    finished = [row for row in rows if row.state == "finished" and len(row.history)]
    series = [row.history.series(key) for row in finished or rows]
    kept = [(epochs, values, thinned(len(epochs), RUN_POINTS)) for epochs, values in series if len(epochs)]
    return tuple((epochs[few].tolist(), values[few].round(decimals).tolist()) for epochs, values, few in kept)


def thinned(length: int, most: int) -> np.ndarray:
    """Indices of at most so many of `length` points, evenly spread, with both ends."""
    return np.arange(length) if length <= most else np.unique(np.linspace(0, length - 1, most).round().astype(int))


def _bounds(lines: Sequence[Line], since: float) -> Bounds:
    """What the lines and their bands reach from this epoch on, with a little air."""
    values = [
        value for line in lines for part in (line.low or line.mean, line.high or line.mean) for x, value in zip(line.x, part, strict=True)
        if x >= since
    ]  # fmt: skip
    return _padded(min(values), max(values))


def _padded(low: float, high: float) -> Bounds:
    air = 0.04 * (high - low) or 0.5
    return round(low - air, 4), round(high + air, 4)


def difference_points(comparison: Comparison) -> tuple[Point, ...]:
    """The first metric minus the baseline's at equal seeds, an arm each from top to bottom; arms without a pair are left out."""
    summaries = {arm.arm: arm for arm in comparison.arms}
    of = measure(comparison).name
    reference = _by_seed(comparison.gathered.of_arm(comparison.baseline), of)
    with_pairs = [(arm, change) for arm in drawn_arms(comparison) if (change := summaries[arm.name].difference)]
    return tuple(
        Point(
            arm=arm,
            label=printable(f"{arm.name} ({change.pairs} pair{'s' if change.pairs > 1 else ''})"),
            place=len(with_pairs) - 1 - place,
            mean=change.mean,
            low=change.low,
            high=change.high,
            singles=tuple(
                (f"seed {seed}", value - reference[seed])
                for seed, value in _by_seed(comparison.gathered.of_arm(arm.name), of).items()
                if seed in reference
            ),
        )
        for place, (arm, change) in enumerate(with_pairs)
    )


def _by_seed(rows: Sequence[RunRow], metric: str) -> dict[int, float]:
    """Of finished runs."""
    frame = runs_frame([row for row in rows if row.result]).dropna(subset=["seed", metric])
    return {int(seed): float(value) for seed, value in zip(frame["seed"], frame[metric], strict=True)}


def size_points(comparison: Comparison) -> tuple[Point, ...]:
    """Last-epoch accuracy and number of parameters; empty where all arms are of one size."""
    summaries = {arm.arm: arm for arm in comparison.arms}
    points = [_size_point(comparison, arm, summaries[arm.name].parameters) for arm in drawn_arms(comparison)]
    found = tuple(point for point in points if point)
    return found if len({point.place for point in found}) > 1 else ()


def _size_point(comparison: Comparison, arm: DrawnArm, parameters: tuple[int, ...]) -> Point | None:
    values = [row.result.last_test_top1_pct for row in comparison.gathered.of_arm(arm.name) if row.result]
    if not values or len(parameters) != 1:
        return None
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Point(
        arm=arm,
        label=printable(f"{arm.name} (n = {len(values)})"),
        place=parameters[0],
        mean=mean,
        low=None if std is None else mean - std,
        high=None if std is None else mean + std,
        singles=(),
    )
