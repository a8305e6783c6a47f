"""What a folder is that is not a sweep's, and what its user may have meant; which folders hold a run that is not the plan's.

Looks at names and run.yaml alone. One invariant: whatever cannot be read is passed over; nothing here raises.
"""

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from seresnet.errors import ToolkitError
from seresnet.run_folder import RunFolder, RunRecord

if TYPE_CHECKING:
    from hpc.paths import Plan

#: Between the name of a run's folder and a number: that training was set aside, see hpc.paths.
SET_ASIDE = ".set-aside-"
_RUN_FOLDER_NAME = re.compile(r".+-[0-9a-f]{12}")


def what_it_is(folder: Path) -> str:
    """A sentence or two about a folder without plan.json, for a command that wants a sweep's; empty if it is nothing we know."""
    with contextlib.suppress(OSError):
        if (folder / "run.yaml").exists() or (folder / "attempts").is_dir():
            return _of_run(folder)
        if folder.exists() and not folder.is_dir():
            is_archive = folder.suffix == ".tar"
            return (
                f"An archive is read by hpc.collect, and hpc.archive --restore {folder} DIR unpacks it."
                if is_archive
                else "That is no folder."
            )
    found = sweeps_in(folder)
    return f"Sweeps: {', '.join(map(str, found[:10]))}." if found else ""


def _of_run(folder: Path) -> str:
    what = f"This is the folder of a run, not of a sweep{forked_from(RunFolder(path=folder))}."
    parent = folder.resolve().parent
    if (parent / "plan.json").exists():
        return f"{what} Its sweep is {folder.parent if folder.name else parent}: give that."
    return (
        f"{what} It belongs to no sweep: result.json has its numbers, `python -m seresnet.checkpoint verify {folder}` looks at it, and "
        "`mv` moves it when nobody trains it."
    )


def sweeps_in(folder: Path) -> list[Path]:
    """The sweeps right below a folder."""
    return [path for path in _folders(folder) if _has(path / "plan.json")]


def foreign_runs(sweep: Path, plan: "Plan") -> Iterator[tuple[str, str]]:
    """(name, what it is) of each folder in a sweep's that holds a run which the plan does not know."""
    planned = {entry.folder for entry in plan.runs.values()}
    for path in _folders(sweep, planned):
        if SET_ASIDE in path.name:
            continue
        if _RUN_FOLDER_NAME.fullmatch(path.name) or _has(path / "run.yaml"):
            yield path.name, f"a run that is not in plan.json{forked_from(RunFolder(path=path))}"


def forked_from(folder: RunFolder) -> str:
    """`; it is a fork of ...`, or nothing."""
    with contextlib.suppress(ToolkitError, OSError):
        parent = RunRecord.read(folder).parent
        return f"; it is a fork of {parent}" if parent else ""
    return ""


def _folders(folder: Path, known: Collection[str] = ()) -> list[Path]:
    """In the order of their names, without those that are known."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        # By name, not as paths: comparing 10,000 of those takes half a second.
        return [folder / name for name in sorted(entry.name for entry in entries if entry.name not in known and entry.is_dir())]
    return []


def _has(path: Path) -> bool:
    # Path.exists raises where the folder is another user's.
    return os.access(path, os.F_OK)
