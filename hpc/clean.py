"""`python -m hpc.clean SWEEP`: free what a finished sweep needs no more: older checkpoints, traces, trials, unused code. Asks first.

What may go is hpc.clean_plan's word. One invariant: cleaned.json says durably what goes before the first file of a run does, so that a
cleaning that is killed anywhere is told from damage, and the same command ends it.
"""

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.arguments import folder
from seresnet.command import run_command
from seresnet.errors import SubmissionError, ToolkitError, printable
from seresnet.help_text import HelpFormatter

if TYPE_CHECKING:
    from hpc.clean_plan import CleanPlan, Item, Keep
    from hpc.paths import Plan, SweepFolder
    from seresnet.run_folder import RunFolder

_EPILOG = """\
examples:
  python -m hpc.clean runs/ablation --dry-run    # says what it would free
  python -m hpc.clean runs/ablation              # keeps final and best; asks
  python -m hpc.clean runs/ablation --keep final --yes

Records stay, all of them: the sweep still collects, `python -m seresnet.checkpoint verify` says what is gone by intention, and a run that \
shall train longer goes on from what was kept. Runs that are not finished keep everything, and so does one whose final checkpoint is not \
what its result says. Refused while a job, a launcher, a mirror or a training may still write. Interrupted, it is typed again.
exit: 0 cleaned, or nothing to clean; 1 you said no; 2 refused, an error, or nobody to ask and no --yes; 130 Ctrl-C.
"""


