"""Figures of finished runs' last epochs, arm against arm: paired differences, accuracy of each class.

The means, spreads and intervals are hpc.stats', so that figure and table cannot disagree. One invariant: every mean has its n beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hpc import stats
from hpc.figure_scene import Scene
from hpc.figure_style import COLUMN, OTHERS, Look, fold, heading, legend_below, new_figure

_ROW = 0.2  # inches of an arm's or a class's line
_MOST_ROWS = 40
_MOST_BESIDE = 6  # arms of the figure of classes

_PAIR: Any = {"linestyle": "none", "marker": "o", "markersize": 3.2, "markerfacecolor": "none", "markeredgewidth": 0.8}
_MEAN: Any = {"linestyle": "none", "marker": "|", "markersize": 8, "markeredgewidth": 1.4, "color": "#000000"}
_INTERVAL: Any = {"color": "#000000", "linewidth": 0.9}

_PLAIN = Look(colour=OTHERS, dash="solid", marker="o")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """One arm against the baseline. changes: one a seed that both have, in the order of the seeds, in percentage points."""

    arm: str
    changes: tuple[float, ...]
    difference: stats.Difference


def differences_figure(scene: Scene) -> Figure | None:
    """Every pair of equal seeds as a dot, their mean and its 95 % interval."""
    found = pairs(scene)
    if not found:
        return None
    shown = _strongest(found)
    labels = [f"{fold(scene.names[one.arm], 20)} ({one.difference.pairs})" for one in shown]
    figure = new_figure(COLUMN, 1.0 + sum(max(_ROW, 0.12 * (1 + label.count("\n"))) for label in labels))
    axes = figure.subplots()
    axes.axvline(0, color="#000000", linewidth=0.7)
    for row, one in enumerate(shown):
        _draw_pairs(axes, row, one, scene.looks.get(one.arm, _PLAIN))
    axes.set_yticks(range(len(shown)), labels)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel(f"minus {fold(scene.names[scene.baseline], 30)}\n(percentage points)")
    handles = [Line2D([], [], **{**_PAIR, "markeredgecolor": "#000000"}), Line2D([], [], **_MEAN), Line2D([], [], **_INTERVAL)]
    kinds = 3 if any(one.difference.pairs > 1 for one in shown) else 2
    legend_below(figure, handles[:kinds], ["a pair of runs", "mean", "95 % t interval"][:kinds])
    left_out = f"; the {len(shown)} strongest of {len(found)} arms" if len(found) > len(shown) else ""
    heading(figure, f"{scene.data_name}: last-epoch test accuracy, differences at equal seeds (number of pairs){left_out}")
    return figure


def per_class_figure(scene: Scene) -> Figure | None:
    """Share of each class that is recognised, mean over seeds with its sample standard deviation."""
    arms = {arm: shares for arm in _best(scene) if (shares := _class_shares(scene, arm)) is not None}
    classes = next((row.result.classes for arm in arms for row in scene.finished(arm) if row.result), [])
    arms = {arm: shares for arm, shares in arms.items() if _classes(scene, arm) == {tuple(classes)}}
    if not arms:
        return None
    worst_first = np.argsort(np.mean([shares.mean(axis=0) for shares in arms.values()], axis=0), kind="stable")[:_MOST_ROWS]
    figure = new_figure(COLUMN, 0.9 + max(_ROW, 0.075 * len(arms)) * len(worst_first))
    axes = figure.subplots()
    for place, (arm, shares) in enumerate(arms.items()):
        _draw_classes(
            axes,
            shares[:, worst_first],
            (place + 0.5) / len(arms) * 0.7 - 0.35,
            scene.looks[arm],
            f"{scene.names[arm]} (n = {len(shares)})",
        )
    axes.set_yticks(range(len(worst_first)), [fold(classes[one], 20) for one in worst_first])
    axes.set_ylim(len(worst_first) - 0.4, -0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -1), min(high, 101))  # a deviation may reach beyond 100 %, a share does not
    axes.set_xlabel("recognised test images of the class (%)")
    legend_below(figure, *axes.get_legend_handles_labels())
    spread = ", mean over seeds ± 1 standard deviation" if any(len(shares) > 1 for shares in arms.values()) else ""
    heading(figure, f"{scene.data_name}: accuracy by class, worst first{_left_out(scene, arms, classes)}, last epoch{spread}")
    return figure


def pairs(scene: Scene) -> list[Pairs]:
    """Arms that share a seed with the baseline, in the order of the plan; none where a seed occurs twice in either."""
    summaries = stats.summarise(scene.gathered, scene.baseline)
    reference = _by_seed(scene, scene.baseline)
    found = []
    for summary in summaries:
        if summary.difference is not None:
            ours = _by_seed(scene, summary.arm)
            changes = tuple(ours[seed] - reference[seed] for seed in sorted(ours.keys() & reference.keys()))
            found.append(Pairs(arm=summary.arm, changes=changes, difference=summary.difference))
    return found


def _by_seed(scene: Scene, arm: str) -> dict[int, float]:
    return {row.seed: row.result.last_test_top1_pct for row in scene.finished(arm) if row.result and row.seed is not None}


def _strongest(found: Sequence[Pairs]) -> list[Pairs]:
    """All, or those furthest from 0, in the order of the plan."""
    kept = {one.arm for one in sorted(found, key=lambda one: -abs(one.difference.mean))[:_MOST_ROWS]}
    return [one for one in found if one.arm in kept]


def _draw_pairs(axes: Axes, row: int, one: Pairs, seen: Look) -> None:
    axes.plot(one.changes, [row] * len(one.changes), **{**_PAIR, "markeredgecolor": seen.colour})
    low, high = one.difference.low, one.difference.high
    if low is not None and high is not None:
        axes.plot([low, high], [row, row], **_INTERVAL, zorder=1.5)
    axes.plot([one.difference.mean], [row], **_MEAN)


def _best(scene: Scene) -> list[str]:
    """The arms of the figure of classes, in the order of the plan: the baseline and those with the best mean accuracy."""
    results = {arm: [row.result.last_test_top1_pct for row in scene.finished(arm) if row.result] for arm in scene.looks}
    means = {arm: sum(values) / len(values) for arm, values in results.items() if values}
    others = sorted((arm for arm in means if arm != scene.baseline), key=lambda arm: -means[arm])
    kept = {scene.baseline, *others[: _MOST_BESIDE - 1]}
    return [arm for arm in scene.looks if arm in means and arm in kept]


def _classes(scene: Scene, arm: str) -> set[tuple[str, ...]]:
    return {tuple(row.result.classes) for row in scene.finished(arm) if row.result}


def _class_shares(scene: Scene, arm: str) -> np.ndarray | None:
    """(runs, classes) in percent; None where the runs have other classes than one another, or none (a program's)."""
    if len(_classes(scene, arm)) != 1 or () in _classes(scene, arm):
        return None
    counts = np.array([row.result.confusion for row in scene.finished(arm) if row.result], dtype=float)
    hits: np.ndarray = np.diagonal(counts, axis1=1, axis2=2)
    return np.asarray(100 * hits / np.maximum(counts.sum(axis=2), 1))


def _draw_classes(axes: Axes, shares: np.ndarray, aside: float, seen: Look, label: str) -> None:
    std = shares.std(axis=0, ddof=1) if len(shares) > 1 else None
    places = np.arange(shares.shape[1]) + aside
    axes.errorbar(
        shares.mean(axis=0), places, xerr=std, color=seen.colour, marker=seen.marker, linestyle="none", elinewidth=0.7, label=label
    )


def _left_out(scene: Scene, arms: dict[str, np.ndarray], classes: Sequence[str]) -> str:
    finished = sum(bool(scene.finished(arm)) for arm in scene.arms)
    parts = [f"{len(arms)} of {finished} arms"] if len(arms) < finished else []
    parts += [f"{_MOST_ROWS} of {len(classes)} classes"] if len(classes) > _MOST_ROWS else []
    return f" ({', '.join(parts)})" if parts else ""
