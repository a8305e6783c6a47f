"""Folders, tar and zip archives as one thing: a list of regular files, and their bytes in stored order.

Nothing is extracted, so no member can write anywhere; links, devices and names with `..` are left out, and sizes are checked before
anything is read. What the files mean is left to others. One invariant: a truncated or damaged archive is an error in names(),
before the first image is decoded.
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from seresnet.errors import DataError

#: Limits against archives that are small and unpack to fill the machine.
MAX_FILE_BYTES = 1 << 28  # one image or batch file
MAX_TOTAL_BYTES = 1 << 35
MAX_FILES = 20_000_000

Load = Callable[[], bytes]
#: Told (stage, done, total) now and then; total 0 = not known.
Report = Callable[[str, int, int], None]


class FileTree(Protocol):
    """A folder or an archive."""

    @property
    def path(self) -> Path: ...

    def names(self, report: Report) -> list[str]:
        """Relative names of all regular files, `/` between parts. Raises DataError if the archive is damaged."""

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, Load]]:
        """The wanted files in stored order. A folder's loads may run in any thread and at any time; they raise OSError."""


def open_tree(path: Path) -> FileTree:
    """Tell by the first bytes what path is. Raises DataError for what is missing or is neither folder nor archive."""
    if path.is_dir():
        return FolderTree(path=path)
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder. Correct data.path.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Correct data.path or its permissions.") from error
    if head.startswith(b"PK"):
        return ZipTree(path=path)
    for magic, opener in _OPENERS.items():
        if head.startswith(magic):
            return TarTree(path=path, opener=opener)
    if head[257:262] == b"ustar":
        return TarTree(path=path, opener=open)
    raise DataError(
        f"{path}: neither a folder nor a tar, tar.gz, tar.xz or zip archive: it {_head_of(head)}. "
        "Give the folder that holds train/ and test/, or an archive of it."
    )


_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open, b"BZh": bz2.open}


def _head_of(head: bytes) -> str:
    return f"starts with {head[:8]!r}" if head else "is empty"


@dataclass(frozen=True, kw_only=True)
class FolderTree:
    """A folder on disk. It belongs to the user, so links in it are followed, each folder once."""

    path: Path

    def names(self, report: Report) -> list[str]:
        result: list[str] = []
        try:
            for name in self._walk("", set()):
                result.append(name)
                _check_totals(self.path, len(result), 0)
                if len(result) % 1000 == 0:
                    report("list files", len(result), 0)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}. Correct its permissions.") from error
        return result

    def _walk(self, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
        facts = (self.path / prefix).stat()
        if (facts.st_dev, facts.st_ino) in seen:
            return  # a link back to a folder above or beside
        seen.add((facts.st_dev, facts.st_ino))
        with os.scandir(self.path / prefix) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from self._walk(f"{prefix}{entry.name}/", seen)
            elif entry.is_file():
                yield prefix + entry.name

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, Load]]:
        return ((name, partial(_read_file, self.path / name)) for name in wanted)


def _read_file(path: Path) -> bytes:
    with open(path, "rb") as file:
        _check_size(path, path.name, os.fstat(file.fileno()).st_size)
        return file.read()


