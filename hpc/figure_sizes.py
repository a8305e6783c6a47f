"""Figures of last-epoch accuracy against size: parameters, multiply-adds.

The means and spreads are hpc.stats'. One invariant: no two arms that have a look of their own cover each other, whatever their sizes; an
arm that is not at its size says so on the axis.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from hpc import stats
from hpc.figure_scene import Scene
from hpc.figure_style import COLUMN, OTHERS, Look, heading, legend_below, new_figure

_LOG_FROM = 8  # times the smallest
_TINY = 1.25  # times the smallest: below, round ticks would say little
_AXIS = 180.0  # points (1/72 inch): a little less than the axes of a column are wide
_APART = 7.0  # points between neighbours: their caps are 4 wide
_CROWD = 100.0  # points that all arms together may take when all are of one size
_TICKS_APART = 46.0  # points: "297.242 k" is 36 wide

_PLAIN = Look(colour=OTHERS, dash="solid", marker="o")


def parameters_figure(scene: Scene) -> Figure | None:
    """Last-epoch test accuracy against the number of parameters."""
    return _against(scene, "parameters", lambda scene, arm: {row.result.parameters for row in scene.finished(arm) if row.result})


def multiply_adds_figure(scene: Scene) -> Figure | None:
    """Last-epoch test accuracy against multiply-adds of one image's forward pass."""
    return _against(
        scene, "multiply-adds of one image", lambda scene, arm: {row.result.multiply_adds for row in scene.finished(arm) if row.result}
    )


def _against(scene: Scene, what: str, sizes_of: Callable[[Scene, str], set[int | None]]) -> Figure | None:
    summaries = {summary.arm: summary for summary in stats.summarise(scene.gathered, scene.baseline)}
    sizes = {arm: found for arm in scene.arms if summaries[arm].last and len(found := sizes_of(scene, arm)) == 1 and None not in found}
    points = {arm: int(min(size for size in found if size is not None)) for arm, found in sizes.items()}
    if len(points) < 2:
        return None  # one arm is no comparison
    figure = new_figure(COLUMN, 2.4)
    axes = figure.subplots()
    limits = limits_of(points.values())
    aside = beside({arm: limits.along(size) for arm, size in points.items() if arm in scene.looks})
    spreads = {arm: last for arm in points if (last := summaries[arm].last) is not None}
    others = [arm for arm in points if arm not in scene.looks]
    if others:  # as one: hundreds of points of their own take seconds
        _draw_points(axes, [points[arm] for arm in others], [spreads[arm] for arm in others], _PLAIN, f"{scene.others} other arms")
    for arm in [arm for arm in points if arm in scene.looks]:
        label = f"{scene.names[arm]} (n = {spreads[arm].n})"
        _draw_points(axes, [points[arm]], [spreads[arm]], scene.looks[arm], label, aside[arm])
    _dress(axes, limits, points.values(), what, _note(points.values(), aside.values()))
    named = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda pair: pair[1].endswith(" other arms"))
    order = {label: handle for handle, label in named}
    legend_below(figure, list(order.values()), list(order))
    several = any(summary.last and summary.last.n > 1 for summary in summaries.values())
    heading(figure, f"{scene.data_name}: last epoch" + (", mean over seeds ± 1 standard deviation" if several else ""))
    return figure


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of the axis of sizes."""

    low: float
    high: float
    is_log: bool

    def along(self, size: float) -> float:
        """Points from the axis' left end."""
        low, high, place = (math.log(value) for value in (self.low, self.high, size)) if self.is_log else (self.low, self.high, size)
        return _AXIS * (place - low) / (high - low)


def limits_of(sizes: Collection[int]) -> Limits:
    """With room at both ends; more of it where sizes hardly differ, so that they do not look like opposites."""
    low, high = min(sizes), max(sizes)
    if high > _LOG_FROM * low > 0:
        air = 0.15 * math.log(high / low)
        return Limits(low=low * math.exp(-air), high=high * math.exp(air), is_log=True)
    margin = (0.3 if _is_tiny(sizes) else 0.15) * (high - low) or 0.05 * high or 1.0
    return Limits(low=low - margin, high=high + margin, is_log=False)


