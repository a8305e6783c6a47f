"""The page's figures once more as still pictures: for print, and for a browser without scripts.

The same numbers as hpc.report_figures draws, in the style of hpc.figures. One invariant: equal numbers give equal text.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hpc.figure_style import STYLE
from hpc.report_series import Measure, Panel, Point, beside_axis, thinned

#: Of a curve: 2 a millimetre.
_MOST_POINTS = 150

_SIZE = (5.4, 3.3)  # inches: two beside each other on a sheet
#: In an attribute and in an address; everything else stands for itself.
_ESCAPES = {"%": "%25", "#": "%23", "<": "%3C", ">": "%3E", '"': "%22", "&": "%26", "\n": "%0A"}
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# Not of numbers below one: the scale of a letter is 0.015625.
_LONG_NUMBER = re.compile(r"\b([1-9]\d*\.\d\d)\d+")


def pictures(panels: Sequence[Panel], differences: Sequence[Point], sizes: Sequence[Point], measure: Measure) -> dict[str, str]:
    """Name of a figure -> data: address of an SVG."""
    draw: dict[str, Callable[[Axes], None]] = {panel.key: partial(_curves, panel=panel) for panel in panels}
    if differences:
        draw["differences"] = lambda axes: _differences(axes, differences, measure)
    if sizes:
        draw["sizes"] = lambda axes: _sizes(axes, sizes)
    heights = {"differences": 1.1 + 0.26 * len(differences)}
    return {name: _picture(make, heights.get(name, _SIZE[1])) for name, make in draw.items()}


def _picture(draw: Callable[[Axes], None], height: float) -> str:
    style: Any = {**matplotlib.rcParamsDefault, **STYLE, "backend": "svg", "svg.hashsalt": "page", "path.simplify_threshold": 0.3}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is a box in print, and whole everywhere else
        made = Figure(figsize=(_SIZE[0], height), layout="constrained")
        FigureCanvasSVG(made)
        draw(made.subplots())
        buffer = io.StringIO()
        made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml," + "".join(_ESCAPES.get(letter, letter) for letter in _small(buffer.getvalue()))


def _small(svg: str) -> str:
    """Two decimals of a point are finer than any printer."""
    body = _COMMENT.sub("", svg[svg.index("<svg") :])  # they repeat every text
    return re.sub(r"\s+", " ", _LONG_NUMBER.sub(r"\1", body))


def _curves(axes: Axes, panel: Panel) -> None:
    marker = "o" if max(len(line.x) for line in panel.lines) <= 30 else None
    for line in panel.lines:
        kept = thinned(len(line.x), _MOST_POINTS)
        x, mean = np.array(line.x)[kept], np.array(line.mean)[kept]
        axes.plot(x, mean, color=line.arm.colour, linestyle=_dash(line.arm.dash), marker=marker, markersize=3)
        if line.low and line.high:
            axes.fill_between(x, np.array(line.low)[kept], np.array(line.high)[kept], color=line.arm.colour, alpha=0.18, linewidth=0)
    axes.set_xlim(panel.x)
    axes.set_ylim(panel.y)
    axes.set_xlabel("epoch")
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _dash(pattern: str) -> Any:
    return (0, tuple(map(float, pattern.split()))) if pattern else "solid"


def _differences(axes: Axes, points: Sequence[Point], measure: Measure) -> None:
    axes.axvline(0, color="#767676", linestyle="dashed", linewidth=1)
    for point in points:
        axes.plot([value for _, value in point.singles], [point.place] * len(point.singles), "o", color=point.arm.colour, alpha=0.4, ms=4)
        _interval(axes, point, is_flat=True)
    axes.set_yticks([point.place for point in points], [_plain(beside_axis(point.arm.name)) for point in points])
    axes.set_ylim(-0.6, len(points) - 0.4)
    axes.grid(False, axis="y")
    axes.set_xlabel(measure.axis)


def _sizes(axes: Axes, points: Sequence[Point]) -> None:
    for point in points:
        _interval(axes, point, is_flat=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.set_xlabel("parameters")
    axes.set_ylabel("last-epoch test accuracy (%)")


def _interval(axes: Axes, point: Point, is_flat: bool) -> None:
    error = None if point.low is None or point.high is None else [[point.mean - point.low], [point.high - point.mean]]
    place = {"x": [point.mean], "y": [point.place], "xerr": error} if is_flat else {"x": [point.place], "y": [point.mean], "yerr": error}
    axes.errorbar(**place, fmt="o", color=point.arm.colour, elinewidth=1.6, ms=6)  # type: ignore[arg-type]


def _plain(text: str) -> str:
    """A dollar sign would begin a formula, and half a formula is an error."""
    return text.replace("$", r"\$")
