"""One sweep as one tar file: how it is written, what its list says, and what is refused in one of somebody else's making.

Who may still write into the sweep, and where files go, is hpc.archive's business. Members are `SWEEP/...` in the order of their names,
with nobody's name and one mode; the last one, archive.json, lists them all with size and SHA-256, so that an archive that breaks off has no
list. One invariant: nothing is read out of an archive whose members are not exactly those of its list, and no byte that does not agree
with it.
"""

import contextlib
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from hpc import tree_copy
from seresnet.durable import canonical_json, parse_json
from seresnet.errors import ToolkitError
from seresnet.record_types import misfits

SCHEMA = 1
LIST = "archive.json"

#: Chooses what goes in or comes out, by its way below the sweep's folder and whether it is a folder.
Choice = Callable[[PurePosixPath, bool], bool]

_PIECE = 1 << 20
#: A sweep of 10,000 runs has some 100,000 files; names of sweeps, runs and checkpoints make up 200 letters.
_MOST_MEMBERS, _LONGEST_NAME, _DEEPEST = 5_000_000, 1024, 32
#: Of the headers that hold long names; tarfile reads them into memory whatever size they claim.
_LONGEST_EXTRA = 64 * 1024
_EXTRA_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_SHOWN = 10


class ArchiveError(ToolkitError):
    """A tar file that is damaged, cut off, or not an archive of a sweep."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the list says of one member."""

    kind: str  # file, folder or link
    size: int = 0
    sha256: str = ""
    mtime_ns: int = 0  # tar's own headers have whole seconds
    target: str = ""  # of a link


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """archive.json. Ways are below the sweep's folder, "" is the folder itself."""

    sweep: str
    records_only: bool
    entries: Mapping[str, Entry]

    @property
    def files(self) -> int:
        return sum(entry.kind == "file" for entry in self.entries.values())

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(entry.size for entry in self.entries.values())

    def to_bytes(self) -> bytes:
        entries = {way: {key: value for key, value in asdict(entry).items() if value} for way, entry in self.entries.items()}
        head = {"schema": SCHEMA, "sweep": self.sweep, "records_only": self.records_only}
        return (canonical_json({**head, "entries": entries}) + "\n").encode()

    @classmethod
    def of(cls, payload: bytes) -> "Manifest":
        """Raises ValueError for what is no list of this version."""
        value = parse_json(payload)
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise ValueError(f"it is of schema {value.get('schema') if isinstance(value, dict) else None!r}, this version reads {SCHEMA}")
        sweep, entries, records_only = (value.get(key) for key in ("sweep", "entries", "records_only"))
        if not isinstance(sweep, str) or not isinstance(entries, dict) or type(records_only) is not bool:
            raise ValueError("sweep, entries or records_only is not what it should be")
        return cls(sweep=sweep, records_only=records_only, entries={way: _entry(way, item) for way, item in entries.items()})


def _entry(way: str, value: Any) -> Entry:
    if not isinstance(value, dict) or not value.keys() <= {key.name for key in fields(Entry)} or "kind" not in value:
        raise ValueError(f"what it says of {way!r} is not an entry")
    entry = Entry(**value)
    if misfits(entry) or entry.kind not in ("file", "folder", "link"):
        raise ValueError(f"what it says of {way!r} is not an entry")
    return entry


# --- writing ---


