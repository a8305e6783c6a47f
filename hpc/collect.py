"""python -m hpc.collect SWEEP...: the comparison of a sweep's arms as a table, a CSV, figures and a page.

Parses, calls, prints; hpc.gather reads, hpc.stats computes, hpc.tables and its siblings, hpc.figures and hpc.report show. One invariant:
the same run folders give the same bytes.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hpc import figure_names
from hpc.arguments import folder
from hpc.metrics import DEFAULT, METRICS
from hpc.written import listing
from seresnet.command import run_command
from seresnet.durable import write_durably
from seresnet.errors import ConfigError, ToolkitError, printable
from seresnet.help_text import HelpFormatter

if TYPE_CHECKING:
    from hpc.comparison import Comparison
    from hpc.gather import Gathered

_EXTRA = {"pandas", "matplotlib"}
#: Without these there is a table and no page.
_PAGE_EXTRA = {"bokeh", "jinja2", "markupsafe"}
#: --format -> the file beside table.md.
FORMATS = {"md": "table.md", "csv": "table.csv", "latex": "table.tex", "json": "table.json"}


def main(argv: Sequence[str] | None = None) -> int:
    """0 when a table was made, however partial; 2 when there is nothing to make one from."""
    arguments = _parse(argv)
    form = arguments.format or "md"
    try:
        arguments.figures = figure_names.chosen_figures("none" if arguments.no_figures else arguments.figures)
        arguments.figure_formats = figure_names.chosen_formats(arguments.figure_formats)
        from hpc import archive

        # To the end: what is read late would be gone with the folder of an archive.
        with archive.folders(arguments.sweeps) as sweeps:
            comparison, written = _collected(arguments, sweeps, form)
            _show(comparison, arguments.format, written)
            _name_older(written[0].parent, written)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: type it again", file=sys.stderr)
        return 130
    except OSError as error:
        place = error.filename or arguments.output or arguments.sweeps[0]
        print(f"{place}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _collected(arguments: argparse.Namespace, sweeps: Sequence[Path], form: str) -> tuple["Comparison", list[Path]]:
    """What the command line asks for; sweeps: its sweeps, with archives as folders."""
    from hpc import archive

    comparison, written = collect(
        sweeps,
        arguments.baseline,
        arguments.output or archive.beside(arguments.sweeps),
        not arguments.no_figures,
        by=arguments.by,
        metrics=arguments.metric or DEFAULT,
        form=form,
        with_page=not arguments.no_page,
        figures=arguments.figures,
        figure_formats=arguments.figure_formats,
    )
    if arguments.tensorboard is None:
        return comparison, written
    from hpc import tensorboard

    tensorboard.export(comparison.gathered, arguments.tensorboard)
    return comparison, [*written, arguments.tensorboard]


def collect(
    sweeps: Sequence[Path],
    baseline: str | None = None,
    output: Path | None = None,
    with_figures: bool = True,
    *,
    by: Sequence[str] = (),
    metrics: Sequence[str] = DEFAULT,
    form: str = "md",
    with_page: bool = True,
    figures: Sequence[str] = figure_names.DEFAULT,
    figure_formats: Sequence[str] = figure_names.FORMATS,
) -> tuple["Comparison", list[Path]]:
    """Write table.md, runs.csv, figures/* and report.html into output (one sweep: its own folder); return table and paths.

    with_figures: where False, no page either, which takes as long. by: config keys to group by in place of arms. form: of FORMATS; its
    file is written, too. Raises ConfigError for a folder that is no sweep, an unknown baseline, key or metric, or where pandas or
    matplotlib is not installed.
    """
    from hpc.gather import gather  # numpy: --help must not wait for it

    sweeps = list({path.resolve(): path for path in sweeps}.values())
    makes_output = output is not None  # the sweep's own folder is there, or was moved meanwhile and must not come back
    output = output or (sweeps[0] if len(sweeps) == 1 else None)
    if output is None:
        raise ConfigError("several sweeps: say where the table goes with --output DIR.")
    gathered = gather(sweeps)
    if not gathered.arms:
        raise ConfigError(f"{sweeps[0]}: plan.json names no arm. Launch the sweep first.")
    try:
        if makes_output:
            output.mkdir(parents=True, exist_ok=True)
        comparison = _compare(gathered, baseline, by, metrics)
        written = _write(gathered, comparison, output, form)
        if with_figures:
            written += _draw(comparison, output, figures, figure_formats)
            written += _write_page(comparison, output) if with_page else []
        return comparison, written
    except OSError as error:  # a full disk names no file
        if makes_output:
            raise
        raise ConfigError(f"{error.filename or output}: {error.strerror or error}. Correct that, or say --output DIR.") from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        advice = "Use the Python of the training environment (make setup): it has all that tables and figures need."
        raise ConfigError(f"{error.name} is not installed here. {advice}") from error


def _compare(gathered: "Gathered", baseline: str | None, by: Sequence[str], metrics: Sequence[str]) -> "Comparison":
    # Imported here: --help and a missing extra must not wait for pandas.
    from hpc.comparison import compare

    return compare(gathered, baseline, by, metrics)


def _write(gathered: "Gathered", comparison: "Comparison", output: Path, form: str) -> list[Path]:
    from hpc import stats

    # A table that is there already in another form is written anew: two of different days side by side would mislead.
    forms = [each for each, name in FORMATS.items() if each in ("md", form) or (output / name).is_file()]
    texts = {FORMATS[each]: text(comparison, each) for each in forms} | {"runs.csv": stats.runs_csv(gathered.rows)}
    files = {output / name: content for name, content in texts.items()}
    for path, content in files.items():
        write_durably(path, content.encode())
    return list(files)


def _draw(comparison: "Comparison", output: Path, names: Sequence[str], formats: Sequence[str]) -> list[Path]:
    from hpc import figures

    return figures.draw(comparison.gathered, output / "figures", names, formats, comparison.baseline)


def _write_page(comparison: "Comparison", output: Path) -> list[Path]:
    """A table without its page is worth having: what the page lacks is said in one line."""
    try:
        from hpc import report
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PAGE_EXTRA:
            raise
        print(f"no report.html: {error.name} is not installed here (it comes with the extra `collect`).", file=sys.stderr)
        return []
    return [report.write(comparison, output)]


def text(comparison: "Comparison", form: str) -> str:
    """The table in one of FORMATS."""
    from hpc import table_data, table_latex, tables

    makers = {"md": tables.markdown, "csv": table_data.csv_text, "latex": table_latex.latex, "json": table_data.json_text}
    return makers[form](comparison)


def _show(comparison: "Comparison", form: str | None, written: Sequence[Path]) -> None:
    from hpc import tables

    if form is None and sys.stdout.isatty():
        from hpc import table_screen

        table_screen.print_table(comparison, Console())
    else:
        print(text(comparison, form or "md"), end="")
    if form in ("csv", "latex"):  # whose readers skip comments, or have none
        print("\n".join(map(printable, [tables.headline(comparison.gathered), *tables.warnings(comparison)])), file=sys.stderr)
    # To stderr, so that a piped table is a table.
    print("\n" + listing(written, shutil.get_terminal_size().columns), file=sys.stderr)


_ABOUT = """Compare the arms of one or several sweeps: a row an arm, mean and spread over seeds, differences paired by seed.

The table goes to stdout (on a terminal in a form that fits it), as table.md and runs.csv into the sweep's folder, and as table.csv, \
table.tex or table.json where --format asks for it; a form that is there already is written anew. docs/collect.md explains the columns."""


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name. Separate names by single commas")
    return words


def _name_older(output: Path, written: Sequence[Path]) -> None:
    """A page or pictures of an earlier table must not be taken for this one's."""
    left = [path for path in (output / "report.html", output / "figures") if path.exists() and not _is_among(path, written)]
    if left:
        names = " and ".join(path.name for path in left)
        print(
            f"{names} there {'is' if len(left) == 1 else 'are'} of an earlier table: leave --no-figures and --no-page out", file=sys.stderr
        )


def _is_among(path: Path, written: Sequence[Path]) -> bool:
    return any(path == other or path in other.parents for other in written)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hpc.collect",
        description=_ABOUT,
        epilog="metrics:\n" + "\n".join(f"  {name:<26}{metric.meaning}" for name, metric in METRICS.items()),
        formatter_class=HelpFormatter,
    )
    parser.add_argument("sweeps", nargs="+", metavar="SWEEP", type=folder, help="a sweep's folder, or its archive: runs/ablation.tar")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), help="print the table in this form, whatever stdout is, and write its file, too"
    )
    parser.add_argument(
        "--by",
        metavar="KEY,...",
        type=_words,
        default=[],
        help="rows by values of config keys, e.g. model.attention,optim.lr; default: arm",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME,...",
        type=_words,
        help="columns, from the list below; the difference is of the first (default: accuracies)",
    )
    parser.add_argument(
        "--baseline", metavar="ARM", help="arm that differences refer to (default: the one called baseline, else the first)"
    )
    parser.add_argument(
        "--output",
        type=folder,
        metavar="DIR",
        help="where the files go (default: into the sweep's folder; of an archive, SWEEP.collected beside it)",
    )
    parser.add_argument("--tensorboard", type=folder, metavar="DIR", help="also write the epochs of every run as TensorBoard's events")
    parser.add_argument(
        "--figures",
        metavar="all|none|NAME,...",
        default=",".join(figure_names.DEFAULT),
        help=f"what is drawn into figures/, of {', '.join(figure_names.FIGURES)}; default: the first {len(figure_names.DEFAULT)}",
    )
    parser.add_argument(
        "--figure-formats",
        metavar="FORMAT,...",
        default=",".join(figure_names.FORMATS),
        help=f"of {', '.join(figure_names.FORMATS)}; default: all",
    )
    parser.add_argument("--no-figures", action="store_true", help="tables only, in a fraction of the time: neither figures nor page")
    parser.add_argument("--no-page", action="store_true", help="everything but report.html")
    arguments = parser.parse_args(argv)
    arguments.by = [] if arguments.by == ["arm"] else arguments.by
    return arguments


if __name__ == "__main__":
    run_command(main)
