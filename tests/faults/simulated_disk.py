"""A disk in memory that forgets what was not synced: the other side of seresnet.durable.Files for tests of power loss.

Weaker than any real file system on purpose: unsynced writes and changes of names survive a crash in any combination, each on its own, and
a name may come back without its content. One invariant: what was synced is never lost, unless damage() is called.
"""

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from seresnet.durable import Files

#: What a crash makes of an unsynced write. Of a change of names: the first two.
KEPT, DROPPED, GARBLED, TORN = range(4)
_WRITE_FATES, _NAME_FATES = 4, 2


@dataclass
class _File:
    synced: bytes = b""
    writes: list[tuple[int, bytes]] = field(default_factory=list)  # (offset, data) since the last fsync
    links: int = 1

    def content(self) -> bytes:
        return _patched(self.synced, self.writes)


@dataclass
class _Folder:
    names: dict[str, "_File | _Folder"] = field(default_factory=dict)
    synced: dict[str, "_File | _Folder"] = field(default_factory=dict)
    changes: list[dict[str, "_File | _Folder | None"]] = field(default_factory=list)  # each atomic; None: the name is gone

    def change(self, **names: "_File | _Folder | None") -> None:
        _apply(self.names, names)
        self.changes.append(names)


class _Handle:
    """An open file with a buffer in user space: what is not flushed is in no cache, let alone on the disk."""

    def __init__(self, disk: "SimulatedDisk", file: _File) -> None:
        self.file, self._disk, self._buffer, self._place = file, disk, b"", len(file.content())

    def write(self, data: bytes) -> int:
        self._buffer += data
        return len(data)

    def flush(self) -> None:
        if self._buffer:
            self._disk.called("flush")
            self.file.writes.append((len(self.file.content()), self._buffer))  # at the end: all files are appended to
            self._buffer = b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.flush()
        self._place = offset + (len(self.file.content()) if whence == os.SEEK_END else 0)
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = None if size < 0 else self._place + size
        return self.file.content()[self._place : end]

    def __enter__(self) -> "_Handle":
        return self

    def close(self) -> None:
        self.flush()

    def __exit__(self, *_: object) -> None:
        self.close()