def write(source: Path, file: BinaryIO, name: str, *, records_only: bool, choose: Choice) -> Manifest:
    """Write the sweep as an archive that calls it `name`. Raises OSError, and ArchiveError for what an archive cannot hold."""
    entries: dict[str, Entry] = {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        for path, facts in tree_copy.walk(source):
            way = PurePosixPath(*path.relative_to(source).parts)
            # Locks are no content: nobody holds them where the archive is read.
            if path.suffix == ".lock" or not choose(way, stat.S_ISDIR(facts.st_mode)):
                continue
            key = "" if path == source else way.as_posix()
            entries[key] = _add(tar, source, path, facts, f"{name}/{key}".rstrip("/"))
        manifest = Manifest(sweep=name, records_only=records_only, entries=entries)
        payload = manifest.to_bytes()
        tar.addfile(_info(LIST, tarfile.REGTYPE, size=len(payload)), io.BytesIO(payload))
    return manifest


def _add(tar: tarfile.TarFile, source: Path, path: Path, facts: os.stat_result, name: str) -> Entry:
    _check_name(path, name)
    when = facts.st_mtime_ns
    if stat.S_ISDIR(facts.st_mode):
        tar.addfile(_info(name, tarfile.DIRTYPE, when))
        return Entry(kind="folder", mtime_ns=when)
    if stat.S_ISLNK(facts.st_mode):
        info = _info(name, tarfile.SYMTYPE, when)
        info.linkname = _inner_target(source, path)
        tar.addfile(info)
        return Entry(kind="link", mtime_ns=when, target=info.linkname)
    with open(path, "rb") as opened:
        hashing = _Hashing(opened)
        tar.addfile(_info(name, tarfile.REGTYPE, when, facts.st_size), hashing)
    return Entry(kind="file", size=facts.st_size, sha256=hashing.digest.hexdigest(), mtime_ns=when)


def _info(name: str, kind: bytes, mtime_ns: int = 0, size: int = 0) -> tarfile.TarInfo:
    """A header that says nothing of users, groups and rights."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, size, max(0, mtime_ns // 10**9)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o777 if kind == tarfile.SYMTYPE else 0o644
    return info


class _Hashing:
    """A file that remembers the digest of what was read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self.digest.update(piece)
        return piece


def _check_name(path: Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ArchiveError(f"{path}: its name is no UTF-8, which an archive cannot hold. Rename or remove it.") from error
    if (problem := _name_problem(name)) is not None:
        raise ArchiveError(f"{path}: {problem}, which an archive cannot hold. Rename or remove it.")


def _inner_target(source: Path, path: Path) -> str:
    """Where a link leads, relative; raises ArchiveError if that is out of the sweep: the archive would not have it."""
    leads_to = path.readlink()
    inner = Path(os.path.normpath(path.parent / leads_to))
    if not inner.is_relative_to(source):
        raise ArchiveError(f"{path}: is a link out of the sweep, to {leads_to}. Put what it names in its place, or remove it.")
    return os.path.relpath(inner, path.parent)


# --- reading ---


class Archive:
    """An open archive whose members are those of its list. See `reading`."""

    def __init__(self, path: Path, tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._tar, self._members = tar, members

    def damaged(self) -> list[str]:
        """Every file whose bytes are not those of the list, by its way. Reads all of them."""
        return [way for way, entry in self.manifest.entries.items() if entry.kind == "file" and self._pour(way, None) != entry.sha256]

    def extract(self, target: Path, choose: Choice, *, after: Callable[[BinaryIO], None] | None = None) -> None:
        """Put what is chosen into a new folder, each file checked on its way; after: called with each written file.

        Raises ArchiveError for the first file that is damaged, and OSError.
        """
        target.mkdir()
        folders: list[tuple[Path, int]] = []
        for way, entry in self.manifest.entries.items():
            if not choose(PurePosixPath(way), entry.kind == "folder"):
                continue
            new = target / way
            if entry.kind == "folder":
                new.mkdir(parents=True, exist_ok=True)
                folders.append((new, entry.mtime_ns))
                continue
            new.parent.mkdir(parents=True, exist_ok=True)
            if entry.kind == "link":
                new.symlink_to(entry.target)
                continue
            with open(new, "xb") as file:
                if self._pour(way, file) != entry.sha256:
                    raise ArchiveError(f"{self.path}: member {self.manifest.sweep}/{way} is damaged. {_ANOTHER}")
                if after is not None:
                    after(file)
            os.utime(new, ns=(entry.mtime_ns, entry.mtime_ns))
        for folder, when in reversed(folders):  # last: what is put into a folder changes its time
            os.utime(folder, ns=(when, when))

    def _pour(self, way: str, to: BinaryIO | None) -> str:
        member, digest = self._tar.extractfile(self._members[way]), hashlib.sha256()
        assert member is not None, "a file of the list is a file"
        while piece := member.read(_PIECE):
            digest.update(piece)
            if to is not None:
                to.write(piece)
        return digest.hexdigest()


_ANOTHER = "Take another copy of the archive."


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Archive]:
    """Open an archive; raises ArchiveError unless its members are exactly those of its list. Contents are checked as they are read."""
    try:
        with open(path, "rb") as file:
            yield _opened(path, file)
    except FileNotFoundError as error:
        raise ArchiveError(f"{path}: there is no such file.") from error
    except (tarfile.TarError, EOFError, RecursionError) as error:
        raise ArchiveError(f"{path}: cannot be read as an archive: {error}. {_ANOTHER}") from error


def _opened(path: Path, file: BinaryIO) -> Archive:
    try:
        # "r:" and not "r": a compressed file may unpack to anything.
        tar = tarfile.open(fileobj=file, mode="r:", tarinfo=_Careful, encoding="utf-8", errors="strict")  # noqa: SIM115 - the file is closed
        members, last = _members(path, tar)
    except (tarfile.TarError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{path}: not an archive of hpc.archive, or damaged: {error}. {_ANOTHER}") from error
    if last is None:
        raise ArchiveError(f"{path}: has no {LIST} at its end: it is cut off, damaged, or was not made by hpc.archive. {_ANOTHER}")
    manifest = _read_list(path, tar.extractfile(last))
    _compare(path, manifest, members)
    inside = {name.partition("/")[2]: info for name, info in members.items()}
    return Archive(path, tar, inside, manifest)


class _Careful(tarfile.TarInfo):
    """A header that claims no more than a name of sane length for itself."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Careful":
        info = super().frombuf(buf, encoding, errors)
        if info.type in _EXTRA_TYPES and info.size > _LONGEST_EXTRA:
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info


def _members(path: Path, tar: tarfile.TarFile) -> tuple[dict[str, tarfile.TarInfo], tarfile.TarInfo | None]:
    """Every member but the list, by name, and the list, if it is the last. Raises ArchiveError for what could do harm."""
    found: dict[str, tarfile.TarInfo] = {}
    links: set[str] = set()
    last: tarfile.TarInfo | None = None
    for info in tar:
        if len(found) >= _MOST_MEMBERS:
            raise ArchiveError(f"{path}: holds more than {_MOST_MEMBERS:,} members, which no sweep has. It is not read.")
        if problem := _problem(info) or ("follows the list" if last else None) or ("occurs twice" if info.name in found else None):
            raise ArchiveError(f"{path}: member {info.name[:200]!r} {problem}. No hpc.archive makes that: it is not read.")
        if below := next((str(above) for above in PurePosixPath(info.name).parents if str(above) in links), None):
            raise ArchiveError(f"{path}: member {info.name!r} lies below the link {below}. No hpc.archive makes that: it is not read.")
        if info.issym():
            links.add(info.name)
        if info.name == LIST:
            last = info
        else:
            found[info.name] = info
    return found, last


def _problem(info: tarfile.TarInfo) -> str | None:
    """Why a member is no part of a sweep."""
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE) or info.sparse is not None:
        return "is neither a plain file, nor a folder, nor a link within the sweep"
    if (problem := _name_problem(info.name)) is not None:
        return problem
    if info.issym():
        leads_to = os.path.normpath(f"{PurePosixPath(info.name).parent}/{info.linkname}")
        is_within = PurePosixPath(leads_to).parts[:1] == PurePosixPath(info.name).parts[:1]
        if info.linkname.startswith("/") or not is_within:
            return f"is a link out of the sweep, to {info.linkname!r}"
    return None


def _name_problem(name: str) -> str | None:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name:
        return "has a name that leads elsewhere"
    if len(name) > _LONGEST_NAME or len(parts) > _DEEPEST:
        return f"has a name of {len(name)} letters in {len(parts)} folders"
    return None


def _read_list(path: Path, file: IO[bytes] | None) -> Manifest:
    try:
        assert file is not None, "the list is a file"
        return Manifest.of(file.read())
    except (ValueError, TypeError) as error:
        raise ArchiveError(f"{path}: its {LIST} cannot be read: {error}. {_ANOTHER}") from error


def _compare(path: Path, manifest: Manifest, members: Mapping[str, tarfile.TarInfo]) -> None:
    """Raise ArchiveError unless the members are what the list says."""
    listed = {f"{manifest.sweep}/{way}".rstrip("/"): entry for way, entry in manifest.entries.items()}
    if "/" in manifest.sweep or "" not in manifest.entries or manifest.entries[""].kind != "folder":
        raise ArchiveError(f"{path}: its {LIST} does not say which sweep it holds. {_ANOTHER}")
    wrong = [f"{name} is not in it" for name in listed.keys() - members.keys()]
    wrong += [f"{name} is not in its list" for name in members.keys() - listed.keys()]
    wrong += [f"{name} is not what its list says" for name in listed.keys() & members.keys() if not _agrees(listed[name], members[name])]
    if wrong:
        more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ArchiveError(f"{path}: is damaged: {', '.join(sorted(wrong)[:_SHOWN])}{more}. {_ANOTHER}")


def _agrees(entry: Entry, info: tarfile.TarInfo) -> bool:
    kind = "folder" if info.isdir() else "link" if info.issym() else "file"
    if kind == "link":
        return (entry.kind, entry.target) == (kind, info.linkname)
    return (entry.kind, entry.size) == (kind, info.size)
