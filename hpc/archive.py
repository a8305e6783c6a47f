"""`python -m hpc.archive SWEEP`: a sweep in which nobody works as one verified tar file, which hpc.collect reads as it is; and back.

What the file looks like is hpc.archive_file's business, who may still write hpc.sweep_users'. One invariant: a file under the name that was
asked for is whole and was read back; until then it has a hidden name beside it, which the next call writes anew.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from hpc.arguments import folder
from seresnet.command import run_command
from seresnet.errors import SubmissionError, ToolkitError, printable
from seresnet.help_text import HelpFormatter

if TYPE_CHECKING:
    from hpc.archive_file import Archive, Manifest

_EPILOG = """\
examples:
  python -m hpc.archive runs/ablation        # makes runs/ablation.tar
  python -m hpc.archive runs/ablation --output /archive/ablation.tar
  python -m hpc.archive runs/ablation --records-only
  python -m hpc.collect runs/ablation.tar    # the folder's table
  python -m hpc.archive --verify runs/ablation.tar
  python -m hpc.archive --restore runs/ablation.tar runs/again

The folder stays as it is. It is refused while a job, a launcher, a mirror or a training may still write into the sweep. \
Every member is read back and compared.
--records-only leaves out checkpoints, code, trials, traces and W&B's files: enough for tables and figures, not to go on training.
exit: 0 done (or whole), 1 --verify found damage, 2 refused or an error, 130 Ctrl-C. Then nothing is left under the name asked for.
"""

#: Of a sweep's folder and of a run's: what tables, status and a person need; all of it is small.
_OF_SWEEP = frozenset(("plan.json", "submission.json", "sweep.yaml", "plan.txt", "hold.json", "cleaned.json"))
_OF_RUN = frozenset(("run.yaml", "result.json", "log.txt", "cleaned.json"))
#: Of hpc.collect_cache: elsewhere the files have other identities, and it is of no use.
_CACHE = ".collect"
_NOT_RUNS = frozenset(("code", "trials", "figures", _CACHE))


def main(argv: Sequence[str] | None = None) -> int:
    """Archive, verify or restore; what a user, a cluster or a disk can cause is text and an exit code."""
    args = build_parser().parse_args(argv)
    try:
        if args.verify is not None:
            return _verify(args.verify)
        said = restore(*args.restore) if args.restore else archive(args.sweep, args.output, records_only=args.records_only)
        print(*map(printable, said), sep="\n")
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or args.output or args.sweep}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written under the name asked for", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m hpc.archive",
        description="Put a sweep in which nobody works into one verified tar file, or take it out again.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("sweep", metavar="SWEEP", nargs="?", type=folder, help="the sweep's folder, such as runs/ablation")
    what.add_argument("--verify", metavar="FILE.tar", type=folder, help="read an archive and compare every byte with its list")
    what.add_argument("--restore", metavar=("FILE.tar", "DIR"), nargs=2, type=folder, help="put its sweep into the new folder DIR")
    parser.add_argument("--output", metavar="FILE.tar", type=folder, help="the archive (default: SWEEP.tar, beside the sweep)")
    parser.add_argument("--records-only", action="store_true", help="only what tables and figures need")
    return parser


def is_archive(path: Path) -> bool:
    """Whether a user means an archive and not a sweep's folder."""
    return path.suffix == ".tar" and not path.is_dir()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The records of an archived sweep as a folder, which is gone afterwards; raises ArchiveError. Checkpoints are not read."""
    from hpc import archive_file

    with tempfile.TemporaryDirectory(prefix="hpc-archive-") as scratch, archive_file.reading(path) as found:
        place = Path(scratch) / found.manifest.sweep
        found.extract(place, is_record)
        yield place


@contextlib.contextmanager
def folders(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The same, with every archive as the folder of its records."""
    with contextlib.ExitStack() as held:
        places = {path: held.enter_context(opened(path)) if is_archive(path) else path for path in paths}
        try:
            yield list(places.values())
        except ToolkitError as error:
            raise type(error)(_in_their_names(str(error), places)) from error


def _in_their_names(text: str, places: Mapping[Path, Path]) -> str:
    """The text with archives in place of the folders that they are unpacked into, which nobody knows and which are soon gone."""
    for path, place in places.items():
        text = text.replace(str(place), str(path)) if place != path else text
    return text


