"""Figures of what the cluster did to the runs: every attempt on a line of time, and what the device-hours became.

hpc.spans knows the attempts, hpc.fates what their hours were. One invariant: an attempt whose times nobody knows is not drawn, and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hpc.fates import Fates, fates
from hpc.figure_scene import Scene
from hpc.figure_style import COLUMN, PAGE, fold, heading, legend_below, new_figure, short
from hpc.gather import RunRow
from hpc.spans import Span

_MOST_NAMED_RUNS = 60
_MOST_RUNS = 1000
_TALLEST = 9.0  # inches: a page
_ROW = 0.15
_MOST_ARMS = 40


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How spans of some endings are drawn; a hatch and a grey of their own, for print without colour."""

    label: str
    colour: str
    hatch: str
    endings: tuple[str, ...]


_KINDS = (
    _Kind(label="finished", colour="#0072B2", hatch="", endings=("finished",)),
    _Kind(label="preempted, node failed", colour="#E69F00", hatch="////", endings=("preempted", "node_failed")),
    _Kind(label="timed out", colour="#56B4E9", hatch="....", endings=("timed_out",)),
    _Kind(
        label="failed",
        colour="#D55E00",
        hatch="xxxx",
        endings=("crashed", "killed", "hung", "out_of_memory", "user_error", "diverged"),
    ),
    _Kind(label="stopped, cancelled", colour="#CC79A7", hatch="\\\\\\\\", endings=("stopped", "fenced", "cancelled", "cancelled_by_site")),
    _Kind(label="not ended, or unknown", colour="#cccccc", hatch="", endings=()),
)

_FATES = (("useful", "#0072B2", ""), ("repeated", "#E69F00", "////"), ("lost", "#bbbbbb", "xxxx"))


def timeline_figure(scene: Scene) -> Figure | None:
    """A line a run, a bar an attempt; between them thin where the job was requeued, dotted where it was started again."""
    rows = _in_order(scene)
    drawn = [row for row in rows if any(_is_known(span) for span in row.spans)]
    if not drawn:
        return None
    shown = drawn[:_MOST_RUNS]
    first = min(span.started for row in shown for span in row.spans if span.started is not None)
    last = max(span.ended for row in shown for span in row.spans if span.ended is not None)
    unit, size = _unit(last - first)
    is_named = len(shown) <= _MOST_NAMED_RUNS
    figure = new_figure(PAGE, 0.75 + min(_ROW * len(shown), _TALLEST))
    axes = figure.subplots()
    _draw_waits(axes, shown, first, size)
    used = _draw_spans(axes, shown, first, size, is_named)
    _name_rows(axes, scene, shown, is_named)
    axes.set_ylim(len(shown) - 0.3, -0.7)
    axes.set_xlim(left=0)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"{unit} since the first attempt")
    legend_below(figure, *_timeline_legend(used, shown), PAGE)
    heading(figure, _timeline_heading(scene, rows, drawn), PAGE)
    return figure


def hours_figure(scene: Scene) -> Figure | None:
    """Device-hours by arm, in three parts; one panel for GPUs and one for CPU cores where there are both."""
    found = {kind: _by_arm(scene, kind) for kind in ("gpu", "cpu")}
    panels = {kind: arms for kind, arms in found.items() if arms}
    if not panels:
        return None
    lines = sum(min(len(arms), _MOST_ARMS) for arms in panels.values())
    row = 0.28 if any(len(scene.names[arm]) > 20 for arms in panels.values() for arm in arms) else 0.2
    figure = new_figure(COLUMN, 0.5 + 0.5 * len(panels) + row * lines)
    heights = [min(len(arms), _MOST_ARMS) + 1 for arms in panels.values()]
    for axes, (kind, arms) in zip(figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0], panels.items(), strict=True):
        _draw_hours(axes, scene, kind, arms)
    handles = [Patch(facecolor=colour, hatch=hatch, edgecolor="white") for _, colour, hatch in _FATES]
    legend_below(figure, handles, [name for name, *_ in _FATES])
    unknown = sum((part for arms in panels.values() for part in arms.values()), Fates()).unknown
    heading(figure, f"{scene.data_name}: hours held by all attempts" + (f" ({unknown} of unknown length not counted)" if unknown else ""))
    return figure


def _in_order(scene: Scene) -> list[RunRow]:
    """By arm and seed; a run of several arms once, with the first; runs that no arm asks for any more come last."""
    rows = {(row.sweep, row.run_id): row for arm in scene.arms for row in scene.runs[arm]}
    rest = sorted((row for row in scene.gathered.rows if not row.arms), key=lambda row: (row.sweep, row.run_id))
    return [*rows.values(), *rest]


def _is_known(span: Span) -> bool:
    return span.started is not None and span.ended is not None


def _unit(seconds: float) -> tuple[str, float]:
    for name, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 3 * size:
            return name, size
    return "seconds", 1.0


def _kind(span: Span) -> _Kind:
    return next((kind for kind in _KINDS if span.ending in kind.endings), _KINDS[-1])


def _draw_spans(axes: Axes, rows: Sequence[RunRow], first: float, size: float, is_named: bool) -> list[_Kind]:
    """One collection for each kind of ending, so that thousands of attempts are few objects; return the kinds that occur."""
    used = []
    for kind in _KINDS:
        boxes = [_box(row, span, first, size) for row, spans in enumerate(map(_known, rows)) for span in spans if _kind(span) is kind]
        if boxes:
            used.append(kind)
            edge, width = ("#444444", 0.4) if is_named else ("none", 0.0)
            hatch = kind.hatch if is_named else None
            axes.add_collection(PolyCollection(boxes, facecolor=kind.colour, hatch=hatch, edgecolor=edge, linewidth=width), autolim=False)
    axes.update_datalim(
        [corner for row, spans in enumerate(map(_known, rows)) for span in spans for corner in _box(row, span, first, size)]
    )
    axes.autoscale_view()
    return used


