"""What tells that a file was changed, without reading it: its size, inode and times.

One invariant: files that were changed, replaced, added or removed since have another key, unless that happened within the granularity
of the file system's clock; newest_ns is there to tell.
"""

import contextlib
import functools
import hashlib
import os
import struct
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ABSENT = (0, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Key:
    """text: equal for equal files; newest_ns: the latest of their times of modification and change, in unix nanoseconds."""

    text: str
    newest_ns: int


class Marks:
    """Identities of files below a folder: one digest for a list of names, and the newest time in it."""

    def __init__(self, folder: Path) -> None:
        self._handle = -1
        with contextlib.suppress(OSError):
            self._handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0))
            weakref.finalize(self, os.close, self._handle)

    def key(self, names: Sequence[str]) -> Key | None:
        """Of these names, in this order, some of which may not be there; None where one cannot even be looked at."""
        if self._handle < 0:
            return None
        found: list[int] = []
        newest = 0
        for name in names:
            try:
                facts = os.stat(name, dir_fd=self._handle)
            except (FileNotFoundError, NotADirectoryError):
                found += _ABSENT
                continue
            except (OSError, ValueError):
                return None
            changed, altered = facts.st_mtime_ns, facts.st_ctime_ns
            found += (facts.st_size, changed, facts.st_ino, altered)
            newest = max(newest, changed, altered)
        text = hashlib.blake2b(_packer(len(names)).pack(*found), digest_size=16).hexdigest()
        return Key(text=text, newest_ns=newest)


@functools.cache
def _packer(files: int) -> struct.Struct:
    return struct.Struct("<" + "QqQq" * files)
