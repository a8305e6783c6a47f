"""A folder copied to another file system so that a power loss right after loses nothing, and a bad disk is noticed.

Modes and times are kept: some records are judged by their age. One invariant: copy() returns only for a copy whose every file was read
back with the size and the SHA-256 of its source, and of a source that nobody changed meanwhile.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from seresnet.durable import fsync_folder
from seresnet.errors import SubmissionError

_PIECE = 1 << 20


def copy(source: Path, target: Path) -> str:
    """Copy the folder to a name that is free; what the source looks like, see looks_of. Raises OSError, and SubmissionError for what
    cannot be moved, or came out different.
    """
    before = looks_of(source)
    _refuse_too_large(source, target)
    folders = []
    for path, facts in walk(source):
        new = target / path.relative_to(source)
        if stat.S_ISDIR(facts.st_mode):
            new.mkdir()
            folders.append((path, new))
        elif stat.S_ISLNK(facts.st_mode):
            new.symlink_to(_link_target(path, source))
        else:
            _copy_file(path, new)
    for path, new in reversed(folders):
        shutil.copystat(path, new)  # last: what is put into a folder changes its time
        fsync_folder(new)
    if looks_of(source) != before:
        raise SubmissionError(f"{source}: was changed while it was copied. Nothing was moved. Find out by whom, and try again.")
    return before


def looks_of(source: Path) -> str:
    """A digest of names, kinds, sizes and times of change: another one means that somebody wrote. Locks are no content."""
    digest = hashlib.sha256()
    for path, facts in walk(source):
        is_lock = path.suffix == ".lock"
        seen = (facts.st_mode, 0, 0) if is_lock or stat.S_ISDIR(facts.st_mode) else (facts.st_mode, facts.st_size, facts.st_mtime_ns)
        digest.update(f"{os.fsencode(path.relative_to(source))!r} {seen}\n".encode())
    return digest.hexdigest()


def links_out(source: Path, folder: Path | None = None) -> Iterator[Path]:
    """Links that name by a relative way what lies outside of the folder: elsewhere they would lead to something else, or nowhere."""
    with os.scandir(folder or source) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.is_symlink():
                leads_to = Path(os.path.normpath(path.parent / path.readlink()))
                if not path.readlink().is_absolute() and not leads_to.is_relative_to(source):
                    yield path
            elif entry.is_dir(follow_symlinks=False):
                yield from links_out(source, path)


def walk(source: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The folder and everything below it, folders before what is in them. Raises SubmissionError for sockets and the like."""
    facts = source.lstat()
    if not (stat.S_ISDIR(facts.st_mode) or stat.S_ISLNK(facts.st_mode) or stat.S_ISREG(facts.st_mode)):
        raise SubmissionError(f"{source}: is neither a file nor a folder nor a link. Remove it.")
    yield source, facts
    if stat.S_ISDIR(facts.st_mode):
        for path in sorted(source.iterdir()):
            yield from walk(path)


def _refuse_too_large(source: Path, target: Path) -> None:
    needed = sum(facts.st_size for _, facts in walk(source) if stat.S_ISREG(facts.st_mode))
    room = shutil.disk_usage(target.parent)
    free = room.free
    if not room.total:
        raise SubmissionError(f"{target.parent}: belongs to a file system that holds no files of yours. Give another. Nothing was moved.")
    if needed > free:
        raise SubmissionError(f"{target.parent}: has {free / 1e9:.3f} GB free, the sweep has {needed / 1e9:.3f} GB. Nothing was moved.")


def _link_target(path: Path, source: Path) -> str:
    """As it is, but an absolute one that leads back into the sweep becomes relative: it must not name the old place."""
    leads_to = os.readlink(path)  # noqa: PTH115 - the text, not a Path
    if Path(leads_to).is_absolute() and Path(leads_to).is_relative_to(source):
        return os.path.relpath(leads_to, path.parent)
    return leads_to


def _copy_file(path: Path, new: Path) -> None:
    with open(path, "rb") as old, open(new, "xb") as file:
        wanted = _pour(old, file)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or the check below reads our own memory
    shutil.copystat(path, new)
    with open(new, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
    if found != wanted:
        raise SubmissionError(
            f"{new}: reads back as {found[1]} bytes of digest {found[0][:16]}, not {wanted[1]} of {wanted[0][:16]}: bad disk."
        )


def _pour(old: BinaryIO, file: BinaryIO) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while piece := old.read(_PIECE):
        digest.update(piece)
        size += file.write(piece)
    return digest.hexdigest(), size
