"""Lets one of several processes build a file while the others wait for it; a builder that died never blocks the next.

The lock only saves work: everybody builds in a folder of their own and renames, so two builders at once (a file system without locks
between nodes, a builder that was stopped for a minute) are slow, never wrong. docs/adr/0005.
"""

import errno
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import IO

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

BEAT_S = 5.0
#: A lock whose file was not touched for this long, on the waiting process's clock, belongs to nobody who is building.
STALE_S = 60.0
POLL_S = 0.25
#: Temp folders of killed builders are removed when they are this much older than a new one, both by the file server's clock.
LEFTOVER_S = 600.0
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_PREFIX = ".building-"


@contextmanager
def sole_builder(target: Path, is_built: Callable[[], bool], *, stale_s: float = STALE_S, beat_s: float = BEAT_S) -> Iterator[Path | None]:
    """Yield an own temp folder beside target if the caller must build it, or None once somebody else has.

    Whoever builds renames the result to target; the temp folder is removed afterwards. is_built is asked before every try.
    """
    lock = _Lock(target.with_name(f".{target.name}.lock"))
    if not _wait(lock, target, is_built, stale_s):
        yield None
        return
    temp = target.with_name(f"{_PREFIX}{target.name}-{secrets.token_hex(4)}")
    try:
        temp.mkdir()
        _remove_leftovers(temp)
        with _beating((lock.path, temp), beat_s):
            yield temp
    finally:
        rmtree(temp, ignore_errors=True)
        lock.release()


def _wait(lock: "_Lock", target: Path, is_built: Callable[[], bool], stale_s: float) -> bool:
    """True with the lock, or without it when its owner stands still; False when target is built."""
    seen, since, told = lock.beat(), time.monotonic(), False
    while not is_built():
        if lock.try_acquire():
            if not is_built():  # its last owner may have finished between the two
                return True
            lock.release()
            return False
        if (beat := lock.beat()) != seen:
            seen, since = beat, time.monotonic()
        elif time.monotonic() - since > stale_s:
            log.warning("builder stands still lock=%s owner=%s", lock.path, lock.owner())
            if not lock.break_stale():
                return True  # without the lock
            seen, since = lock.beat(), time.monotonic()
            continue
        if not told:
            log.info("waiting for another process owner=%s file=%s", lock.owner(), target)
            told = True
        time.sleep(POLL_S)
    return False


class _Lock:
    """flock on a file, which the kernel lets go of when its owner dies; where there is no flock, the file's existence."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._by_existence = False

    def try_acquire(self) -> bool:
        if fcntl is None:
            return self._create_exclusively()
        try:
            file = open(self.path, "a+b")  # noqa: SIM115
        except PermissionError:
            return False  # another user's lock in a shared folder
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A lock on a file that its last owner has removed is a lock on nothing.
            if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                self._file, file = file, None  # type: ignore[assignment]
                self._sign(self._file)
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return self._create_exclusively()
        finally:
            if file is not None:
                file.close()
        return False

    def _create_exclusively(self) -> bool:
        self.path = self.path.with_suffix(".claim")
        try:
            with open(self.path, "xb") as file:
                self._sign(file)
        except FileExistsError:
            return False
        self._by_existence = True
        return True

    def _sign(self, file: IO[bytes]) -> None:
        file.truncate(0)
        file.write(f"{socket.gethostname()}:{os.getpid()}".encode())
        file.flush()

    def beat(self) -> int | None:
        """Changes whenever the owner is alive."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return None

    def owner(self) -> str:
        try:
            return self.path.read_text(errors="replace")[:80] or "unknown"
        except OSError:
            return "unknown"

    def break_stale(self) -> bool:
        """Remove the file of an owner that stands still, so that one of those who wait gets a new one. False if it may not be removed."""
        try:
            self.path.unlink(missing_ok=True)
        except PermissionError:
            return False
        return True

    def release(self) -> None:
        if self._file is not None or self._by_existence:
            self.path.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()
        self._file, self._by_existence = None, False


@contextmanager
def _beating(paths: tuple[Path, ...], beat_s: float) -> Iterator[None]:
    """Touch the paths every beat_s seconds, from a thread, until the block ends."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(beat_s):
            for path in paths:
                try:
                    os.utime(path)
                except OSError:
                    continue  # broken by somebody who thought us dead: go on building, it does no harm

    thread = threading.Thread(target=beat, name="build-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _remove_leftovers(mine: Path) -> None:
    now = mine.stat().st_mtime
    for other in mine.parent.glob(f"{_PREFIX}*"):
        try:
            if now - other.stat().st_mtime > LEFTOVER_S:
                rmtree(other, ignore_errors=True)
        except OSError:
            continue  # removed by its owner meanwhile