class SimulatedDisk(Files):
    """Files in memory. before_call, if set, runs before each call that changes or syncs something: a moment to crash at."""

    def __init__(self, before_call: Callable[[str], None] | None = None) -> None:
        self._root = _Folder()
        self.before_call = before_call
        self.has_links = True
        self.errors: list[tuple[str, int]] = []  # (name of the call, errno) of errors to come
        self.calls = 0

    def called(self, name: str) -> None:
        """Count one call, let the test have its moment, and raise the error that waits for a call of this name."""
        self.calls += 1
        if self.before_call is not None:
            self.before_call(name)
        if self.errors and self.errors[0][0] == name:
            number = self.errors.pop(0)[1]
            raise OSError(number, os.strerror(number))

    # What Files promises.

    def create(self, path: Path) -> BinaryIO:
        self.called("create")
        folder = self._folder(path.parent)
        if path.name in folder.names:
            raise FileExistsError(errno.EEXIST, "name is taken", str(path))
        return self._open(folder, path.name, _File())

    def append(self, path: Path) -> BinaryIO:
        self.called("append")
        folder = self._folder(path.parent)
        known = folder.names.get(path.name)
        if isinstance(known, _File):
            return _Handle(self, known)  # type: ignore[return-value]
        return self._open(folder, path.name, _File())

    def sync(self, file: BinaryIO) -> None:
        self.called("sync")
        handle: Any = file
        handle.file.synced, handle.file.writes = handle.file.content(), []

    def sync_folder(self, folder: Path) -> None:
        self.called("sync_folder")
        found = self._folder(folder)
        found.synced, found.changes = dict(found.names), []

    def rename(self, source: Path, target: Path) -> None:
        self.called("rename")
        file, old, new = self._entry(source), self._folder(source.parent), self._folder(target.parent)
        replaced = new.names.get(target.name)
        if isinstance(replaced, _File):
            replaced.links -= 1
        if old is new:
            old.change(**{source.name: None, target.name: file})
        else:  # two folders, two changes: nothing says that a crash keeps both
            new.change(**{target.name: file})
            old.change(**{source.name: None})

    def link(self, source: Path, target: Path) -> None:
        self.called("link")
        if not self.has_links:
            raise OSError(errno.EPERM, "no hard links here")
        file, folder = self._entry(source), self._folder(target.parent)
        if target.name in folder.names:
            raise FileExistsError(errno.EEXIST, "name is taken", str(target))
        assert isinstance(file, _File)
        file.links += 1
        folder.change(**{target.name: file})

    def link_count(self, path: Path) -> int:
        file = self._entry(path)
        return file.links if isinstance(file, _File) else 1

    def unlink(self, path: Path) -> None:
        self.called("unlink")
        file = self._entry(path)
        assert isinstance(file, _File)
        file.links -= 1
        self._folder(path.parent).change(**{path.name: None})

    def make_folder(self, path: Path) -> None:
        for folder in [*reversed(path.parents), path][1:]:
            if folder.name not in self._folder(folder.parent).names:
                self.called("make_folder")
                self._folder(folder.parent).change(**{folder.name: _Folder()})

    def is_folder(self, path: Path) -> bool:
        try:
            self._folder(path)
        except OSError:
            return False
        return True

    def names(self, folder: Path) -> list[str]:
        try:
            return sorted(self._folder(folder).names)
        except FileNotFoundError:
            return []

    def read(self, path: Path) -> bytes:
        file = self._entry(path)
        if not isinstance(file, _File):
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        return file.content()

    # What only a test can do.

    def fates(self) -> list[int]:
        """For each thing that a crash now may lose, the number of fates it can have."""
        return [_WRITE_FATES if isinstance(thing, _File) else _NAME_FATES for thing, _ in self._unsynced()]

    def crash(self, fates: Sequence[int], draw: random.Random) -> "SimulatedDisk":
        """The disk after a power loss with these fates, all of it synced. This one stays as it is."""
        after = SimulatedDisk()
        fate_of = {(id(thing), index): fate for (thing, index), fate in zip(self._unsynced(), fates, strict=True)}
        after._root = _survivor(self._root, fate_of, draw, {})
        after.has_links = self.has_links
        return after

    def damage(self, path: Path, content: bytes) -> None:
        """Other bytes than were written, as a dying disk or a stray hand would leave them."""
        file = self._entry(path)
        assert isinstance(file, _File)
        file.synced, file.writes = content, []

    def copy(self) -> "SimulatedDisk":
        """The same names and bytes, all synced."""
        return self.crash([KEPT] * len(self.fates()), random.Random(0))

    def contents(self) -> dict[str, bytes]:
        """Every file by its path."""
        return dict(_walk(self._root, ""))

    def _open(self, folder: _Folder, name: str, file: _File) -> BinaryIO:
        folder.change(**{name: file})
        return _Handle(self, file)  # type: ignore[return-value]

    def _entry(self, path: Path) -> _File | _Folder:
        try:
            return self._folder(path.parent).names[path.name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None

    def _folder(self, path: Path) -> _Folder:
        found = self._root
        for part in path.parts[1:]:
            entry = found.names.get(part)
            if not isinstance(entry, _Folder):
                raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
            found = entry
        return found

    def _unsynced(self) -> list[tuple[_File | _Folder, int]]:
        """(what, index of its write or change), every file once, in a fixed order: also files that have no name any more."""
        found: list[tuple[_File | _Folder, int]] = []
        seen: set[int] = set()
        waiting: list[_File | _Folder] = [self._root]
        while waiting:
            thing = waiting.pop()
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            found += [(thing, index) for index in range(len(thing.writes if isinstance(thing, _File) else thing.changes))]
            if isinstance(thing, _Folder):
                changed = [entry for change in thing.changes for entry in change.values() if entry is not None]
                waiting += [*thing.synced.values(), *changed]
        return found


def subsets(fates: Sequence[int], cap: int, draw: random.Random) -> Iterator[tuple[int, ...]]:
    """All combinations of fates, or cap of them where there are more: nothing lost, all lost, one alone lost or kept, random ones."""
    total = 1
    for count in fates:
        total *= count
    if total <= cap:
        yield from itertools.product(*(range(count) for count in fates))
        return
    places = range(len(fates))
    chosen = {tuple([KEPT] * len(fates)), tuple([DROPPED] * len(fates))}
    for index, count in enumerate(fates):
        for fate in range(count):
            chosen |= {tuple(fate if place == index else rest for place in places) for rest in (KEPT, DROPPED)}
    while len(chosen) < cap:
        chosen.add(tuple(draw.randrange(count) for count in fates))
    yield from draw.sample(sorted(chosen), min(cap, len(chosen)))


def _apply(names: dict[str, Any], change: dict[str, Any]) -> None:
    for name, entry in change.items():
        if entry is None:
            names.pop(name, None)
        else:
            names[name] = entry


def _patched(content: bytes, writes: Sequence[tuple[int, bytes]]) -> bytes:
    for offset, data in writes:
        # A file whose size came before its data reads as zeros.
        content = content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]
    return content


def _survivor(folder: _Folder, fate_of: dict[tuple[int, int], int], draw: random.Random, done: dict[int, Any]) -> _Folder:
    names: dict[str, Any] = dict(folder.synced)
    for index, change in enumerate(folder.changes):
        if fate_of[id(folder), index] == KEPT:
            _apply(names, change)
    result = _Folder()
    for name, entry in names.items():
        if id(entry) not in done:
            done[id(entry)] = (
                _survivor(entry, fate_of, draw, done)
                if isinstance(entry, _Folder)
                else _File(synced=_remains(entry, fate_of, draw), links=0)
            )
        survivor = done[id(entry)]
        if isinstance(survivor, _File):
            survivor.links += 1
        result.names[name] = survivor
    result.synced = dict(result.names)
    return result


def _remains(file: _File, fate_of: dict[tuple[int, int], int], draw: random.Random) -> bytes:
    writes = []
    for index, (offset, data) in enumerate(file.writes):
        fate = fate_of[id(file), index]
        if fate == KEPT:
            writes.append((offset, data))
        elif fate == GARBLED:
            writes.append((offset, garbled(data, draw)))
        elif fate == TORN:
            cut = draw.randrange(len(data))
            writes.append((offset, data[:cut] + bytes(len(data) - cut)))
    return _patched(file.synced, writes)


def garbled(data: bytes, draw: random.Random) -> bytes:
    """The same length, some bytes others."""
    changed = bytearray(data)
    for _ in range(1 + draw.randrange(3)):
        changed[draw.randrange(len(changed))] ^= 1 + draw.randrange(255)
    return bytes(changed)


def _walk(folder: _Folder, path: str) -> Iterator[tuple[str, bytes]]:
    for name, entry in sorted(folder.names.items()):
        if isinstance(entry, _Folder):
            yield from _walk(entry, f"{path}/{name}")
        else:
            yield f"{path}/{name}", entry.content()
