"""The comparison as pictures: accuracy and loss against epoch, and confusion matrices. One style, readable without colour vision.

Draws finished runs; an arm without one is drawn from its unfinished runs and called so. One invariant: the same runs give the same
bytes, so nothing here depends on the time, the machine's fonts or the order of files.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hpc.gather import Gathered, RunRow
from seresnet.durable import write_durably

#: Okabe & Ito 2008, without yellow, which is too pale for lines on white. Black comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

#: After the colours are used up the dashes change, so that no two of the first 21 arms look alike.
DASHES = ("solid", (0, (6, 2)), (0, (1.5, 1.5)))

STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}

Corner = Literal["lower right", "upper right"]

_MOST_CONFUSIONS = 4
_MOST_NUMBERED_CLASSES = 20


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
        return f"{self.arm} (n = {self.n}{'' if self.finished else ', unfinished'})"


def draw(gathered: Gathered, folder: Path) -> list[Path]:
    """Write accuracy.png, loss.png and confusion.png; return those that there was something to draw for, remove the others."""
    pictures: dict[str, Callable[[Gathered], Figure | None]] = {
        "accuracy.png": accuracy_figure,
        "loss.png": loss_figure,
        "confusion.png": confusion_figure,
    }
    folder.mkdir(exist_ok=True)
    written = []
    for name, make in pictures.items():
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}):
            figure = make(gathered)
            if figure is None:
                (folder / name).unlink(missing_ok=True)  # a picture of an earlier state would lie
                continue
            write_durably(folder / name, _png(figure))
            written.append(folder / name)
    return written


def accuracy_figure(gathered: Gathered) -> Figure | None:
    """Test accuracy against epoch, beside it validation accuracy where there is a validation split."""
    panels = {"Test accuracy": "test_top1_pct", "Validation accuracy": "val_top1_pct"}
    return _curves_figure(gathered, panels, "accuracy (%)", "lower right")


def loss_figure(gathered: Gathered) -> Figure | None:
    """Training loss (of augmented, mixed images) and test loss against epoch."""
    panels = {"Training loss (augmented images)": "train_loss", "Test loss": "test_loss"}
    return _curves_figure(gathered, panels, "cross-entropy", "upper right")


def confusion_figure(gathered: Gathered) -> Figure | None:
    """Confusion matrices of the last epoch on the test set, summed over the seeds of each of the first arms."""
    arms = {arm: [row for row in gathered.of_arm(arm) if row.state == "finished"] for arm in gathered.arms}
    shown = {arm: rows for arm, rows in arms.items() if rows and _same_classes(rows)}
    if not shown:
        return None
    chosen = dict(list(shown.items())[:_MOST_CONFUSIONS])
    columns = len(chosen) if len(chosen) <= 3 else 2
    lines = -(-len(chosen) // columns)
    side = 4.6 if columns == 3 else 5.5
    figure = Figure(figsize=(side * columns + 0.9, side * lines + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid[len(chosen) :]:
        axes.remove()
    used = list(grid[: len(chosen)])
    image: Any = None
    for axes, (arm, rows) in zip(used, chosen.items(), strict=False):
        image = _draw_confusion(axes, arm, rows)
    figure.colorbar(image, ax=used, label="share of the true class (%)", shrink=0.7, pad=0.02)
    left_out = f"  (first {len(chosen)} of {len(shown)} arms)" if len(shown) > len(chosen) else ""
    figure.suptitle(
        f"{_data_name(gathered)}: test images by true and predicted class, last epoch{left_out}", x=0.01, ha="left", fontsize=12
    )
    return figure


def curve(rows: Sequence[RunRow], arm: str, key: str) -> Curve | None:
    """The arm's line for one journal key; None where no run has a value.

    Only finished runs, or, if there are none, the unfinished ones: a mean over a changing set of runs would jump where one ends.
    """
    finished = [row for row in rows if row.state == "finished" and row.history]
    used = finished or [row for row in rows if row.history]
    series = [dict(zip(*map(np.ndarray.tolist, row.history.series(key)), strict=True)) for row in used]
    common = sorted(set.intersection(*map(set, series))) if series else []
    if not common:
        return None
    values = np.array([[one[epoch] for epoch in common] for one in series])
    std = values.std(axis=0, ddof=1) if len(series) > 1 else np.zeros(len(common))
    return Curve(arm=arm, n=len(series), finished=bool(finished), epochs=np.array(common), mean=values.mean(axis=0), std=std)


def _curves_figure(gathered: Gathered, panels: dict[str, str], unit: str, corner: Corner) -> Figure | None:
    curves = {title: [curve(gathered.of_arm(arm), arm, key) for arm in gathered.arms] for title, key in panels.items()}
    present = {title: lines for title, lines in curves.items() if any(lines)}
    if not present:
        return None
    figure = Figure(figsize=(5.2 * len(present) + 0.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    share = unit == "accuracy (%)"  # test and validation are to be compared, training and test loss are not
    for axes, (title, lines) in zip(figure.subplots(1, len(present), squeeze=False, sharey=share)[0], present.items(), strict=True):
        _draw_curves(axes, lines)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _legend(figure, [line for line in next(iter(present.values())) if line], corner)
    several = any(line and line.n > 1 for lines in present.values() for line in lines)
    meaning = ": mean over seeds, band of ± 1 standard deviation" if several else ""
    figure.suptitle(_data_name(gathered) + meaning, x=0.01, ha="left", fontsize=12)
    return figure


def _draw_curves(axes: Axes, lines: Sequence[Curve | None]) -> None:
    marker = "o" if max(len(line.epochs) for line in lines if line) <= 30 else None
    for number, line in enumerate(lines):
        if line is None:
            continue
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        axes.plot(line.epochs, line.mean, color=colour, linestyle=dash, marker=marker, markersize=3.5, label=line.label)
        if line.n > 1:
            axes.fill_between(line.epochs, line.mean - line.std, line.mean + line.std, color=colour, alpha=0.2, linewidth=0)


def _legend(figure: Figure, lines: Sequence[Curve], corner: Corner) -> None:
    """Inside the first panel while it is short, below the panels when it would cover the curves."""
    axes = figure.axes[0]
    if len(lines) <= 5:
        axes.legend(loc=corner)
    else:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=3, fontsize=9)


def _draw_confusion(axes: Axes, arm: str, rows: Sequence[RunRow]) -> Any:
    results = [row.result for row in rows if row.result]
    classes = results[0].classes
    counts = np.sum([result.confusion for result in results], axis=0)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # A linear scale shows the diagonal and nothing else; the square root brings out errors of a few percent.
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(f"{arm}, sum of {len(results)} runs" if len(results) > 1 else arm)
    if len(classes) <= _MOST_NUMBERED_CLASSES:
        tilt: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, classes)) > 3 else {}
        axes.set_xticks(range(len(classes)), classes, **tilt)
        axes.set_yticks(range(len(classes)), classes)
        _write_counts(axes, counts, share)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return image


def _write_counts(axes: Axes, counts: np.ndarray, share: np.ndarray) -> None:
    size = 8 if counts.max() < 10_000 else 6.5
    for (true, predicted), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[true, predicted] > 35 else "#222222"
            axes.text(predicted, true, f"{count:d}", ha="center", va="center", fontsize=size, color=colour)


def _same_classes(rows: Sequence[RunRow]) -> bool:
    return len({tuple(row.result.classes) for row in rows if row.result}) == 1


def _data_name(gathered: Gathered) -> str:
    names = {row.result.data_name for row in gathered.finished if row.result}
    return " and ".join(sorted(names)) or ", ".join(dict.fromkeys(row.sweep for row in gathered.rows))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the Software entry: it carries matplotlib's version, and equal pictures should be equal files.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
