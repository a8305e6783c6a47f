"""Files that are either wholly there or not there at all, also after a power loss.

The one place that knows the order: temp file in the same folder, write, flush, fsync, rename, fsync the folder. Every call that
the promise rests on goes through a Files, so that a test can put a simulated disk in its place.
"""

import errno
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

#: What link() says where hard links do not exist: vfat and some FUSE, CIFS and overlay mounts.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class Files:
    """The real disk. Every method raises OSError as the system call does."""

    def create(self, path: Path) -> BinaryIO:
        """Open a new file for writing; FileExistsError if the name is taken."""
        return open(path, "xb")

    def append(self, path: Path) -> BinaryIO:
        """Open a file for writing at its end, and for reading; made if it is not there."""
        return open(path, "a+b")

    def sync(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())

    def sync_folder(self, folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        except OSError as error:
            # Some network and FUSE file systems have no fsync of folders: there is nothing more to be had.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def link_count(self, path: Path) -> int:
        return os.stat(path).st_nlink  # noqa: PTH116 - one system call, as the name says

    def unlink(self, path: Path) -> None:
        os.unlink(path)  # noqa: PTH108

    def make_folder(self, path: Path) -> None:
        """With the folders above it; fine if it is there."""
        path.mkdir(parents=True, exist_ok=True)

    def is_folder(self, path: Path) -> bool:
        return path.is_dir()

    def names(self, folder: Path) -> list[str]:
        """Sorted; empty for a folder that does not exist."""
        try:
            return sorted(os.listdir(folder))  # noqa: PTH208
        except FileNotFoundError:
            return []

    def read(self, path: Path) -> bytes:
        return path.read_bytes()


DISK = Files()


def write_durably(path: Path, payload: bytes, files: Files = DISK, guard: Callable[[], None] | None = None) -> None:
    """Replace path by payload; when this returns, a power loss keeps the new content, and before that the old or the new one.

    guard: called right before the rename, which is not done if it raises. Raises OSError (ENOSPC, EDQUOT, EIO, ...) with no temp
    file left behind, and the previous file intact unless only the last step, the folder's fsync, failed.
    """
    temp = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        write_new(temp, payload, files)
        if guard is not None:
            guard()
        files.rename(temp, path)
    except BaseException:
        remove(temp, files)
        raise
    files.sync_folder(path.parent)


def publish(path: Path, payload: bytes, files: Files = DISK, guard: Callable[[], None] | None = None) -> bool | None:
    """Create a file that is whole when it appears: True if the name was free, False if it is taken, None where hard links do not exist.

    Its name is not durable before sync_folder. guard: called right before the link, which is not made if it raises. Raises OSError.
    """
    temp = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        write_new(temp, payload, files)
        if guard is not None:
            guard()
        return _link(temp, path, files)
    finally:
        remove(temp, files)


def _link(temp: Path, path: Path, files: Files) -> bool | None:
    """Whether temp now has the name; None where hard links do not exist."""
    try:
        files.link(temp, path)
        return True
    except OSError as error:
        # NFS repeats a request whose answer was lost, and then reports EEXIST for our own success: the link count knows.
        if _link_count(temp, files) == 2:
            return True
        # FileNotFoundError: a newer owner has cleaned up our temp file, so what we publish is history.
        if isinstance(error, (FileExistsError, FileNotFoundError)):
            return False
        if error.errno in _NO_LINKS:
            return None
        raise


def _link_count(path: Path, files: Files) -> int:
    try:
        return files.link_count(path)
    except FileNotFoundError:
        return 0


def write_new(path: Path, payload: bytes, files: Files = DISK) -> None:
    """Write a file that must not exist yet, and fsync its content; its name is not durable before sync_folder."""
    with files.create(path) as file:
        file.write(payload)
        file.flush()
        files.sync(file)


def make_folder_durably(path: Path, files: Files = DISK) -> None:
    """Make a folder with those above it, and make their names durable; fine if it is there. Raises OSError."""
    missing = [folder for folder in path.parents if not files.is_folder(folder)]
    files.make_folder(path)
    # The folder's own name always: whoever made it may have been killed before this line.
    for folder in (path, *missing):
        files.sync_folder(folder.parent)


def remove(path: Path, files: Files = DISK) -> bool:
    """Unlink if possible; False, and no exception, where it was not."""
    try:
        files.unlink(path)
    except OSError:
        return False
    return True


def write_json_durably(path: Path, value: Any, files: Files = DISK) -> None:
    """write_durably of sorted, indented JSON; NaN and infinities are refused, because JSON has none."""
    write_durably(path, json_bytes(value), files)


def json_bytes(value: Any) -> bytes:
    """Sorted, indented JSON for people and programs; ValueError for NaN and infinities."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_json(text: str | bytes) -> Any:
    """What a text of unknown origin says. Raises ValueError, also for nesting that Python's own parser ends with a RecursionError."""
    try:
        return json.loads(text)  # noqa: TID251 - the one place
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def fsync_folder(folder: Path) -> None:
    """Make names in this folder durable: without it a renamed file can vanish at a power loss."""
    DISK.sync_folder(folder)


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces, shortest float form. Used under every digest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
