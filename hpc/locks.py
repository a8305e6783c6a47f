"""Lock files between launchers: one plans at a time, and others see whether the one that runs a local sweep still lives.

The kernel lets go of a lock when its process dies, however it dies, so nothing is ever stale. Trainings do not rely on these locks:
seresnet.claims keeps two owners of a run apart on its own.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def holding(path: Path, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold the lock file at path; yields False if another process has it for longer than wait_s.

    The kernel lets go of it when the process dies, however it dies. Where the file system has no locks it yields True: then
    claims alone keep two owners apart, and a second launcher costs a start, not a run.
    """
    with holding_file(path, wait_s) as (is_mine, _):
        yield is_mine


@contextlib.contextmanager
def holding_file(path: Path, wait_s: float = 0.0) -> Iterator[tuple[bool, int]]:
    """As holding, and the number of the open file: a child that is given it holds the lock as long as it lives.

    Makes no folder: a task whose sweep was moved must not bring the old place back. Raises OSError where there is none, and where the
    lock's file was moved or removed while we waited for it.
    """
    with open(path, "a") as file:
        is_mine = _locked(file, wait_s)
        if is_mine and not _is_at(path, file):
            raise FileNotFoundError(errno.ENOENT, "was moved or removed by somebody else just now", str(path.parent))
        yield is_mine, file.fileno()


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _locked(file: IO[str], wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)
        except OSError:
            return True


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock file at path; reading does not create it."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