@dataclass(frozen=True, kw_only=True)
class TarTree:
    """A tar file, compressed by what opener undoes. Read from front to back, once for the names and once for the bytes."""

    path: Path
    opener: Callable[..., Any]

    def names(self, report: Report) -> list[str]:
        result: list[str] = []
        total = self.path.stat().st_size
        with _damage(self.path), open(self.path, "rb") as raw, self.opener(raw) if self.opener is not open else raw as stream:
            bounded = _Bounded(stream)
            with tarfile.open(fileobj=bounded, mode="r:") as tar:  # type: ignore[call-overload]
                for member in _members(self.path, tar):
                    result.append(member.name.removeprefix("./"))
                    if len(result) % 1000 == 0:
                        report("list archive", raw.tell(), total)
            _check_end(bounded)
        return result

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, Load]]:
        with _damage(self.path), self.opener(self.path, "rb") as stream:
            tar = tarfile.open(fileobj=_Bounded(stream), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
            for member in _members(self.path, tar):
                name = member.name.removeprefix("./")
                if name in wanted:
                    _check_size(self.path, name, member.size)
                    content = tar.extractfile(member)
                    assert content is not None, "regular members have content"
                    yield name, partial(bytes, content.read())


class _Bounded:
    """A stream that remembers the last block, and no read of which is larger than a file may be: a header cannot ask for all memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.last = b""
        self._stream = stream
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_FILE_BYTES:
            raise tarfile.ReadError(f"a header asks for {size} bytes")
        self.last = self._stream.read(size)
        return self.last


def _members(path: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    count = total = 0
    while (member := tar.next()) is not None:
        # The list that tarfile keeps for going back would hold 60 MB for every 100,000 members.
        tar.members.clear()  # type: ignore[attr-defined]
        if member.size < 0:
            raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes")
        count, total = count + 1, total + member.size
        _check_totals(path, count, total)
        if member.isreg() and _is_plain(member.name):
            yield member


def _check_end(stream: _Bounded) -> None:
    """tarfile takes a cut between two members, and garbage after the first, for the end. A real end is a block of zeros.

    Then the stream is read out, since compressed files have their checksum last.
    """
    if len(stream.last) < tarfile.BLOCKSIZE or stream.last.strip(b"\0"):
        raise tarfile.ReadError("unexpected end of data")
    rest = 0
    while piece := stream.read(1 << 16):
        rest += len(piece)
        if rest > MAX_FILE_BYTES:
            raise tarfile.ReadError("more data after the archive's end than an archive has")


@dataclass(frozen=True, kw_only=True)
class ZipTree:
    """A zip file."""

    path: Path

    def names(self, report: Report) -> list[str]:
        with _damage(self.path), zipfile.ZipFile(self.path) as archive:
            _check_totals(self.path, len(archive.filelist), sum(info.file_size for info in archive.filelist))
            return [info.filename.removeprefix("./") for info in archive.filelist if _is_regular(info)]

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, Load]]:
        with _damage(self.path), zipfile.ZipFile(self.path) as archive:
            for info in archive.filelist:
                name = info.filename.removeprefix("./")
                if _is_regular(info) and name in wanted:
                    _check_size(self.path, name, info.file_size)
                    yield name, partial(bytes, _read_member(self.path, archive, info))


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """At most the declared size plus one byte. zipfile bounds that for deflate only: bz2 and lzma unfold whole, so they are refused."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {info.filename} is compressed in a way whose size cannot be bounded. Pack it again with plain zip.")
    with archive.open(info) as member:
        payload = member.read(info.file_size + 1)
    if len(payload) != info.file_size:
        raise DataError(f"{path}: {info.filename} does not have the {info.file_size} bytes that the archive says. Pack it again.")
    return payload


def _is_regular(info: zipfile.ZipInfo) -> bool:
    mode = info.external_attr >> 16
    return not info.is_dir() and stat.S_IFMT(mode) in (0, stat.S_IFREG) and _is_plain(info.filename)


def _is_plain(name: str) -> bool:
    """No way out and nothing hidden: `._x` and `__MACOSX` are what a Mac adds to archives."""
    parts = name.removeprefix("./").split("/")
    return all(part and not part.startswith(".") and part != "__MACOSX" for part in parts)


def _check_size(path: Path, name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{path}: {name} has {size} bytes, over the limit of {MAX_FILE_BYTES} for one file. Leave it out.")


def _check_totals(path: Path, files: int, total: int) -> None:
    if files > MAX_FILES or total > MAX_TOTAL_BYTES:
        raise DataError(
            f"{path}: holds over {MAX_FILES} files or {MAX_TOTAL_BYTES} bytes: not a data set that fits into memory. Give a smaller one."
        )


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what the readers raise for damaged archives into one error that names the file."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: the archive is truncated or damaged: {error}. Copy or download it again.") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile: encrypted, or compressed in a way it does not know
        raise DataError(f"{path}: the archive cannot be read: {error}. Pack it again as tar.gz.") from error
