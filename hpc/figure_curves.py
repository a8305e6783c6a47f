"""Figures against epoch: accuracy, loss, learning rate, throughput; the spread over seeds as a band.

Draws finished runs; an arm without one is drawn from its unfinished runs and called so. One invariant: a line is a mean over the same
runs at every epoch, because a mean over a changing set of runs would jump where one ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpc import paper_curve
from hpc.figure_scene import Scene
from hpc.figure_style import COLUMN, MOST_ARMS, OTHERS, REPORT, heading, legend_below, look, new_figure
from hpc.gather import RunRow

_PANEL_HEIGHT = 1.75
_MARKED_EPOCHS = 30  # up to here every epoch has its marker
_MARKS = 8  # on longer lines
_BAND_POINTS = 300  # more than a column's width shows; 21 bands of 900 points made an SVG of 2.8 MB


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One arm's line: mean over n runs at every epoch that all of them have; std is the sample standard deviation, 0 for one run."""

    arm: str
    n: int
    finished: bool
    epochs: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @property
    def label(self) -> str:
        return self.label_as(self.arm)

    def label_as(self, name: str) -> str:
        return f"{name} (n = {self.n}{'' if self.finished else ', unfinished'})"


def curve(rows: Sequence[RunRow], arm: str, key: str) -> Curve | None:
    """The arm's line for one journal key; None where no run has a value.

    Only finished runs, or, if there are none, the unfinished ones.
    """
    finished = [row for row in rows if row.state == "finished" and row.history]
    used = finished or [row for row in rows if row.history]
    series = [row.history.series(key) for row in used]
    common = reduce(_both, (epochs for epochs, _ in series)) if series else np.array([], dtype=int)
    if not len(common):
        return None
    values = np.array([one if len(epochs) == len(common) else one[np.searchsorted(epochs, common)] for epochs, one in series])
    std = values.std(axis=0, ddof=1) if len(series) > 1 else np.zeros(len(common))
    return Curve(arm=arm, n=len(series), finished=bool(finished), epochs=common, mean=values.mean(axis=0), std=std)


