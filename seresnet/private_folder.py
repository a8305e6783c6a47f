"""Folders of one process under the node's temp folder, which are gone when it is.

Ranks leave by os._exit, so nobody tidies up behind them: they call remove_own() last of all, and of those that were killed the next start
finds what is left. One invariant: no folder of a process that may still live is removed within a day.
"""

import atexit
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from seresnet.process_identity import boot_id

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

PREFIX = "seresnet-compile-"
#: The environment variable that names the running process's folder.
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
#: In each folder: a file that its process keeps locked, with the boot in which it did. The kernel lets go of it when the process dies,
#: and knows it in every PID namespace, where a pid says nothing.
OWNER = ".owner"
#: Of whom nothing can be told, folders are taken away after this long; no compilation takes longer.
STALE_AFTER_S = 86400.0


def own_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """What this very process has made; None before, and for what a parent or the site has named."""
    folder = Path(environ.get(VARIABLE, ""))
    return folder if folder.name.startswith(f"{PREFIX}{os.getpid()}-") and folder.is_dir() else None


def make_folder() -> Path:
    """A new folder of this process; those of dead ones are removed. Raises OSError."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_if_dead(old)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    _lock(folder)
    atexit.register(_remove, folder, os.getpid())
    return folder


def remove_own(environ: Mapping[str, str] = os.environ) -> None:
    """The process ends. Best effort; libraries that it has loaded from there stay loaded."""
    if folder := own_folder(environ):
        _remove(folder, os.getpid())


def _remove(folder: Path, pid: int) -> None:
    if pid == os.getpid():  # not a fork of ours
        shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> None:
    """Hold the owner's file for as long as this process lives. Renamed when it is locked, so that nobody ever finds it free."""
    if fcntl is None:
        return
    new = folder / f"{OWNER}.new"
    with contextlib.suppress(OSError):  # no locks here: its age must do
        handle = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)  # never closed
        os.write(handle, (boot_id() or "").encode())
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / OWNER)


def _remove_if_dead(folder: Path) -> None:
    try:
        facts = folder.lstat()
    except OSError:
        return
    if facts.st_uid != os.getuid():
        return
    is_free = _is_free(folder / OWNER)
    if is_free or (is_free is None and time.time() - facts.st_mtime > STALE_AFTER_S):
        shutil.rmtree(folder, ignore_errors=True)


def _is_free(owner: Path) -> bool | None:
    """Whether nobody holds the file; None where that cannot be told, as of another machine on a shared file system."""
    if fcntl is None:
        return None
    try:
        with open(owner, "r+b") as file:
            if file.read().decode(errors="replace") != (boot_id() or "none"):
                return None
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:
        return None
