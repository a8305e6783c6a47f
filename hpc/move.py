"""`python -m hpc.move SWEEP TARGET`: take an idle sweep to another place, whole, also to another file system.

Who still works in it is hpc.sweep_users' business, copying is hpc.tree_copy's. One invariant: at every moment one of the two places holds
a whole sweep, and the same command, typed again after a crash, ends with it in the new one.
"""

import argparse
import contextlib
import errno
import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.arguments import folder
from seresnet.command import run_command
from seresnet.durable import parse_json
from seresnet.errors import SubmissionError, ToolkitError, printable
from seresnet.help_text import HelpFormatter

if TYPE_CHECKING:
    from hpc.paths import Plan

_EPILOG = """\
example:
  python -m hpc.move runs/ablation /archive/me/ablation

TARGET is the new folder itself; it must not exist, and the folder above it must. On the same file system the sweep is renamed, else \
copied, verified file by file (size and SHA-256) and then removed; nothing is left at the old place. It is refused while a job, \
a launcher, a mirror or a training may still write into the sweep. Interrupted, it is typed again. \
Then launch with --runs-dir and the folder above \
TARGET, or TARGET itself if its name is another than the sweep's.
exit: 0 moved, 2 refused or an error, 130 Ctrl-C: the sweep is where it was, or the text says where it is.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Move; what a user, a cluster or a disk can cause is text and exit 2."""
    args = build_parser().parse_args(argv)
    try:
        for line in move(args.sweep, args.target):
            print(printable(line))
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted. Go on with: {_again(args.sweep, args.target)}", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m hpc.move",
        description="Move a sweep in which nobody works to another folder or file system.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("sweep", metavar="SWEEP", type=folder, help="the sweep's folder, such as runs/ablation")
    parser.add_argument("target", metavar="TARGET", type=folder, help="its new folder")
    return parser


@dataclass(frozen=True, kw_only=True)
class _Places:
    """From where to where, and the names used on the way, which tell by whom they were made."""

    source: Path
    target: Path

    @property
    def _tag(self) -> str:
        return hashlib.sha256(f"{self.source}\0{self.target}".encode()).hexdigest()[:12]

    @property
    def draft(self) -> Path:
        """The copy until it is whole."""
        return self.target.with_name(f".{self.target.name}.moving-{self._tag}")

    @property
    def doomed(self) -> Path:
        """The old folder once the copy is in its place."""
        return self.source.with_name(f".{self.source.name}.moved-{self._tag}")

    @property
    def mark(self) -> Path:
        """In the new folder until the old one is gone: what the old one looked like when it was copied."""
        return self.target / ".moved.json"

    @property
    def note(self) -> Path:
        """In the old folder while it is copied: where the draft is, for a later call to another target. Like a lock it is no content."""
        return self.source / ".moving.lock"


def move(sweep: Path, target: Path) -> list[str]:
    """Do it, or go on with it; what to tell the user. Raises ToolkitError: then the sweep is whole where it was."""
    # Resolved up to the last name: a second call, from elsewhere, must know what the first one left.
    places = _Places(source=_place(sweep), target=_place(target))
    try:
        return _finish(places) if _is_ours(places) else _move(places)
    except OSError as error:
        raise SubmissionError(f"{error.filename or target}: {error.strerror or error}. {_whereabouts(places)}") from error


def _place(path: Path) -> Path:
    try:
        path = path.absolute()
        return path.resolve() if path.name == ".." else path.parent.resolve() / path.name
    except (OSError, RuntimeError) as error:  # a loop of links; a working directory that is gone
        raise SubmissionError(f"{path}: {error}. Give the whole path of a folder. Nothing was moved.") from error


def _whereabouts(places: _Places) -> str:
    """What is whole where, after an error."""
    whole = [str(place) for place in (places.source, places.target) if (place / "plan.json").exists()]
    if not whole:
        return f"No sweep is in {places.source} now: somebody else moved or removed it."
    return f"The sweep is whole in {' and in '.join(whole)}. Correct that and type the same again."


