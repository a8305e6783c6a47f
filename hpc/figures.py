"""The comparison as pictures: which there are, in which files, always in one style, readable in print and without colour vision.

What each shows is the business of the hpc.figure_* modules; hpc.figure_names has the names. One invariant: the same runs give the same
bytes in every format, so nothing here depends on the time, the machine's fonts or the order of files.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from hpc import figure_arms, figure_curves, figure_runs, figure_sizes
from hpc.figure_confusion import confusion_figure
from hpc.figure_curves import Curve as Curve
from hpc.figure_curves import curve as curve
from hpc.figure_names import DEFAULT, FIGURES, FORMATS
from hpc.figure_scene import Scene, scene
from hpc.figure_style import COLOURS as COLOURS
from hpc.figure_style import DASHES as DASHES
from hpc.figure_style import STYLE
from hpc.gather import Gathered
from seresnet.durable import write_durably

_MAKERS: dict[str, Callable[[Scene], Figure | None]] = {
    "accuracy": figure_curves.accuracy_figure,
    "loss": figure_curves.loss_figure,
    "parameters": figure_sizes.parameters_figure,
    "differences": figure_arms.differences_figure,
    "confusion": confusion_figure,
    "multiply-adds": figure_sizes.multiply_adds_figure,
    "per-class": figure_arms.per_class_figure,
    "learning-rate": figure_curves.learning_rate_figure,
    "throughput": figure_curves.throughput_figure,
    "timeline": figure_runs.timeline_figure,
    "hours": figure_runs.hours_figure,
}

#: Without versions and dates: equal pictures should be equal files.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def draw(
    gathered: Gathered,
    folder: Path,
    names: Sequence[str] = DEFAULT,
    formats: Sequence[str] = FORMATS,
    baseline: str | None = None,
) -> list[Path]:
    """Write NAME.FORMAT for what there is something to draw of; return what was written. names, formats: of hpc.figure_names.

    What lies in the folder from before is drawn anew as well, or removed where there is nothing to draw: a picture of an earlier state
    would lie. Raises ConfigError for a baseline that is no arm.
    """
    seen = scene(gathered, baseline)
    folder.mkdir(exist_ok=True)
    written = []
    for name in FIGURES:
        here = [one for one in FORMATS if (folder / f"{name}.{one}").exists()]
        wanted = [one for one in FORMATS if one in here or (one in formats and name in names)]
        pictures = _pictures(name, seen, wanted) if wanted else {}
        for one in wanted:
            path = folder / f"{name}.{one}"
            if one in pictures:
                write_durably(path, pictures[one])
                written.append(path)
            else:
                path.unlink(missing_ok=True)
    return written


def svg(gathered: Gathered, name: str, baseline: str | None = None) -> str | None:
    """The figure as one svg element, without the prologue that stands before it in a file; None where there is nothing to draw."""
    pictures = _pictures(name, scene(gathered, baseline), ("svg",))
    if not pictures:
        return None
    text = pictures["svg"].decode()
    return text[text.index("<svg") :]


def figure(gathered: Gathered, name: str, baseline: str | None = None) -> Figure | None:
    """matplotlib's own object, for whoever wants to look into it or add to it."""
    with _style(name):
        return _MAKERS[name](scene(gathered, baseline))


def _pictures(name: str, seen: Scene, formats: Sequence[str]) -> dict[str, bytes]:
    with _style(name):
        made = _MAKERS[name](seen)
        if made is None:
            return {}
        # Laid out once: each layout begins from the one before, so that a file's bytes would depend on which were written before it.
        made.draw_without_rendering()
        made.set_layout_engine("none")
        return {one: _bytes(made, one) for one in formats}


def _style(name: str) -> Any:
    """The salt of ids in an SVG is the figure's name, so that two of them can stand in one page."""
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg", "svg.hashsalt": f"hpc {name}"})


def _bytes(made: Figure, format: str) -> bytes:
    buffer = io.BytesIO()
    made.savefig(buffer, format=format, metadata=_METADATA[format])
    return buffer.getvalue()