def _is_tiny(sizes: Collection[int]) -> bool:
    return max(sizes) <= _TINY * min(sizes)


def beside(places: Mapping[str, float]) -> dict[str, float]:
    """Arm -> points to the right of its place at which it covers no other; the least moves, in the sense of squares, that keep the order.

    places: arm -> points from the axis' left end. This is isotonic regression by pooling neighbours: each rank's own share of
    the room is taken off, what is out of order then is averaged, and the shares are given back.
    """
    order = sorted(places, key=lambda arm: places[arm])
    apart = min(_APART, _CROWD / max(len(order), 1))
    pools: list[list[float]] = []
    for rank, arm in enumerate(order):
        pools.append([places[arm] - rank * apart])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    rightmost = _AXIS - (len(order) - 1) * apart
    starts = [min(max(fmean(pool), 0.0), rightmost) for pool in pools for _ in pool]
    return {arm: start + rank * apart - places[arm] for rank, (arm, start) in enumerate(zip(order, starts, strict=True))}


def _draw_points(axes: Axes, sizes: Sequence[int], spreads: Sequence[stats.Spread], seen: Look, label: str, aside: float = 0.0) -> None:
    """Arms of one look with their deviations; aside: points to the right of where their sizes are."""
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    moved = axes.transData + ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans)
    # One run has no deviation: NaN draws no bar.
    means, deviations = [spread.mean for spread in spreads], [math.nan if spread.std is None else spread.std for spread in spreads]
    axes.errorbar(
        sizes,
        means,
        yerr=deviations if any(spread.std is not None for spread in spreads) else None,
        color=seen.colour,
        marker=seen.marker,
        markersize=4,
        linestyle="none",
        elinewidth=0.9,
        capsize=2,
        label=label,
        transform=moved,
    )
    for size, spread in zip(sizes, spreads, strict=True):
        axes.update_datalim([(size, spread.mean - (spread.std or 0)), (size, spread.mean + (spread.std or 0))])


def _dress(axes: Axes, limits: Limits, sizes: Collection[int], what: str, note: str) -> None:
    axes.margins(y=0.1)
    axes.autoscale_view(scalex=False)
    if limits.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    elif not _is_tiny(sizes):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlim(limits.low, limits.high)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
    if _is_tiny(sizes):
        axes.set_xticks(*_own_ticks(limits, sizes))
    notes = ", ".join(part for part in ("logarithmic" if limits.is_log else "", note) if part)
    axes.set_xlabel(f"{what} ({notes})" if notes else what)
    axes.set_ylabel("test accuracy (%)")


def _note(sizes: Collection[int], aside: Collection[float]) -> str:
    """What is said of arms that are not at their size."""
    if all(abs(points) < 0.5 for points in aside):
        return ""
    near = len(set(sizes)) == len(sizes) or len(set(sizes)) > 1
    return "near ones side by side" if near else "equal ones side by side"


def _own_ticks(limits: Limits, sizes: Collection[int]) -> tuple[list[int], list[str]]:
    """The sizes themselves, as many as there is room for, with the smallest; below the others by how much they are larger than it."""
    least, most = min(sizes), max(sizes)
    kept: list[int] = []
    for size in [least, most, *sorted(set(sizes))]:
        if all(abs(limits.along(size) - limits.along(one)) >= _TICKS_APART for one in kept):
            kept.append(size)
    kept.sort()
    digits = next((number for number in range(4, 16) if len({count_text(size, number) for size in kept}) == len(kept)), 16)
    return kept, [count_text(size, digits) + (f"\n+{100 * (size / least - 1):.2g} %" if size > least else "") for size in kept]


def count_text(value: float, digits: int = 6) -> str:
    """4.7 M for 4,700,000: as many digits as tell it from its neighbours on an axis."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{letter}"
    return f"{value:.{digits}g}"
