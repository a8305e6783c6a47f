"""cleaned.json of a run: the checkpoints that `hpc.clean` has removed on purpose, so that nobody takes them for lost.

Deciding what may go is hpc.clean_plan's job. One invariant: a name is in the record before its file is removed, and never leaves it, so
that a cleaning that was killed is told from damage, and can be done again.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from seresnet.durable import DISK, Files, parse_json, write_json_durably
from seresnet.run_folder import CheckpointName, RunFolder

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What was removed, by all cleanings of the run together."""

    time: float  # of the last one, unix
    kept: str  # by the last one: "final and best", "final" or "best"
    files: Mapping[str, int] = field(default_factory=dict)  # checkpoint's file name -> bytes

    @property
    def newest_step(self) -> int:
        """The furthest step whose checkpoint was removed."""
        return max((name.step for name in map(CheckpointName.parse, self.files) if name is not None), default=0)

    def __str__(self) -> str:
        when = time.strftime("%d %b %Y", time.localtime(self.time))
        count = len(self.files)
        return f"hpc.clean removed {count} checkpoint{'s' if count != 1 else ''} on {when} and kept the {self.kept}"


def read(folder: RunFolder, files: Files = DISK) -> Cleaned | None:
    """None where nothing was cleaned, or the record cannot be read: then what is gone counts as lost."""
    try:
        value = parse_json(files.read(folder.cleaned))
        names = {str(name): int(size) for name, size in value["files"].items()}
        return Cleaned(time=float(value["time"]), kept=str(value["kept"]), files=names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def add(folder: RunFolder, kept: str, removed: Mapping[str, int], files: Files = DISK) -> None:
    """Write down, durably, what is about to be removed. Raises OSError: then nothing may be."""
    known = read(folder, files)
    names = {**(known.files if known else {}), **removed}
    write_json_durably(folder.cleaned, {"schema": SCHEMA, "time": time.time(), "kept": kept, "files": names}, files)


def gone(folder: RunFolder, files: Files = DISK) -> list[str]:
    """The checkpoints of the record that are really not there. Raises OSError."""
    known = read(folder, files)
    return sorted(known.files.keys() - set(files.names(folder.checkpoints))) if known else []


def going_on(folder: RunFolder, step: int | None, files: Files = DISK) -> str | None:
    """What a start from this step (None: from none) has lost by a cleaning; None if nothing.

    Older checkpoints are nothing: a start would not have gone back to them.
    """
    known = read(folder, files)
    if known is None or not gone(folder, files) or (step is not None and step >= known.newest_step):
        return None
    return (
        f"{known}: step {known.newest_step} is gone on purpose, {'so nothing is left' if step is None else f'so it goes on at step {step}'}"
    )
