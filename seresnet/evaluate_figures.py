"""Diagrams of an evaluation: reliability, confusion matrices, and a heat map of corruptions. Needs matplotlib.

One invariant: the same numbers give the same bytes.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from seresnet.durable import write_durably
from seresnet.evaluate_view import MOST_CLASSES, Evaluated, accuracy_grid, by_arm, confusion_shares, over_severities, reliability_of
from seresnet.robustness import SEVERITIES, TestSet

#: Okabe & Ito 2008, and a marker each, so that the lines differ in grey too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vPX"
_MOST_MATRICES = 4
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 160,
}


def draw(found: Sequence[Evaluated], test: TestSet, classes: Sequence[str], folder: Path) -> list[Path]:
    """reliability.png, confusion.png, and corruptions.png where there are any; returns what was written."""
    pictures: dict[str, Callable[[Sequence[Evaluated], TestSet], Figure]] = {
        "reliability.png": _reliability,
        "confusion.png": lambda found, test: _confusions(found, test, classes),
    }
    if found[0].shifts:
        pictures["corruptions.png"] = _heat_maps
    written = []
    for name, make in pictures.items():
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
            file = io.BytesIO()
            make(found, test).savefig(file, format="png", metadata={"Software": None})
        write_durably(folder / name, file.getvalue())
        written.append(folder / name)
    return written


def _reliability(found: Sequence[Evaluated], test: TestSet) -> Figure:
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
    for number, (arm, runs) in enumerate(by_arm(found).items()):
        points = reliability_of(runs, test.labels)
        error = np.mean([each.clean.ece_pct for each in runs])
        look: Any = {"color": _COLOURS[number % 7], "marker": _MARKERS[number % 7], "markersize": 4, "linewidth": 1.4}
        axes.plot(
            [point[0] for point in points], [point[1] for point in points], label=f"{arm} (n = {len(runs)}, error {error:.1f} %)", **look
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=f"Reliability on {len(test.labels):,} test images")
    axes.legend(loc="upper left", fontsize=8)
    return figure


def _confusions(found: Sequence[Evaluated], test: TestSet, classes: Sequence[str]) -> Figure:
    """A matrix for each arm, four at most; names and numbers where they have room."""
    groups = dict(list(by_arm(found).items())[:_MOST_MATRICES])
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[len(groups) :]:
        unused.remove()
    for each, (arm, runs) in zip(axes, groups.items(), strict=False):
        shares = confusion_shares(runs)
        # The square root brings out errors of a few percent, beside a diagonal that a linear scale would show alone.
        each.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        each.set(title=f"{arm} (n = {len(runs)})", xlabel="predicted", ylabel="true")
        each.spines[:].set_visible(False)
        if len(classes) <= MOST_CLASSES:
            each.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
            each.set_yticks(range(len(classes)), classes, fontsize=7)
            for (row, column), value in np.ndenumerate(shares):
                if value >= 0.5:
                    each.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color="white" if value > 40 else "black")
    left_out = f", first {len(groups)} of {len(by_arm(found))} arms" if len(by_arm(found)) > len(groups) else ""
    figure.suptitle(f"Share of the true class (%), {len(test.labels):,} test images{left_out}", fontsize=9)
    return figure


def _heat_maps(found: Sequence[Evaluated], test: TestSet) -> Figure:
    """One column for each arm and severity where there is room, else one for each arm."""
    groups = by_arm(found)
    names, _ = accuracy_grid(next(iter(groups.values())))
    if len(groups) <= 3:
        columns = [f"{severity}" for _ in groups for severity in SEVERITIES]
        grid = np.concatenate([accuracy_grid(runs)[1] for runs in groups.values()], axis=1)
        title = "  |  ".join(f"{arm} (n = {len(runs)})" for arm, runs in groups.items()) + "; severity 1 to 5"
    else:
        columns = list(groups)
        grid = np.array([[np.mean(over_severities(runs, name, False)) for runs in groups.values()] for name in names])
        title = "mean over five severities and all seeds"
    figure = Figure(figsize=(2.6 + 0.52 * len(columns) * (1 if len(groups) <= 3 else 1.6), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # In whole tens: on a scale from 0 to 100 accuracies that lie close together are all of one colour.
    low, high = 10 * np.floor(grid.min() / 10), max(10 * np.ceil(grid.max() / 10), 10 * np.floor(grid.min() / 10) + 10)
    image = axes.imshow(grid, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    tilt: Any = {} if len(groups) <= 3 else {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(columns)), columns, **tilt)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(grid):
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value < (low + high) / 2 else "black")
    for edge in range(len(SEVERITIES), len(columns), len(SEVERITIES)) if len(groups) <= 3 else ():
        axes.axvline(edge - 0.5, color="white", linewidth=2)
    axes.set_title(f"Accuracy (%), {len(test.labels):,} test images: {title}", loc="left", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
    return figure