def _both(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return ours if np.array_equal(ours, theirs) else np.intersect1d(ours, theirs)


def accuracy_figure(scene: Scene) -> Figure | None:
    """Test accuracy against epoch, below it validation accuracy where there is a validation split."""
    return _figure(scene, {"Test accuracy": "test_top1_pct", "Validation accuracy": "val_top1_pct"}, "accuracy (%)")


def loss_figure(scene: Scene) -> Figure | None:
    """Training loss (of augmented, mixed images, and of whatever loss an arm minimises) and test loss against epoch."""
    return _figure(scene, {"Training loss, as each arm minimises it": "train_loss", "Test loss": "test_loss"}, "loss")


def throughput_figure(scene: Scene) -> Figure | None:
    """Training images a second, all devices of a run together, evaluation not counted."""
    return _figure(scene, {"Training, evaluation not counted": "images_per_s"}, "images a second")


def learning_rate_figure(scene: Scene) -> Figure | None:
    """One line for each schedule, because most arms share one."""
    schedules = _schedules(scene)
    if not schedules:
        return None
    figure = new_figure(COLUMN, 0.45 + _PANEL_HEIGHT)
    axes = figure.subplots()
    for place, lines in enumerate(schedules[:MOST_ARMS]):
        label = scene.names[lines[0].arm] + (f" and {len(lines) - 1} more" if len(lines) > 1 else "")
        _plot(axes, lines[0], place, label)
    left_out = f", first {MOST_ARMS} of {len(schedules)} schedules" if len(schedules) > MOST_ARMS else ""
    _dress(axes, f"Learning rate{left_out}", "learning rate")
    legend_below(figure, *axes.get_legend_handles_labels())
    heading(figure, scene.data_name)
    return figure


def _schedules(scene: Scene) -> list[list[Curve]]:
    groups: dict[tuple[bytes, bytes], list[Curve]] = {}
    for line in _curves(scene, "lr").values():
        groups.setdefault((line.epochs.tobytes(), line.mean.tobytes()), []).append(line)
    return list(groups.values())


def _curves(scene: Scene, key: str) -> dict[str, Curve]:
    found = {arm: curve(scene.runs[arm], arm, key) for arm in scene.arms}
    return {arm: line for arm, line in found.items() if line is not None}


def _figure(scene: Scene, panels: dict[str, str], unit: str) -> Figure | None:
    found = {title: _curves(scene, key) for title, key in panels.items()}
    present = {title: curves for title, curves in found.items() if curves}
    if not present:
        return None
    figure = new_figure(COLUMN, 0.45 + _PANEL_HEIGHT * len(present))
    share = unit == "accuracy (%)"  # test and validation are to be compared, training and test loss are not
    panes = figure.subplots(len(present), 1, squeeze=False, sharex=True, sharey=share)[:, 0]
    for axes, (title, curves) in zip(panes, present.items(), strict=True):
        _draw(axes, scene, curves)
        _overlay(axes, scene, panels[title], curves)
        _dress(axes, title, unit, is_lowest=axes is panes[-1])
        _limit(axes, list(curves.values()), unit)
    handles = {label: handle for axes in panes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    legend_below(figure, list(handles.values()), list(handles))
    several = any(line.n > 1 for curves in present.values() for line in curves.values())
    heading(figure, scene.data_name + (": mean over seeds, band of ± 1 standard deviation" if several else ""))
    return figure


def _draw(axes: Axes, scene: Scene, curves: dict[str, Curve]) -> None:
    for place, arm in enumerate(scene.looks):
        if arm in curves:
            _plot(axes, curves[arm], place, curves[arm].label_as(scene.names[arm]))
    others = [np.column_stack((line.epochs, line.mean)) for arm, line in curves.items() if arm not in scene.looks]
    if others:  # as one: hundreds of lines of their own take seconds
        axes.add_collection(LineCollection(others, colors=OTHERS, linewidths=0.5, label=f"{len(others)} other arms", zorder=1))
        axes.autoscale_view()


def _plot(axes: Axes, line: Curve, place: int, label: str) -> None:
    seen = look(place)
    every = 1 if len(line.epochs) <= _MARKED_EPOCHS else len(line.epochs) // _MARKS
    start = place * every // 7 % every  # so that markers of close lines do not cover each other
    axes.plot(line.epochs, line.mean, color=seen.colour, linestyle=seen.dash, marker=seen.marker, markevery=(start, every), label=label)
    if line.n > 1:
        seldom = slice(None, None, -(-len(line.epochs) // _BAND_POINTS))
        epochs, mean, std = line.epochs[seldom], line.mean[seldom], line.std[seldom]
        axes.fill_between(epochs, mean - std, mean + std, color=seen.colour, alpha=0.2, linewidth=0)


def _overlay(axes: Axes, scene: Scene, key: str, curves: dict[str, Curve]) -> None:
    """The report's own curve, as far as ours have come."""
    rows = [row for arm in curves for row in scene.runs[arm]]
    if key in paper_curve.COLUMNS and paper_curve.applies(rows):
        epochs, values = paper_curve.read(key)
        until = epochs <= max(line.epochs[-1] for line in curves.values())
        axes.plot(epochs[until], values[until], color=REPORT, linewidth=0.5, label=paper_curve.label(rows))


def _dress(axes: Axes, title: str, unit: str, is_lowest: bool = True) -> None:
    axes.set_title(title)
    axes.set_ylabel(unit)
    if is_lowest:
        axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    left, right = axes.get_xlim()
    if right - left < 1:  # a single epoch
        axes.set_xlim((left + right) / 2 - 1, (left + right) / 2 + 1)


def _limit(axes: Axes, lines: Sequence[Curve], unit: str) -> None:
    """What the curves come to must be seen: neither their first epochs nor a spike of a loss press it flat."""
    low, high = axes.get_ylim()
    values = np.concatenate([line.mean for line in lines])
    if unit == "accuracy (%)":
        is_long = max(len(line.epochs) for line in lines) > _MARKED_EPOCHS
        least = min(float(np.quantile(values, 0.05)), *(float(line.mean[-1]) - 1 for line in lines)) if is_long else 0
        axes.set_ylim(max(low, 0, least), min(high, 100.5))
        return
    usual = float(np.quantile(values, 0.98))
    if high > 3 * usual > 0:
        axes.set_ylim(max(low, 0), 1.5 * usual)
        axes.set_title(f"{axes.get_title(loc='left')}, spikes cut off")
