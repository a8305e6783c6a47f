"""What mirrors leave in a run's wandb/ folder: the cursor of what was handed over for good, and offline segments.

Which rows there are is the journal's business. One invariant: an offline segment that the cursor does not name may be torn, holds nothing
that the journal has not, and is removed.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from hpc.mirror_process import Mode
from seresnet.durable import parse_json, write_json_durably
from seresnet.run_folder import RunFolder

CURSOR_SCHEMA = 1

#: Each offline segment is a folder and a file. From so many on they are written anew as one, or a run that is preempted all day would
#: fill the user's inodes.
MOST_SEGMENTS = 4


@dataclass(frozen=True, kw_only=True)
class Closing:
    """How a W&B run was closed before it was finished; closing it so again would send nothing new."""

    mode: Mode
    epoch: int
    ending: str  # "preempting", or the ending of a run that needs a person


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """wandb/cursor.json in the run folder: what earlier mirrors have handed over for good."""

    epoch: int = 0  # newest epoch in a finished offline segment or on the server
    segments: tuple[str, ...] = ()  # finished offline folders, not yet uploaded as far as we know
    complete: Mode | None = None  # the mode in which the whole of a finished run was published
    wandb_id: str | None = None  # None: nothing was published yet
    closing: Closing | None = None  # of an unfinished run

    @classmethod
    def read(cls, folder: RunFolder) -> "Cursor":
        """An empty cursor where there is none, or one that cannot be read: then everything is published again."""
        try:
            value = parse_json(cursor_path(folder).read_text())
            if value.pop("schema") == CURSOR_SCHEMA:
                closing = Closing(**value["closing"]) if value.get("closing") else None
                return cls(
                    epoch=int(value["epoch"]), segments=tuple(value["segments"]), complete=value["complete"],
                    wandb_id=value.get("wandb_id"), closing=closing,
                )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            pass
        return cls()

    def write(self, folder: RunFolder) -> None:
        write_json_durably(cursor_path(folder), {"schema": CURSOR_SCHEMA, **asdict(self), "segments": list(self.segments)})


def wandb_folder(folder: RunFolder) -> Path:
    return folder.path / "wandb"


def cursor_path(folder: RunFolder) -> Path:
    return wandb_folder(folder) / "cursor.json"


def lock_path(folder: RunFolder, mode: Mode) -> Path:
    """One lock a mode: a mirror on a login node may upload what one on a node without network still writes."""
    return wandb_folder(folder) / ("online.lock" if mode == "online" else "mirror.lock")


def segments(folder: RunFolder) -> list[str]:
    """Offline segments, oldest first: their names carry the time."""
    return sorted(path.name for path in wandb_folder(folder).glob("offline-run-*"))


def drop_segments(folder: RunFolder, but: tuple[str, ...] = ()) -> None:
    """Remove what killed mirrors left: its rows are in the journal, may be torn, and would be doubled by those that follow.

    A 7-byte file among them would stop `wandb sync` for the whole batch (seen).
    """
    for name in segments(folder):
        if name not in but:
            shutil.rmtree(wandb_folder(folder) / name, ignore_errors=True)


def is_to_be_joined(folder: RunFolder, cursor: Cursor) -> bool:
    """Whether the segments shall be written anew as one: there are many, and nobody has uploaded any with `wandb sync`."""
    return len(cursor.segments) >= MOST_SEGMENTS and not any(wandb_folder(folder).glob("offline-run-*/*.synced"))


def strip(folder: RunFolder, segment: str) -> None:
    """Keep the rows, drop wandb's logs and empty folders: inodes are counted on clusters."""
    for name in ("logs", "tmp", "files"):
        shutil.rmtree(wandb_folder(folder) / segment / name, ignore_errors=True)
