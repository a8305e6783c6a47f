"""report.html: the whole comparison as one file that opens without a network, on a phone and in print.

Puts together what the other report modules, hpc.methods and hpc.bibliography say, and lays it out with the templates. Everything that comes
from records is escaped, and the page's own policy lets only the two scripts run that it was written with. One invariant: the same
comparison gives the same bytes; there is no time of making in it, no random id and no absolute path.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from hpc import bibliography, methods, report_figures, report_print, report_runs, report_series, report_view, settings, tables
from hpc.comparison import Comparison
from seresnet.durable import write_durably
from seresnet.errors import printable

NAME = "report.html"

_TEMPLATES = Path(__file__).with_name("templates")

#: Lines of skipped files; a damaged disk can have thousands.
_MOST_SKIPPED = 200


def write(comparison: Comparison, folder: Path) -> Path:
    """Write report.html into the folder, durably."""
    path = folder / NAME
    write_durably(path, page(comparison).encode())
    return path


def page(comparison: Comparison) -> str:
    """The whole HTML text."""
    scripts = (report_figures.script(), (_TEMPLATES / "report.js").read_text())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_as_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((_TEMPLATES / "report.css").read_text())
    return environment.get_template("report.html").render(
        policy=_policy(scripts), style=style, scripts=[Markup(script) for script in scripts], **_parts(comparison)
    )


def _as_text(value: Any) -> Any:
    """Before escaping: nothing that a terminal or a reader's eye would obey, such as text that runs backwards."""
    return printable(value) if type(value) is str else value


def _policy(scripts: tuple[str, ...]) -> str:
    """Nothing may be fetched and nothing may run but these scripts. Styles are open: bokeh makes its own while it draws."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def _parts(comparison: Comparison) -> dict[str, Any]:
    gathered = comparison.gathered
    sections, missing = report_runs.sections(comparison), report_runs.missing(comparison)
    unfinished = [row for row in gathered.rows if row.state != "finished"]
    columns, lines = report_view.table(comparison)
    return {
        **_figure_parts(comparison),
        "title": comparison.title,
        "baseline": comparison.baseline,
        "headline": tables.headline(gathered),
        "warnings": tables.warnings(comparison),
        "verdict": report_view.verdict(comparison),
        "asked": report_view.asked(comparison),
        "runs_asked": sum(1 for row in gathered.rows if row.arms),
        "columns": columns,
        "lines": lines,
        "widths": [max((len(" ".join(line[place].rest)) for line in lines), default=0) for place in range(len(columns))],
        "caption": tables.caption(comparison),
        "confusions": report_view.confusions(comparison),
        "sections": sections,
        "rest_of_sections": report_runs.note_of_rest(len(sections), gathered.rows),
        "missing": missing,
        "rest_of_missing": report_runs.note_of_rest(len(missing), unfinished),
        "skipped": gathered.skipped[:_MOST_SKIPPED],
        "skipped_left_out": max(0, len(gathered.skipped) - _MOST_SKIPPED),
        "methods": methods.paragraph(comparison),
        "bibtex": bibliography.bibtex(settings.configs_of(gathered.finished or gathered.rows)),
    }


def _figure_parts(comparison: Comparison) -> dict[str, Any]:
    panels, measure = report_series.curve_panels(comparison), report_series.measure(comparison)
    differences, sizes = report_series.difference_points(comparison), report_series.size_points(comparison)
    drawn = report_series.drawn_arms(comparison)
    labels = {line.arm.number: line.label for panel in reversed(panels) for line in panel.lines}
    shown = (panels, differences, sizes, measure)
    return {
        "panels": panels,
        "differences": differences,
        "sizes": sizes,
        "measure": measure,
        "arms": [(arm, labels[arm.number]) for arm in drawn if arm.number in labels],
        "arms_left_out": len(comparison.arms) - len(drawn),
        "has_late": any(panel.late for panel in panels),
        "has_runs": any(line.runs for panel in panels for line in panel.lines),
        "pictures": {name: Markup(address) for name, address in report_print.pictures(*shown).items()},
        "figures": _json(report_figures.figures_json(*shown)) if panels or differences or sizes else "",
    }


def _json(value: Any) -> Markup:
    """JSON that can stand in a script element: no < in it, so no end tag and no comment."""
    return Markup(json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c"))
