"""Confusion matrices of the last epoch on the test set, summed over the seeds of an arm.

One invariant: a matrix is of runs that have the same classes; an arm that mixes them has none.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from hpc.figure_scene import Scene
from hpc.figure_style import COLUMN, PAGE, fold, heading, new_figure, without_frame
from seresnet.run_folder import TrainResult

_MOST_MATRICES = 4
_MOST_NUMBERED_CLASSES = 12  # in which a count of four digits has room
_MOST_NAMED_CLASSES = 30


def confusion_figure(scene: Scene) -> Figure | None:
    """Of the first arms that have finished runs."""
    found = {arm: [row.result for row in scene.finished(arm) if row.result and row.result.confusion] for arm in scene.arms}
    arms = {arm: results for arm, results in found.items() if len({tuple(result.classes) for result in results}) == 1}
    if not arms:
        return None
    chosen = dict(list(arms.items())[:_MOST_MATRICES])
    columns = min(2, len(chosen))
    width = PAGE if columns == 2 else COLUMN
    figure = new_figure(width, 3.1 * -(-len(chosen) // columns) + 0.35)
    grid = figure.subplots(-(-len(chosen) // columns), columns, squeeze=False).flatten()
    for axes in grid[len(chosen) :]:
        axes.remove()
    images = [_draw(axes, scene.names[arm], results) for axes, (arm, results) in zip(grid, chosen.items(), strict=False)]
    bar = figure.colorbar(images[0], ax=list(grid[: len(chosen)]), label="share of the true class (%)", shrink=0.7, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    left_out = f" (first {len(chosen)} of {len(arms)} arms)" if len(arms) > len(chosen) else ""
    heading(figure, f"{scene.data_name}: test images by true and predicted class, last epoch{left_out}", width)
    return figure


def _draw(axes: Axes, name: str, results: list[TrainResult]) -> Any:
    classes = results[0].classes
    counts = np.sum([result.confusion for result in results], axis=0)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # A linear scale shows the diagonal and nothing else; the square root brings out errors of a few percent.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    without_frame(axes)
    axes.set_title(fold(f"{name}, sum of {len(results)} runs" if len(results) > 1 else name, 48))
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= _MOST_NAMED_CLASSES:
        _name_classes(axes, classes)
    if len(classes) <= _MOST_NUMBERED_CLASSES:
        _write_counts(axes, counts, share)
    return image


def _name_classes(axes: Axes, classes: list[str]) -> None:
    size = 6.5 if len(classes) <= _MOST_NUMBERED_CLASSES else 5
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in classes]
    tilt: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
    axes.set_xticks(range(len(names)), names, fontsize=size, **tilt)
    axes.set_yticks(range(len(names)), names, fontsize=size)


def _write_counts(axes: Axes, counts: np.ndarray, share: np.ndarray) -> None:
    size = 6 if counts.max() < 1000 else 5 if counts.max() < 10_000 else 4
    for (true, predicted), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[true, predicted] > 35 else "#222222"
            axes.text(predicted, true, f"{count:d}", ha="center", va="center", fontsize=size, color=colour)