def _move(places: _Places) -> list[str]:
    from hpc import locks, tree_copy
    from hpc.paths import Plan, SweepFolder
    from hpc.sweep_users import refuse_users

    sweep = SweepFolder(places.source)
    if not places.source.exists() and (places.target / "plan.json").exists():
        return _already(places)
    plan = Plan.read(sweep)
    _refuse_names(places)
    with locks.holding(sweep.launch_lock) as is_mine:
        if not is_mine:
            raise SubmissionError(
                f"{sweep.path}: a launcher is at work here, or another hpc.move. Nothing was moved. Try again when it is done."
            )
        if link := next(tree_copy.links_out(places.source), None):
            raise SubmissionError(
                f"{link}: leads out of the sweep by a relative way, {link.readlink()}. Make it absolute. Nothing was moved."
            )
        refuse_users(sweep, plan, "moved")
        said = _remove_leftover(places)
        source = _source_from(places, plan.source)
        try:
            os.rename(places.source, places.target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(places, replace(plan, source=source))
        else:
            _make_durable(places)
            replace(plan, source=source).write(SweepFolder(places.target))
    return [*said, *_said(places)]


def _already(places: _Places) -> list[str]:
    """The same command after it was done."""
    from hpc.paths import Plan, SweepFolder

    if Plan.read(SweepFolder(places.target)).sweep != places.source.name:
        raise SubmissionError(f"{places.source}: there is none. A sweep is in {places.target}: if it is this one, it was moved already.")
    return [f"{places.source} is gone and the sweep is in {places.target} already: nothing to move", *_how_to_go_on(places)]


def _refuse_names(places: _Places) -> None:
    """Raise SubmissionError for places between which nothing can be moved."""
    source, target = places.source, places.target
    problem = None
    if source.is_symlink():
        problem = f"{source}: is a link. Give the folder that it names, {source.resolve()}."
    elif target == source:
        problem = f"{target}: is where the sweep is. Give another place."
    elif os.path.lexists(target):
        inside = f", or {target / source.name} to put it in there" if target.is_dir() else ""
        problem = f"{target}: exists. Give a name that is free{inside}."
    elif file := next((above for above in target.parents if above.exists() and not above.is_dir()), None):
        problem = f"{target}: {file} is a file, no folder can be in it. Give another place."
    elif target.parent.resolve().is_relative_to(source.resolve()):
        problem = f"{target}: lies in {source}. Give a place outside of the sweep."
    elif not target.parent.is_dir():
        problem = f"{target.parent}: no such folder. `mkdir -p {shlex.quote(str(target.parent))}` first."
    elif not str(target).isprintable():
        problem = f"{target}: has a letter that cannot be printed, which plan.json or a log could not name. Give another name."
    if problem:
        raise SubmissionError(f"{problem} Nothing was moved.")


def _source_from(places: _Places, source: str | None) -> str | None:
    """The sweep's file as seen from the new folder: relaunching there compares it with the one that is given."""
    if source is None:
        return None
    file = Path(os.path.normpath(places.source.resolve() / source))
    return os.path.relpath(file, places.target.parent.resolve() / places.target.name)


# --- to another file system ---


def _copy(places: _Places, plan: "Plan") -> None:
    """Copy, verify, put in place, remove."""
    from hpc import tree_copy
    from hpc.paths import SweepFolder
    from seresnet.durable import write_json_durably

    if places.draft.exists():
        shutil.rmtree(places.draft)  # of a call that was killed
    try:
        places.note.write_text(str(places.draft))
        looks = tree_copy.copy(places.source, places.draft)
        plan.write(SweepFolder(places.draft))
        (places.draft / places.note.name).unlink()
        write_json_durably(places.draft / places.mark.name, {"source": str(places.source), "looks": looks})
        os.rename(places.draft, places.target)
    except BaseException:
        shutil.rmtree(places.draft, ignore_errors=True)
        places.note.unlink(missing_ok=True)
        raise
    _make_durable(places)
    _remove(places)


def _remove_leftover(places: _Places) -> list[str]:
    """Remove the draft of a killed call to another target, if it is that by its name; what was done."""
    try:
        draft = Path(places.note.read_text())
    except (OSError, ValueError):
        return []
    places.note.unlink()
    earlier = replace(places, target=draft.with_name(draft.name[1:].rpartition(".moving-")[0] or "x"))
    if earlier.draft == places.draft or not os.path.lexists(draft):
        return []
    if earlier.draft != draft or draft.is_symlink():
        return [f"{draft}: may be what an earlier hpc.move has left. Look, and remove it"]
    shutil.rmtree(draft, ignore_errors=True)
    return [f"{'could not remove' if draft.exists() else 'removed'} {draft}, the unfinished copy of an earlier call"]


def _is_ours(places: _Places) -> bool:
    """Whether an earlier call has put the sweep in its new place and was killed before the old one was gone."""
    try:
        found = parse_json(places.mark.read_text())
        return isinstance(found, dict) and found.get("source") == str(places.source)
    except (OSError, ValueError):
        return False


def _finish(places: _Places) -> list[str]:
    """Remove the old folder that an earlier call has left, unless somebody has worked in it since."""
    from hpc import locks, tree_copy
    from hpc.paths import SweepFolder

    if not places.source.exists():
        _remove(places)
        return _said(places)
    with locks.holding(SweepFolder(places.source).launch_lock) as is_mine:
        if not is_mine:
            raise SubmissionError(f"{places.source}: a launcher or another hpc.move is at work here. Try again when it is done.")
        if tree_copy.looks_of(places.source) != parse_json(places.mark.read_text()).get("looks"):
            raise SubmissionError(
                f"{places.source}: was used after it had been copied to {places.target}, so neither was removed. "
                f"Move the one away that you do not want; if that is the old one, remove {places.mark} as well."
            )
        _remove(places)
    return _said(places)


def _remove(places: _Places) -> None:
    """The old folder goes in one rename, so that nobody ever sees half of it under its name."""
    from seresnet.durable import fsync_folder

    if places.source.exists():
        os.rename(places.source, places.doomed)
        fsync_folder(places.source.parent)
    if places.doomed.exists():
        shutil.rmtree(places.doomed)
    places.mark.unlink(missing_ok=True)
    fsync_folder(places.target)


def _make_durable(places: _Places) -> None:
    from seresnet.durable import fsync_folder

    for place in {places.target.parent, places.source.parent}:
        fsync_folder(place)


# --- words ---


def _said(places: _Places) -> list[str]:
    return [f"moved {places.source} to {places.target}", *_how_to_go_on(places)]


def _how_to_go_on(places: _Places) -> list[str]:
    from hpc.paths import Plan, Submissions, SweepFolder
    from hpc.status_view import command

    sweep = SweepFolder(places.target)
    plan, last = Plan.read(sweep), None
    with contextlib.suppress(ToolkitError):
        last = next(reversed(Submissions.read(sweep).submissions), None)
    runs_dir = places.target.parent if places.target.name == plan.sweep else places.target
    return [
        f"to go on there: {command(sweep, plan, last, f' --runs-dir {shlex.quote(str(runs_dir))}')}",
        "a launch without this --runs-dir does not find it and begins all runs anew, unless its site's runs_dir is that folder",
    ]


def _again(sweep: Path, target: Path) -> str:
    return shlex.join(["python", "-m", "hpc.move", str(sweep), str(target)])


if __name__ == "__main__":
    run_command(main)