#: --keep -> what stays of each finished run, and what to know before the rest goes.
_STAYS: dict["Keep", tuple[str, str]] = {
    None: ("each keeps its final checkpoint and the one that was best on validation", ""),
    "final": (
        "each keeps its final checkpoint",
        "what was best on validation goes where it is another: `--weights best` will find none",
    ),
    "best": (
        "each keeps the checkpoint that was best on validation, else its final one",
        "other final ones go: `--weights last` and training longer begin with what was kept",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Show, ask, clean; what a user, a cluster or a disk can cause is text and an exit code."""
    args = build_parser().parse_args(argv)
    try:
        return clean(args.sweep, args.keep, is_dry=args.dry_run, is_sure=args.yes)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or args.sweep}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted. What went is in cleaned.json; the same command goes on", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m hpc.clean",
        description="Free what a sweep's finished runs need no more. Prints it and asks.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("sweep", metavar="SWEEP", type=folder, help="the sweep's folder, such as runs/ablation")
    parser.add_argument(
        "--keep",
        choices=("final", "best"),
        help="keep this checkpoint of a finished run and remove the other (default: keep both); best: on validation",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="print it and remove nothing")
    return parser


def clean(path: Path, keep: "Keep", *, is_dry: bool = False, is_sure: bool = False) -> int:
    """Do it; the exit code. Raises ToolkitError and OSError."""
    from hpc import clean_plan, locks
    from hpc.paths import Plan, SweepFolder
    from hpc.sweep_users import refuse_users

    sweep = SweepFolder(path)
    plan = Plan.read(sweep)
    if is_dry:
        _show(path, clean_plan.find(sweep, plan, keep), keep)
        return 0
    with locks.holding(sweep.launch_lock) as is_mine:
        if not is_mine:
            raise SubmissionError(
                f"{path}: a launcher or another hpc.clean is at work here. Nothing was removed. Try again when it is done."
            )
        refuse_users(sweep, plan, "removed")
        found = clean_plan.find(sweep, plan, keep)
        _show(path, found, keep)
        if not found.items:
            return 0
        if not is_sure:
            if not sys.stdin.isatty():
                print("nobody to ask here, so nothing was removed. Say --yes to remove it", file=sys.stderr)
                return 2
            if input("Remove it? [y/N] ").strip().lower() not in ("y", "yes"):
                print("nothing was removed")
                return 1
        for line in _remove(sweep, plan, found, keep):
            print(printable(line))
    return 0


def _show(path: Path, found: "CleanPlan", keep: "Keep") -> None:
    """What would go, by kind, and what stays."""
    from hpc.plan_view import count

    words, note = _STAYS[keep]
    stay = (
        f"; {count(found.unfinished, 'unfinished run')} keep{'s' if found.unfinished == 1 else ''} everything" if found.unfinished else ""
    )
    print(printable(f"{path}: {count(found.finished, 'finished run')}, {words}{stay}"))
    if note and found.items:
        print(f"  {note}")
    kinds = dict.fromkeys(item.kind for item in found.items)
    rows = [(kind, [item for item in found.items if item.kind == kind]) for kind in kinds]
    for kind, items in [*rows, ("together", list(found.items))] if found.items else []:
        print(f"  {kind:<44} {sum(item.files for item in items):>7,} files {sum(item.size for item in items) / 1e6:>12,.1f} MB")
    for line in found.left:
        print(printable(f"  left alone: {line}"))
    if not found.items:
        print("nothing to remove")


# --- removing ---


def _remove(sweep: "SweepFolder", plan: "Plan", found: "CleanPlan", keep: "Keep") -> list[str]:
    """Remove what was shown; what to tell the user. Raises OSError: what is gone by then is in cleaned.json."""
    from hpc.clean_plan import kept_words

    _note(sweep, kept_words(keep), found)
    freed: Counter[str] = Counter()
    said = []
    folders = {item.run.path: item.run for item in found.items if item.run is not None}
    for place, run in folders.items():
        mine = [item for item in found.items if item.run is not None and item.run.path == place]
        if not _is_still_settled(run, plan):
            said.append(f"left alone: {place.name}: somebody has begun to work on it")
            continue
        _remove_checkpoints(run, mine, kept_words(keep))
        freed.update(files=len(mine), size=sum(item.size for item in mine))
    for item in found.items:
        if item.run is None:
            _remove_tree(item.path)
            freed.update(files=item.files, size=item.size)
    return [*said, f"removed {freed['files']:,} files, {freed['size'] / 1e6:,.1f} MB"]


def _note(sweep: "SweepFolder", kept: str, found: "CleanPlan") -> None:
    """In the sweep's own record: when, what was kept, which code went."""
    from seresnet.durable import parse_json, write_json_durably

    entries: list[object] = []
    if sweep.cleaned.exists():
        try:
            entries = list(parse_json(sweep.cleaned.read_text())["entries"])
        except (ValueError, KeyError, TypeError):
            entries = []  # torn by somebody else; what each run lost is in its own record
    codes = [item.path.name for item in found.items if item.path.parent == sweep.codes]
    entries.append({"time": time.time(), "kept": kept, "code": codes, "size": sum(item.size for item in found.items)})
    write_json_durably(sweep.cleaned, {"schema": 1, "entries": entries})


def _is_still_settled(run: "RunFolder", plan: "Plan") -> bool:
    """Asked right before its files go: the question may have stood there for an hour."""
    from hpc.clean_plan import is_settled
    from hpc.states import facts_of
    from seresnet.claims import this_process

    run_id = next(run_id for run_id, entry in plan.runs.items() if entry.folder == run.path.name)
    return is_settled(facts_of(run, this_process(), run_id=run_id))


def _remove_checkpoints(run: "RunFolder", items: "Sequence[Item]", kept: str) -> None:
    from seresnet import cleaned
    from seresnet.durable import fsync_folder

    cleaned.add(run, kept, {item.path.name: item.size for item in items})
    for item in items:
        item.path.unlink(missing_ok=True)
    fsync_folder(run.checkpoints)


def _remove_tree(path: Path) -> None:
    """A folder goes in one rename, so that nobody ever takes half of it for the whole; a file or a link goes as it is."""
    from hpc.clean_plan import DOOMED
    from seresnet.durable import fsync_folder

    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path if path.name.endswith(DOOMED) else path.with_name(f".{path.name}{DOOMED}")
    if doomed != path:
        shutil.rmtree(doomed, ignore_errors=True)  # what an earlier call has left
        os.rename(path, doomed)
        fsync_folder(path.parent)
    shutil.rmtree(doomed)


if __name__ == "__main__":
    run_command(main)
