"""The code a sweep runs: copies of both packages under `code/0001`, which jobs enter before `python -m` looks for them, and of the
modules and scripts that its targets and program name, under `code/0001/user`.

A snapshot is whole or absent (it is renamed into place) and never changed. Taking one twice from the same files gives the same
number; editing the working copy does not reach what is queued.
"""

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import seresnet
from hpc.paths import next_number
from seresnet import own_code, provenance
from seresnet.durable import fsync_folder, parse_json, write_json_durably
from seresnet.errors import ConfigError, SubmissionError

CODE_SCHEMA = 1
PACKAGES = ("hpc", "seresnet")
MARK = own_code.MARK

#: Where the packages that run right now lie: a checkout, a site-packages folder or a snapshot.
ROOT = Path(seresnet.__file__).resolve().parent.parent


def snapshot_code(codes: Path, root: Path = ROOT, *, user: Path | None = None) -> str:
    """The number of the snapshot below codes that equals the packages in root; taken now if there is none yet.

    user: where somebody else's modules lie, whose sources come along as user/.
    """
    number, is_taken = peek(codes, root, user=user)
    if is_taken:
        return number
    codes.mkdir(parents=True, exist_ok=True)
    temp = codes / f".{number}.{secrets.token_hex(6)}.tmp"
    try:
        for package in PACKAGES:
            _copy(root / package, temp / package)
        if user is not None:
            _copy_files(user, temp / own_code.FOLDER)
        # The files may have been edited while they were copied: what counts is what the jobs will import.
        commit, is_dirty = provenance.commit_and_dirty(root)
        record = {"schema": CODE_SCHEMA, "digest": code_digest(temp, user=temp / own_code.FOLDER), "commit": commit, "dirty": is_dirty}
        write_json_durably(temp / MARK, {**record, "created": time.time()})
        os.rename(temp, codes / number)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    fsync_folder(codes)
    return number


def _copy(package: Path, to: Path) -> None:
    try:
        # The umask's modes, and not those of the checkout: colleagues read a sweep whose owner keeps a private copy of the code.
        shutil.copytree(package, to, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"), copy_function=shutil.copyfile)
        mode = to.parent.stat().st_mode & 0o7777
        for folder in (to, *(path for path in to.rglob("*") if path.is_dir())):
            folder.chmod(mode)
    except shutil.Error as error:
        # One entry a file, hundreds where the disk is full; the first says why.
        why = str(error.args[0][0][2]).partition(": '")[0]
        raise SubmissionError(f"{to.parent.parent}: the code cannot be copied here: {why}. Correct that, or say --runs-dir.") from error


def _copy_files(user: Path, to: Path) -> None:
    to.mkdir()
    for path in own_code.files(user):
        target = to / path.relative_to(user)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(target.stat().st_mode | path.stat().st_mode & 0o111)  # a program may be a script that is called by its name


def peek(codes: Path, root: Path = ROOT, *, user: Path | None = None) -> tuple[str, bool]:
    """The number that snapshot_code would return, and whether that snapshot exists already. Writes nothing."""
    digest = code_digest(root, user=user)
    for number, known in _digests(codes).items():
        if known == digest:
            return number, True
    return next_number([path.name for path in codes.iterdir()] if codes.is_dir() else []), False


def changes(old: Path, root: Path = ROOT, *, user: Path | None = None) -> tuple[str, ...]:
    """The files by which the packages in root differ from those in old: "changed hpc/a.py", "added ...", "removed ...", by name."""
    before, after = _digest_of_files(old), _digest_of_files(root, user)
    words = {
        name: "added" if name not in before else "removed" if name not in after else "changed" for name in before.keys() | after.keys()
    }
    return tuple(f"{words[name]} {name}" for name in sorted(words) if before.get(name) != after.get(name))


def code_digest(root: Path = ROOT, *, user: Path | None = None) -> str:
    """16 hex digits over the names and bytes of every file of both packages below root, and of the modules in user.

    user: None for those that are in root itself, if that is a snapshot.
    """
    digest = hashlib.sha256()
    for name, own in _digest_of_files(root, user).items():
        digest.update(f"{name}\0".encode())
        digest.update(own)
    return digest.hexdigest()[:16]


def _digest_of_files(root: Path, user: Path | None = None) -> dict[str, bytes]:
    found = {path.relative_to(root).as_posix(): path for path in _files(root)}
    if user is None and (root / MARK).exists():
        user = root / own_code.FOLDER
    if user is not None and user.is_dir():
        found |= {f"{own_code.FOLDER}/{path.relative_to(user).as_posix()}": path for path in own_code.files(user)}
    return {name: hashlib.sha256(path.read_bytes()).digest() for name, path in found.items()}


def _files(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        if not (root / package).is_dir():
            raise ConfigError(f"{root / package}: no such package. Run the launcher from a checkout or an installation that has both.")
        for path in sorted((root / package).rglob("*")):
            hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(root).parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                yield path


def _digests(codes: Path) -> dict[str, str]:
    """Digest of each snapshot, newest first; a folder without a readable record is no snapshot."""
    found = {}
    for path in sorted(codes.glob("[0-9]*"), reverse=True):
        try:
            found[path.name] = str(parse_json((path / MARK).read_text())["digest"])
        except (OSError, ValueError, KeyError):
            continue
    return found