def _known(row: RunRow) -> list[Span]:
    return [span for span in row.spans if _is_known(span)]


def _box(row: int, span: Span, first: float, size: float) -> list[tuple[float, float]]:
    assert span.started is not None and span.ended is not None
    left, right = (span.started - first) / size, (max(span.ended, span.started) - first) / size
    return [(left, row - 0.36), (right, row - 0.36), (right, row + 0.36), (left, row + 0.36)]


def _draw_waits(axes: Axes, rows: Sequence[RunRow], first: float, size: float) -> None:
    for number, row in enumerate(rows):
        spans = _known(row)
        for before, after in pairwise(spans):
            assert before.ended is not None and after.started is not None
            if after.started > before.ended:
                ends = [(before.ended - first) / size, (after.started - first) / size]
                axes.plot(ends, [number, number], **_wait_style(_is_requeue(before, after)), zorder=0.9)


def _is_requeue(before: Span, after: Span) -> bool:
    """The same job once more, as Slurm counts; otherwise it was tried again within the job, or launched again."""
    return before.job is not None and before.job == after.job and after.restart_count > before.restart_count


def _wait_style(requeued: bool) -> dict[str, Any]:
    return {"color": "#444444", "linewidth": 0.8, "linestyle": "solid" if requeued else (0, (1, 1.2))}


def _name_rows(axes: Axes, scene: Scene, rows: Sequence[RunRow], is_named: bool) -> None:
    """Every run by its name while the names have room; then arms, at their first run."""
    if is_named:
        names = short([f"{row.sweep}/{row.slug}" if len(scene.gathered.rows) and _several_sweeps(scene) else row.slug for row in rows], 34)
        axes.set_yticks(range(len(rows)), [names[name] for name in names] if len(names) == len(rows) else [row.slug for row in rows])
        return
    starts = [place for place, row in enumerate(rows) if place == 0 or row.arms[:1] != rows[place - 1].arms[:1]]
    room = len(rows) * 0.13 / min(_ROW * len(rows), _TALLEST)  # rows that a line of text takes
    kept: list[int] = []
    for place in starts:
        if not kept or place - kept[-1] >= room:
            kept.append(place)
    axes.set_yticks(kept, [scene.names.get((rows[place].arms or ("",))[0], "no longer asked for") for place in kept])


def _several_sweeps(scene: Scene) -> bool:
    return len({row.sweep for row in scene.gathered.rows}) > 1


def _timeline_legend(used: Sequence[_Kind], rows: Sequence[RunRow]) -> tuple[list[Any], list[str]]:
    is_named = len(rows) <= _MOST_NAMED_RUNS
    handles: list[Any] = [
        Patch(facecolor=kind.colour, hatch=kind.hatch if is_named else None, edgecolor="#444444", linewidth=0.4) for kind in used
    ]
    labels = [kind.label for kind in used]
    waits = {_is_requeue(*pair) for row in rows for pair in pairwise(_known(row))}
    for requeued, label in ((True, "requeued, in the queue"), (False, "until it was started again")):
        if requeued in waits:
            handles.append(Line2D([], [], **_wait_style(requeued)))
            labels.append(label)
    return handles, labels


def _timeline_heading(scene: Scene, rows: Sequence[RunRow], drawn: Sequence[RunRow]) -> str:
    spans = [span for row in rows for span in row.spans]
    counts = {
        "attempts" if len(spans) > 1 else "attempt": len(spans),
        "preempted": sum(span.ending == "preempted" for span in spans),
        "of unknown time, not drawn": sum(not _is_known(span) for span in spans),
    }
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    cut = f"first {_MOST_RUNS} of {len(drawn)} runs" if len(drawn) > _MOST_RUNS else f"{len(drawn)} run{'s' if len(drawn) > 1 else ''}"
    return f"{scene.data_name}: {cut}, {', '.join(parts)}"


def _by_arm(scene: Scene, kind: str) -> dict[str, Fates]:
    found = {arm: fates([row for row in scene.runs[arm] if row.device_kind == kind]) for arm in scene.arms}
    return {arm: part for arm, part in found.items() if part.held > 0}


def _draw_hours(axes: Axes, scene: Scene, kind: str, arms: dict[str, Fates]) -> None:
    most = sorted(arms, key=lambda arm: -arms[arm].held)[:_MOST_ARMS]
    shown = [arm for arm in arms if arm in most]
    for row, arm in enumerate(shown):
        left = 0.0
        for name, colour, hatch in _FATES:
            width = getattr(arms[arm], name)
            axes.barh(row, width, left=left, height=0.7, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3)
            left += width
        axes.annotate(
            f"{100 * arms[arm].useful / arms[arm].held:.0f} % useful",
            (left, row),
            (2, 0),
            textcoords="offset points",
            va="center",
            fontsize=6,
        )
    axes.set_yticks(range(len(shown)), [fold(scene.names[arm], 20) for arm in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 1.3 * max(part.held for part in arms.values()))
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    unit = "GPU-hours" if kind == "gpu" else "core-hours"
    left_out = f", the {len(shown)} largest of {len(arms)} arms" if len(shown) < len(arms) else ""
    axes.set_xlabel(f"{unit}{left_out}")