def beside(paths: Sequence[Path]) -> Path | None:
    """Where the table of one archive goes if nobody says: not among other sweeps' files. None where that is no question."""
    return paths[0].with_suffix(".collected") if len(paths) == 1 and is_archive(paths[0]) else None


def is_record(way: PurePosixPath, is_folder: bool) -> bool:
    """Whether hpc.collect may look at it. way: below the sweep's folder."""
    parts = way.parts
    if not parts:
        return True
    if len(parts) == 1:
        return parts[0] not in _NOT_RUNS if is_folder else parts[0] in _OF_SWEEP
    if parts[0] in _NOT_RUNS:
        return False
    if len(parts) == 2 and not is_folder:
        return parts[0] == "logs" or parts[1] in _OF_RUN
    return parts[1] in ("attempts", "metrics") and len(parts) <= 3


def _is_any(way: PurePosixPath, is_folder: bool) -> bool:
    return way.parts[:1] != (_CACHE,)


# --- into an archive ---


def archive(sweep: Path, output: Path | None = None, *, records_only: bool = False) -> list[str]:
    """Write it; what to tell the user. Raises ToolkitError and OSError: then there is no file of that name."""
    from hpc import locks
    from hpc.paths import Plan, SweepFolder
    from hpc.sweep_users import refuse_users

    source, plan = sweep.resolve(), Plan.read(SweepFolder(sweep))
    target = (output or source.with_name(f"{source.name}.tar")).absolute()
    _refuse_target(target, source)
    with locks.holding(SweepFolder(source).launch_lock) as is_mine:
        if not is_mine:
            raise SubmissionError(f"{sweep}: a launcher or another hpc.archive is at work here. Try again when it is done.")
        refuse_users(SweepFolder(source), plan, "archived")
        with _draft_file(target.with_name(f".{target.name}.archiving")) as (draft, file):
            manifest, digest = _write(source, draft, file, records_only=records_only)
            _refuse_target(target, source)
            os.rename(draft, target)
            _sync_folder(target.parent)
    what = "records" if records_only else "files"
    return [
        f"archived {sweep}: {manifest.files:,} {what}, {manifest.size / 1e6:,.1f} MB, in {target}",
        f"read back and compared, file by file; SHA-256 of the archive: {digest}",
        f"to look at it: python -m hpc.collect {shlex.quote(str(target))}",
        f"{sweep} is as it was: nothing was removed",
    ]


def _refuse_target(target: Path, source: Path) -> None:
    problem = None
    if target.suffix != ".tar":
        problem = f"{target}: the name of an archive ends with .tar. Give --output NAME.tar."
    elif os.path.lexists(target):
        problem = f"{target}: exists. Give another --output, or remove it."
    elif not target.parent.is_dir():
        problem = f"{target.parent}: no such folder. `mkdir -p {shlex.quote(str(target.parent))}` first."
    elif target.parent.resolve().is_relative_to(source):
        problem = f"{target}: lies in the sweep. Give an --output outside of it."
    if problem:
        raise SubmissionError(f"{problem} Nothing was archived.")


