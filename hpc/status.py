"""`python -m hpc.status SWEEP`: what every run is doing, and why some are not. Reads; changes nothing.

Run files first, then one question to the scheduler, and none if every run is finished. Exit: 0 all finished, 1 something failed,
3 still to come, 2 an error.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seresnet.errors import ConfigError, ToolkitError

if TYPE_CHECKING:
    from hpc.paths import SweepFolder
    from hpc.progress_view import RunProgress

ALL_FINISHED, SOME_FAILED, STILL_TO_COME = 0, 1, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Print the state of a sweep; the exit code says it in one number."""
    args = build_parser().parse_args(argv)
    try:
        return show(args.sweep, as_json=args.json)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m hpc.status",
        description="What every run of a sweep is doing.",
        epilog="exit: 0 all finished, 1 something failed, 3 still running or waiting, 2 an error",
    )
    parser.add_argument("sweep", metavar="SWEEP", type=Path, help="the sweep's folder, such as runs/ablation")
    parser.add_argument("--json", action="store_true", help="one JSON document for programs")
    return parser


def show(path: Path, *, as_json: bool) -> int:
    """Look once and print. Raises ConfigError for a folder that is no sweep's."""
    from hpc import queues
    from hpc.paths import Plan, Submissions, SweepFolder
    from hpc.progress_view import progress_of
    from hpc.states import run_states

    sweep = SweepFolder(path)
    if not sweep.plan.exists():
        raise ConfigError(f"{path}: no plan.json here, so this is not the folder of a launched sweep.{_nearby(path)}")
    plan = Plan.read(sweep)
    queue = queues.look(sweep, plan, Submissions.read(sweep).submissions)
    rows = [progress_of(state) for state in run_states(sweep, plan, queue) if state.arms]
    if as_json:
        print(json.dumps(to_json(sweep, rows, queue.problem), indent=1))
    else:
        _print(rows, queue.problem)
    return exit_code(rows)


def exit_code(rows: Sequence["RunProgress"]) -> int:
    """0 all finished, 1 something needs a person, 3 the rest will come by itself or by launching again."""
    states = {row.run.state for row in rows}
    if states <= {"finished"}:
        return ALL_FINISHED
    return SOME_FAILED if states & {"failed"} else STILL_TO_COME


def to_json(sweep: "SweepFolder", rows: Sequence["RunProgress"], problem: str | None) -> dict[str, Any]:
    """Every row with the words of the table and without its cuts; percentages are 0..100."""
    runs = [
        {
            "run_id": row.run.run_id,
            "slug": row.run.slug,
            "arms": list(row.run.arms),
            "state": row.run.state,
            "ending": row.run.ending,
            "reason": row.run.reason,
            "epoch": row.epoch,
            "epochs": row.epochs,
            "test_top1_pct": row.test_top1_pct,
            "eta_s": row.eta_s,
            "attempts": row.run.attempts,
            "node": row.run.node,
            "task": row.run.task,
            "log": str(row.run.folder.log.relative_to(sweep.path)),
        }
        for row in rows
    ]
    return {"schema": 1, "sweep": sweep.path.name, "scheduler_problem": problem, "runs": runs}


def _print(rows: Sequence["RunProgress"], problem: str | None) -> None:
    from rich.text import Text

    from hpc.launch_text import failures
    from hpc.plan_view import make_console, states_text
    from hpc.progress_view import progress_table

    console = make_console()
    console.print(progress_table(console, rows, with_node=True))
    console.print(Text(f"\n{len(rows)} runs: {states_text([row.run.state for row in rows])}", style="bold"))
    if problem:
        console.print(Text(f"note: {problem}; runs that it may have are shown as queued"), soft_wrap=True)
    for line in failures([row.run for row in rows]):
        console.print(Text(line), soft_wrap=True)


def _nearby(path: Path) -> str:
    """The sweeps beside or below a folder that is none itself."""
    for folder in (path, Path("runs"), path.parent):
        found = sorted(plan.parent for plan in folder.glob("*/plan.json")) if folder.is_dir() else []
        if found:
            return f" Sweeps: {', '.join(str(sweep) for sweep in found[:10])}."
    return ""


if __name__ == "__main__":
    sys.exit(main())
