"""One file of a run's ckpt/: what its bytes prove, and what its name says. Without torch, and without changing anything.

What it means for the run is inspection.py's job. One invariant: a file counts as good only where its own bytes prove it, by a digest that
its name holds, or, for one under another name, a record of the run.
"""

import errno
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from seresnet.checkpoint_files import Header, digest_of, read_record
from seresnet.durable import DISK
from seresnet.errors import CheckpointError, ConfigError
from seresnet.run_folder import CheckpointName
from seresnet.tensor_file import layout

_DURABLE = re.compile(rb"checkpoint_durable step=\d+ name=(g\d+-s\d+-[0-9a-f]{16}\.safetensors)")

#: ok; damaged: other bytes than the name promises; renamed: proved good, under a name that no start looks for; unproven: reads like a
#: checkpoint, but nothing says that its bytes are the right ones; newer: a newer version's; temp: of a save that was not committed.
Condition = Literal["ok", "damaged", "renamed", "unproven", "unreadable", "newer", "temp", "foreign"]


@dataclass(frozen=True, kw_only=True)
class FileLook:
    """One file of ckpt/ or ckpt/bad/."""

    path: Path
    is_set_aside: bool  # in bad/
    condition: Condition
    name: CheckpointName | None = None  # what the content says; where that is no word to trust, what the file is called
    header: Header | None = None
    fault: str = ""
    size: int = 0
    time: float = 0.0  # unix time of its last change


def look_at_files(place: Path, is_set_aside: bool) -> list[FileLook]:
    """Every file of a folder of checkpoints, by name; none where there is no folder. Raises OSError where it cannot be listed."""
    looks = (_look_at(place / name, is_set_aside) for name in DISK.names(place) if not (place / name).is_dir())
    return [look for look in looks if look is not None]


def prove(files: Sequence[FileLook], named: Set[str]) -> list[FileLook]:
    """The same, with files whose names prove nothing taken for what they say they are, where the run itself has named just that.

    named: names of checkpoints that the run's records hold. Such a name has the digest of the bytes, and so is as good as a file's own.
    """
    known = named | {look.header.best_so_far for look in files if look.condition in ("ok", "renamed") and look.header}
    is_proved = [look.condition == "unproven" and str(look.name) in known for look in files]
    return [
        replace(look, condition="renamed", fault=f"is {look.name} under another name, which the run's records prove") if proved else look
        for look, proved in zip(files, is_proved, strict=True)
    ]


def names_in_log(path: Path) -> set[str]:
    """The checkpoints that log.txt calls durable; none where it cannot be read."""
    try:
        return {name.decode() for name in _DURABLE.findall(path.read_bytes())}
    except OSError:
        return set()


def _look_at(path: Path, is_set_aside: bool) -> FileLook | None:
    """None for a file that its owner has just removed."""
    called = CheckpointName.parse(path.name)
    try:
        payload, stat = path.read_bytes(), path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        why = errno.errorcode.get(error.errno or 0, str(error))
        return FileLook(path=path, is_set_aside=is_set_aside, condition="unreadable", name=called, fault=f"cannot be read ({why})")
    condition, name, header, fault = _judge(path.name, called, payload)
    return FileLook(
        path=path,
        is_set_aside=is_set_aside,
        condition=condition,
        name=name,
        header=header,
        fault=fault,
        size=stat.st_size,
        time=stat.st_mtime,
    )


def _judge(file: str, called: CheckpointName | None, payload: bytes) -> tuple[Condition, CheckpointName | None, Header | None, str]:
    digest = digest_of(payload)
    is_temp = file.startswith(".") and file.endswith(".tmp")
    if called is not None and called.digest != digest:
        return "damaged", called, None, "does not match its digest"
    try:
        header: Header = read_record(payload)["header"]
        layout(payload)
    except (CheckpointError, ConfigError) as error:
        is_newer = digest in file and "newer version" in str(error)
        if is_temp or (called is None and not is_newer):
            return ("temp" if is_temp else "foreign"), called, None, "not a whole checkpoint"
        return ("newer" if is_newer else "damaged"), called, None, str(error)
    name = CheckpointName(generation=header.generation, step=header.step, digest=digest)
    if str(name) == file:
        return "ok", name, header, ""
    if digest in file:
        return ("temp" if is_temp else "renamed"), name, header, f"is {name} under another name"
    return (
        ("temp" if is_temp else "unproven"),
        name,
        None if is_temp else header,
        "reads like a checkpoint, but its name holds no digest that proves it",
    )
