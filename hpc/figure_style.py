"""How every figure looks: sizes for print, colours, dashes and markers that differ without colour, names that fit.

What is drawn is the business of the hpc.figure_* modules. One invariant: nothing here depends on the machine, its fonts or the time.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from seresnet.errors import printable

#: Okabe & Ito 2008, without yellow, which is too pale for lines on white. Black comes last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")

#: With the colours 21 looks, no two alike; neighbours differ in both, because some of the colours are one grey in print.
DASHES = ("solid", (0, (5, 1.2)), (0, (1.5, 1)))

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")

#: Arms with a look of their own.
MOST_ARMS = len(COLOURS) * len(DASHES)

OTHERS = "#bbbbbb"
REPORT = "#555555"

#: Inches. A column of a journal is 8 to 9 cm, a page's text 17 to 18 cm: printed at their size, letters are 7 to 8 points high.
COLUMN = 3.35
PAGE = 7.0

_LEGEND_SIZE = 7
_HANDLE = 2.6  # the line before a label, in units of its size; the space between columns in the same
_BETWEEN = 1.2

STYLE: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": _LEGEND_SIZE,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.handlelength": _HANDLE,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "hatch.linewidth": 0.6,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: journals refuse the default, Type 3
    "svg.fonttype": "path",  # the same everywhere: a page that opens without network has no fonts of ours
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """Of one arm in every figure: by its place in the plan, so that it keeps it from figure to figure."""

    colour: str
    dash: Any
    marker: str


def look(place: int) -> Look:
    """Of the arm at this place, from 0."""
    turn = place + place // len(COLOURS)
    return Look(colour=COLOURS[place % len(COLOURS)], dash=DASHES[turn % len(DASHES)], marker=MARKERS[place % len(MARKERS)])


def new_figure(width: float, height: float) -> Figure:
    """In inches; one that no window and no pyplot knows of."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def heading(figure: Figure, text: str, width: float = COLUMN) -> None:
    """Above everything, at the left edge, folded to the width."""
    figure.suptitle(fold(printable(text), int(width * 17.5)), x=0.01, ha="left", fontsize=8)


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], width: float = COLUMN) -> None:
    """One for the whole figure, where it covers nothing: the figure grows by what it takes."""
    labels = [_fitting(label, width) for label in labels]
    columns = max((number for number in range(1, 5) if _width(labels, number) <= width), default=1)
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.135 * rows + 0.08)
    figure.legend(list(handles), labels, loc="outside lower left", ncols=columns, columnspacing=_BETWEEN, labelspacing=0.3)


def _width(labels: Sequence[str], columns: int) -> float:
    """Inches of a legend: its letters as they are drawn, and what STYLE puts before, between and around them."""
    rows, longer = divmod(len(labels), columns)  # matplotlib fills columns in this way
    sizes = [rows + (column < longer) for column in range(columns)]
    starts = [sum(sizes[:column]) for column in range(columns)]
    widest = [
        max((_letters(label) for label in labels[start : start + size]), default=0) for start, size in zip(starts, sizes, strict=True)
    ]
    around, between = 2 * (0.4 + 0.2), _HANDLE + 0.8
    return (sum(widest) + _LEGEND_SIZE * (around + columns * between + (columns - 1) * _BETWEEN)) / 72


def _fitting(label: str, width: float) -> str:
    """The label without some of its middle where its letters are wide: 34 W are more than a column."""
    kept = label
    for most in range(len(label) - 1, 10, -1):
        if _width([kept], 1) <= width:
            break
        kept = _shortened(label, most, 0)
    return kept


def _letters(text: str) -> float:
    """Points; 3 % more than its outlines, because hinted letters of a PNG are wider (seen)."""
    font = FontProperties(family="DejaVu Sans", size=_LEGEND_SIZE)
    return 1.03 * float(text_to_path.get_text_width_height_descent(text, font, False)[0])


def short(names: Sequence[str], most: int) -> dict[str, str]:
    """Name -> itself, or what distinguishes it with an ellipsis for the rest; two names never become one."""
    common = _common_beginning([name for name in names if len(name) > most])
    kept: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        room = most
        while (text := _shortened(name, room, common)) in taken and room < len(name):
            room += 4
        kept[name] = text
        taken.add(text)
    return kept


def _common_beginning(names: Sequence[str]) -> int:
    """How many characters all of these begin with alike."""
    columns = zip(*names, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns)) if len(names) > 1 else 0


def _shortened(name: str, most: int, common: int) -> str:
    if len(name) <= most:
        return name
    rest = f"…{name[common:]}"
    if common > 0 and len(rest) <= most:
        return rest
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"


def fold(text: str, most: int) -> str:
    """The text in lines of at most so many characters, broken at spaces, or after a dash or a slash; what has none stays whole."""
    lines = [""]
    for word in re.findall(r"[^ /-]*[ /-]?", text):
        fits = len(lines[-1]) + len(word.rstrip()) <= most or not lines[-1]
        lines = [*lines[:-1], lines[-1] + word] if fits else [*lines, word]
    return "\n".join(line.rstrip() for line in lines)


def without_frame(axes: Axes) -> None:
    """A picture or a table in the axes has no need of lines around it."""
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
