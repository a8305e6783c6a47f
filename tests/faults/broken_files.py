"""A real disk on which one call fails, or every call from one on: open, read, write, flush, fsync, close, rename, link, unlink, mkdir.

Counting goes over all calls of one object. One invariant: what a failing call should have done is not done, except that write() takes half
and close() lets the file go.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from seresnet.durable import DISK, Files

_T = TypeVar("_T")


class BrokenFiles(Files):
    """Fails at the n-th call; sticky: and at every later one. reads: whether calls that only look count, too."""

    def __init__(self, number: int, at: int, sticky: bool = False, *, reads: bool = True, disk: Files = DISK) -> None:
        self.number, self.at, self.sticky, self.reads, self.disk = number, at, sticky, reads, disk
        self.calls = 0
        self.failed: list[str] = []

    def mend(self) -> None:
        """No more errors."""
        self.at, self.sticky = 0, False

    def call(self, name: str, act: Callable[[], _T]) -> _T:
        self.calls += 1
        if self.calls == self.at or (self.sticky and self.calls > self.at):
            self.failed.append(name)
            raise OSError(self.number, os.strerror(self.number))
        return act()

    def look(self, name: str, act: Callable[[], _T]) -> _T:
        return self.call(name, act) if self.reads else act()

    def create(self, path: Path) -> BinaryIO:
        return self.call("create", lambda: _Handle(self, self.disk.create(path)))  # type: ignore[arg-type, return-value]

    def append(self, path: Path) -> BinaryIO:
        return self.call("append", lambda: _Handle(self, self.disk.append(path)))  # type: ignore[arg-type, return-value]

    def sync(self, file: Any) -> None:
        self.call("fsync", lambda: self.disk.sync(file.file))

    def sync_folder(self, folder: Path) -> None:
        self.call("fsync of the folder", lambda: self.disk.sync_folder(folder))

    def rename(self, source: Path, target: Path) -> None:
        self.call("rename", lambda: self.disk.rename(source, target))

    def link(self, source: Path, target: Path) -> None:
        self.call("link", lambda: self.disk.link(source, target))

    def link_count(self, path: Path) -> int:
        return self.look("stat", lambda: self.disk.link_count(path))

    def unlink(self, path: Path) -> None:
        self.call("unlink", lambda: self.disk.unlink(path))

    def make_folder(self, path: Path) -> None:
        self.call("mkdir", lambda: self.disk.make_folder(path))

    def names(self, folder: Path) -> list[str]:
        return self.look("listing", lambda: self.disk.names(folder))

    def read(self, path: Path) -> bytes:
        return self.look("read", lambda: self.disk.read(path))


class _Handle:
    """A file whose writing, flushing and closing can fail: a network file system tells of a full disk as late as close()."""

    def __init__(self, files: BrokenFiles, file: BinaryIO) -> None:
        self._files, self.file = files, file

    def write(self, data: bytes) -> int:
        try:
            return self._files.call("write", lambda: self.file.write(data))
        except OSError:
            # What a full disk does: it takes what fits.
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise

    def flush(self) -> None:
        self._files.call("flush", self.file.flush)

    def close(self) -> None:
        try:
            self._files.call("close", lambda: None)
        finally:
            self.file.close()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int = -1) -> bytes:
        return self.file.read(size)

    def __enter__(self) -> "_Handle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