def _write(source: Path, draft: Path, file: BinaryIO, *, records_only: bool) -> tuple["Manifest", str]:
    """Write, sync and read back; the list, and the digest of the whole file."""
    from hpc import archive_file, tree_copy

    choose = is_record if records_only else _is_any
    before = tree_copy.looks_of(source)
    _refuse_too_large(source, draft, records_only)
    manifest = archive_file.write(source, file, source.name, records_only=records_only, choose=choose)
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or the check below reads our own memory
    with archive_file.reading(draft) as found:
        _refuse_different(found, manifest)
    with open(draft, "rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    if tree_copy.looks_of(source) != before:
        raise SubmissionError(f"{source}: was changed while it was archived. Nothing was archived. Find out by whom, and try again.")
    return manifest, digest


def _refuse_different(found: "Archive", manifest: "Manifest") -> None:
    if found.manifest != manifest or (bad := found.damaged()):
        what = "its list" if found.manifest != manifest else ", ".join(bad[:5])
        raise SubmissionError(f"{found.path}: reads back differently ({what}): bad disk. Nothing was archived.")


def _refuse_too_large(source: Path, draft: Path, records_only: bool) -> None:
    from hpc import tree_copy

    if records_only:
        return  # a few MB; a full disk says so
    found = [facts for _, facts in tree_copy.walk(source)]
    needed = sum(facts.st_size for facts in found if stat.S_ISREG(facts.st_mode)) + 1024 * len(found)
    free = shutil.disk_usage(draft.parent).free
    if needed > free:
        raise SubmissionError(f"{draft.parent}: has {free / 1e9:.3f} GB free, the sweep has {needed / 1e9:.3f} GB. Nothing was archived.")


@contextlib.contextmanager
def _draft_file(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """The file that becomes the archive; what a killed call has left there is written anew. Removed unless it was renamed."""
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SubmissionError(f"{path}: another hpc.archive writes this very archive. Wait for it.") from error
        except OSError:
            pass  # no locks here; the launch lock keeps two callers of one sweep apart
        if not _is_at(path, file.fileno()):
            raise SubmissionError(f"{path}: another hpc.archive has just finished this very archive.")
        try:
            file.seek(0)
            file.truncate()
            yield path, file
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _is_at(path: Path, handle: int) -> bool:
    """Whether the name still means what was opened: its holder may have renamed it while we came."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


# --- out of it ---


def _verify(path: Path) -> int:
    from hpc import archive_file

    try:
        with archive_file.reading(path) as found:
            manifest, bad = found.manifest, found.damaged()
    except archive_file.ArchiveError as error:
        print(error, file=sys.stderr)
        return 1 if path.exists() else 2
    for way in bad:
        print(printable(f"{path}: member {manifest.sweep}/{way} is damaged"))
    what = "records" if manifest.records_only else "files"
    verdict = f"{len(bad)} are damaged" if bad else "all are whole"
    print(printable(f"{path}: sweep {manifest.sweep}, {manifest.files:,} {what}, {manifest.size / 1e6:,.1f} MB: {verdict}"))
    return int(bool(bad))


def restore(path: Path, target: Path) -> list[str]:
    """Put an archive's sweep into a new folder; what to tell the user. Raises ToolkitError and OSError: then target is not there."""
    from hpc import archive_file

    target = target.absolute()
    if os.path.lexists(target):
        raise SubmissionError(f"{target}: exists. Give a name that is free. Nothing was restored.")
    if not target.parent.is_dir():
        raise SubmissionError(f"{target.parent}: no such folder. `mkdir -p {shlex.quote(str(target.parent))}` first.")
    with archive_file.reading(path) as found, _draft_folder(target) as draft:
        found.extract(draft / "sweep", _is_any, after=_flush)
        for place in sorted((draft / "sweep").rglob("*"), reverse=True):
            if place.is_dir() and not place.is_symlink():
                _sync_folder(place)
        os.rename(draft / "sweep", target)
        _sync_folder(target.parent)
        manifest = found.manifest
    said = [f"restored {manifest.files:,} files of sweep {manifest.sweep}, {manifest.size / 1e6:,.1f} MB, to {target}, each compared"]
    if manifest.records_only:
        return [*said, "the archive holds records only: tables and figures can be made, training cannot go on from it"]
    runs_dir = target.parent if target.name == manifest.sweep else target
    return [*said, f"to go on with it, add --runs-dir {shlex.quote(str(runs_dir))} to its launch (docs/keeping.md)"]


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _draft_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target, held by a lock; what a killed call has left there is removed first. Gone afterwards."""
    draft = target.with_name(f".{target.name}.restoring")
    draft.mkdir(exist_ok=True)
    handle = os.open(draft, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SubmissionError(f"{draft}: another hpc.archive restores to {target}. Wait for it.") from error
        except OSError:
            pass
        if not _is_at(draft, handle):
            raise SubmissionError(f"{draft}: another hpc.archive has just restored to {target}.")
        shutil.rmtree(draft / "sweep", ignore_errors=True)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    finally:
        os.close(handle)


def _sync_folder(place: Path) -> None:
    from seresnet.durable import fsync_folder

    fsync_folder(place)


if __name__ == "__main__":
    run_command(main)
