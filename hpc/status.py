"""`python -m hpc.status SWEEP`: what every run is doing, and why some are not. Reads; changes nothing.

Run files first, then one question to the scheduler, and none if every run is finished. Exit: 0 all finished, 1 something failed,
3 still to come, 2 an error.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.arguments import folder
from seresnet.command import run_command
from seresnet.errors import ConfigError, ToolkitError
from seresnet.help_text import HelpFormatter

if TYPE_CHECKING:
    from hpc.paths import SweepFolder
    from hpc.progress_view import RunProgress

ALL_FINISHED, SOME_FAILED, STILL_TO_COME = 0, 1, 3

_EPILOG = """\
exit: 0 all finished, 1 something failed, 3 still running, waiting or to be launched again, 2 an error

--watch draws again every few seconds, asks the scheduler at most every 15 s (or the site's status_every_s), and ends when \
nobody has a run any more; Ctrl-C ends it at once.

"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the state of a sweep; the exit code says it in one number."""
    args = build_parser().parse_args(argv)
    try:
        return _run(args)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `status ... | head`
        sys.stderr.close()
        return 2
    except OSError as error:  # another user's folder
        print(f"{error.filename or args.sweep}: {error.strerror or error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    from hpc.status_help import JSON_HELP

    parser = argparse.ArgumentParser(
        prog="python -m hpc.status",
        description="What every run of a sweep is doing.",
        epilog=_EPILOG + JSON_HELP,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("sweep", metavar="SWEEP", type=folder, help="the sweep's folder, such as runs/ablation")
    parser.add_argument("--watch", action="store_true", help="look again and again; with --logs follow the log")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON document for programs")
    how.add_argument("--logs", metavar="RUN", help="the end of a run's log, and where its task's logs are; RUN: slug or run id")
    return parser


def _run(args: argparse.Namespace) -> int:
    """Raises ConfigError for a folder that is no sweep's, or a run that is not in it."""
    from hpc.no_sweep import what_it_is
    from hpc.paths import SweepFolder

    sweep = SweepFolder(args.sweep)
    if not sweep.plan.exists():
        hint = what_it_is(args.sweep) or _nearby(args.sweep)
        raise ConfigError(f"{args.sweep}: no plan.json here, so this is not the folder of a launched sweep. {hint}".rstrip())
    if args.logs:
        from hpc import status_logs

        return status_logs.show(sweep, args.logs, follow=args.watch)
    if args.watch and args.json:
        raise ConfigError("--watch and --json: ask for the document again and again instead, not more often than your site allows.")
    if args.watch:
        from hpc import status_watch

        return exit_code(status_watch.watch(sweep).rows)
    return show(sweep, as_json=args.json)


def show(sweep: "SweepFolder", *, as_json: bool) -> int:
    """Look once and print."""
    import json

    from hpc import status_look
    from hpc.status_json import to_json
    from hpc.status_watch import print_look

    look = status_look.take(sweep)
    if as_json:
        print(json.dumps(to_json(look), indent=1))
    else:
        print_look(look)
    return exit_code(look.rows)


def exit_code(rows: Sequence["RunProgress"]) -> int:
    """0 all finished, 1 something needs a person, 3 the rest will come by itself or by launching again."""
    states = {row.run.state for row in rows}
    if states <= {"finished"}:
        return ALL_FINISHED
    return SOME_FAILED if states & {"failed"} else STILL_TO_COME


def _nearby(path: Path) -> str:
    """The sweeps near a folder that is none itself."""
    from hpc.no_sweep import sweeps_in

    for place in (Path("runs"), path.parent):
        if found := sweeps_in(place):
            return f"Sweeps: {', '.join(str(sweep) for sweep in found[:10])}."
    return ""


if __name__ == "__main__":
    run_command(main)
