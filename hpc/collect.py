"""python -m hpc.collect SWEEP...: the comparison of a sweep's arms as a table, a CSV and figures.

Parses, calls, prints; hpc.gather reads, hpc.stats computes, hpc.tables and hpc.figures show. One invariant: the same run folders
give the same bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from hpc.arguments import folder
from seresnet.durable import write_durably
from seresnet.errors import ConfigError, ToolkitError

if TYPE_CHECKING:
    from hpc.gather import Gathered
    from hpc.tables import Comparison

_EXTRA = {"pandas", "matplotlib"}


def main(argv: Sequence[str] | None = None) -> int:
    """0 when a table was made, however partial; 2 when there is nothing to make one from."""
    arguments = _parse(argv)
    try:
        comparison, written = collect(arguments.sweeps, arguments.baseline, arguments.output, not arguments.no_figures)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        place = error.filename or arguments.output or arguments.sweeps[0]
        print(f"{place}: {error.strerror or error}", file=sys.stderr)
        return 2
    _show(comparison, written)
    return 0


def collect(
    sweeps: Sequence[Path], baseline: str | None = None, output: Path | None = None, with_figures: bool = True
) -> tuple["Comparison", list[Path]]:
    """Write table.md, runs.csv and figures/*.png into output (one sweep: its own folder); return the table and what was written.

    Raises ConfigError for a folder that is no sweep, an unknown baseline, or where pandas or matplotlib is not installed.
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
        return _write(gathered, baseline, output, with_figures)
    except OSError as error:  # a full disk names no file
        if makes_output:
            raise
        raise ConfigError(f"{error.filename or output}: {error.strerror or error}. Correct that, or say --output DIR.") from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        advice = "Use the Python of the training environment (make setup): it has all that tables and figures need."
        raise ConfigError(f"{error.name} is not installed here. {advice}") from error


def _write(gathered: "Gathered", baseline: str | None, output: Path, with_figures: bool) -> tuple["Comparison", list[Path]]:
    # Imported here: --help and a missing extra must not wait for pandas.
    from hpc import stats, tables

    chosen = stats.choose_baseline(gathered.arms, baseline)
    comparison = tables.Comparison(
        title=", ".join(dict.fromkeys(row.sweep for row in gathered.rows)),
        baseline=chosen,
        gathered=gathered,
        arms=stats.summarise(gathered, chosen),
    )
    files = {output / "table.md": tables.markdown(comparison), output / "runs.csv": stats.runs_csv(gathered.rows)}
    for path, text in files.items():
        write_durably(path, text.encode())
    if not with_figures:
        return comparison, list(files)
    from hpc import figures

    return comparison, [*files, *figures.draw(gathered, output / "figures")]


def _show(comparison: "Comparison", written: Sequence[Path]) -> None:
    from hpc import tables

    if sys.stdout.isatty():
        tables.print_table(comparison, Console())
    else:
        print(tables.markdown(comparison), end="")
    # To stderr, so that a piped table is a table.
    print("\nwrote " + " ".join(map(str, written)), file=sys.stderr)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hpc.collect", description="Compare the arms of one or several sweeps.")
    parser.add_argument("sweeps", nargs="+", metavar="SWEEP", type=folder, help="a sweep's folder, e.g. runs/ablation")
    parser.add_argument(
        "--baseline", metavar="ARM", help="arm that differences refer to (default: the one called baseline, else the first)"
    )
    parser.add_argument("--output", type=folder, metavar="DIR", help="where the files go (default: into the sweep's folder)")
    parser.add_argument("--no-figures", action="store_true", help="table.md and runs.csv only, in a fraction of the time")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
