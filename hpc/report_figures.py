"""The page's interactive figures: bokeh's models as JSON, ready to stand in the page.

What they show is hpc.report_series'; colours of a dark page and hidden arms are the page's script's. Names from records are data of the
models, never code, and no model carries code of its own, so that the page can forbid eval. One invariant: equal numbers give equal
text, though bokeh numbers its models by how many were made before.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import bokeh
from bokeh.core.json_encoder import serialize_json
from bokeh.document import Document
from bokeh.models import BoxZoomTool, ColumnDataSource, HoverTool, NumeralTickFormatter, PanTool, Range1d, ResetTool, WheelZoomTool
from bokeh.plotting import figure

from hpc.report_series import Line, Measure, Panel, Point, beside_axis
from seresnet.durable import parse_json

_TICK, _LABEL = "11px", "12px"


def figures_json(panels: Sequence[Panel], differences: Sequence[Point], sizes: Sequence[Point], measure: Measure) -> dict[str, Any]:
    """{"docs": ..., "items": ..., "late": ...}: what Bokeh.embed.embed_items takes, and the ranges of the last quarter."""
    figures = _curves(panels)
    if differences:
        figures["differences"] = _differences(differences, measure)
    if sizes:
        figures["sizes"] = _sizes(sizes)
    document = Document()
    for made in figures.values():
        document.add_root(made)
    names: dict[str, str] = {}
    docs = {"page": _renamed(parse_json(serialize_json(document.to_json()).encode()), names)}
    roots = {names[made.id]: f"plot-{key}" for key, made in figures.items()}
    late = {panel.key: panel.late for panel in panels if panel.late}
    ranges = {key: [names[figures[key].x_range.id], names[figures[key].y_range.id], *bounds] for key, bounds in late.items()}
    return {"docs": docs, "items": [{"docid": "page", "roots": roots, "root_ids": list(roots)}], "late": ranges}


@cache
def script() -> str:
    """bokeh's own code for browsers."""
    return (Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js").read_text(encoding="utf-8")


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """The same JSON with ids that count from 0 in the order of their appearance."""
    if isinstance(value, list):
        return [_renamed(part, names) for part in value]
    if not isinstance(value, dict):
        return value
    return {key: names.setdefault(part, f"m{len(names)}") if _is_id(key, part) else _renamed(part, names) for key, part in value.items()}


def _is_id(key: str, value: Any) -> bool:
    return key == "id" and isinstance(value, str)


def _plot(x_label: str, y_label: str, x: Any, y: Any, height: int = 320) -> Any:
    zoom = BoxZoomTool()
    tools = [zoom, PanTool(), WheelZoomTool(), ResetTool()]
    made = figure(
        height=height, sizing_mode="stretch_width", min_width=240, x_range=x, y_range=y, x_axis_label=x_label, y_axis_label=y_label,
        tools=tools, active_drag=zoom, toolbar_location="above", background_fill_color=None, border_fill_color=None,
        outline_line_color=None,
    )  # fmt: skip
    made.toolbar.logo = None
    for axis in made.axis:
        axis.axis_label_text_font_style, axis.axis_label_text_font_size, axis.major_label_text_font_size = "normal", _LABEL, _TICK
        axis.minor_tick_line_color, axis.axis_label_text_font, axis.major_label_text_font = None, "sans-serif", "sans-serif"
    made.min_border_right = 12
    return made


def _curves(panels: Sequence[Panel]) -> dict[str, Any]:
    """They share the range of epochs: a zoom in one is a zoom in all."""
    made: dict[str, Any] = {}
    x = _range(*panels[0].x) if panels else None
    for panel in panels:
        plot = made[panel.key] = _plot("epoch", panel.unit, x, _range(*panel.y))
        plot.xaxis.ticker.update(mantissas=[1, 2, 5], min_interval=1)
        for line in panel.lines:
            _add_runs(plot, line)
        is_short = max(len(line.x) for line in panel.lines) <= 30
        means = [(_add_mean(plot, line, is_short), line.low is not None) for line in panel.lines]
        for has_band in (False, True):
            plot.add_tools(_hover([mean for mean, banded in means if banded is has_band], panel, has_band))
    return made


def _add_runs(plot: Any, line: Line) -> None:
    """Hidden until they are asked for."""
    if line.runs:
        source = ColumnDataSource({"x": [epochs for epochs, _ in line.runs], "y": [values for _, values in line.runs]})
        lines = plot.multi_line("x", "y", source=source, color=line.arm.colour, line_width=0.8, line_alpha=0.55, visible=False)
        lines.tags = [f"arm{line.arm.number}", "runs"]


def _hover(means: Sequence[Any], panel: Panel, has_band: bool) -> HoverTool:
    """$name is the renderer's, set as text: a name from a record is never read as a template."""
    form = "{0.00}" if panel.unit.endswith("(%)") else "{0.000}"
    rows = [("arm", "$name"), ("epoch", "@x"), ("mean" if has_band else panel.unit, f"@y{form}")]
    band = [("± 1 std", f"@low{form} to @high{form}")] if has_band else []
    # Out of the toolbar: what the pointer shows costs nothing and needs no switch.
    return HoverTool(
        renderers=list(means), tooltips=[*rows, *band], line_policy="nearest", point_policy="snap_to_data", limit=1, visible=False
    )


def _add_mean(plot: Any, line: Line, is_short: bool) -> Any:
    columns: dict[str, Any] = {"x": line.x, "y": line.mean}
    if line.low and line.high:
        columns |= {"low": line.low, "high": line.high}
    source = ColumnDataSource(columns)
    if line.low:
        band = plot.varea("x", "low", "high", source=source, fill_color=line.arm.colour, fill_alpha=0.16)
        band.tags = [f"arm{line.arm.number}", "band"]
    look = {"line_color": line.arm.colour, "line_width": 1.8, "line_dash": [round(float(part)) for part in line.arm.dash.split()]}
    mean = plot.line("x", "y", source=source, name=line.label, **look)
    mean.tags = [f"arm{line.arm.number}", "mean"]
    if is_short:
        dots = plot.scatter("x", "y", source=source, size=4.5, color=line.arm.colour)
        dots.tags = [f"arm{line.arm.number}", "dots"]
    return mean


def _differences(points: Sequence[Point], measure: Measure) -> Any:
    y = _range(-0.6, len(points) - 0.4)
    plot = _plot(measure.axis, "", _range_of(points), y, height=110 + 26 * len(points))
    plot.yaxis.ticker = [point.place for point in points]
    plot.yaxis.major_label_overrides = {point.place: beside_axis(point.arm.name) for point in points}
    plot.ygrid.grid_line_color = None
    plot.vspan(x=[0], line_width=1.2, line_color="#767676", line_dash="dashed")
    for point in points:
        _add_interval(plot, point, is_flat=True)
    return plot


def _sizes(points: Sequence[Point]) -> Any:
    places = [point.place for point in points]
    air = 0.08 * (max(places) - min(places))
    plot = _plot("parameters", "last-epoch test accuracy (%)", _range(min(places) - air, max(places) + air), _range_of(points))
    plot.xaxis.ticker.update(desired_num_ticks=4)
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    for point in points:
        _add_interval(plot, point, is_flat=False)
    return plot


def _add_interval(plot: Any, point: Point, is_flat: bool) -> None:
    """A dot with its whisker, and faint dots for what it is the mean of. is_flat: values lie along x."""
    tag = f"arm{point.arm.number}"
    if point.low is not None and point.high is not None:
        ends: dict[str, Any] = {"x0": [point.low], "x1": [point.high], "y0": [point.place], "y1": [point.place]}
        flipped: dict[str, Any] = {"y0": [point.low], "y1": [point.high], "x0": [point.place], "x1": [point.place]}
        source = ColumnDataSource(ends if is_flat else flipped)
        plot.segment("x0", "y0", "x1", "y1", source=source, line_color=point.arm.colour, line_width=2.2).tags = [tag, "mean"]
    spread = f" [{point.low:.2f}, {point.high:.2f}]" if point.low is not None and point.high is not None else ""
    singles = [(point.label, what, value, 5.0, 0.45) for what, value in point.singles]
    dots = [*singles, (point.label, f"mean {point.mean:.2f}{spread}", point.mean, 9.0, 1.0)]
    places, values = [point.place] * len(dots), [round(dot[2], 4) for dot in dots]
    columns: dict[str, Any] = {"x": values if is_flat else places, "y": places if is_flat else values, "arm": [dot[0] for dot in dots]}
    columns |= {"what": [dot[1] for dot in dots], "size": [dot[3] for dot in dots], "alpha": [dot[4] for dot in dots]}
    made = plot.scatter("x", "y", source=ColumnDataSource(columns), size="size", alpha="alpha", color=point.arm.colour)
    made.tags = [tag, "mean"]
    number = "@x{0.00}" if is_flat else "@y{0.00}"
    plot.add_tools(HoverTool(renderers=[made], tooltips=[("arm", "@arm"), ("what", "@what"), ("value", number)], limit=1, visible=False))


def _range_of(points: Sequence[Point]) -> Range1d:
    values = [value for point in points for value in (point.mean, point.low, point.high, *(single for _, single in point.singles))]
    known = [value for value in values if value is not None]
    low, high = (min([0.0, *known]), max([0.0, *known])) if any(point.singles for point in points) else (min(known), max(known))
    air = 0.06 * (high - low) or 0.5
    return _range(round(low - air, 4), round(high + air, 4))


def _range(start: float, end: float) -> Range1d:
    return Range1d(start=start, end=end)
