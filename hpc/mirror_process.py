"""The surroundings of a mirror: a clean environment, the choice of online or offline, and an end that comes in time.

Imports no wandb. One invariant: whatever wandb does, this process is gone within a few seconds of being asked, and takes its core along.
"""

import fcntl
import netrc
import os
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from hpc.paths import WandbMode

Mode = Literal["online", "offline", "disabled"]

#: The supervisor allows 8 s after SIGTERM (ADR 7); what is left is for killing a frozen core.
STOP_WITHIN_S = 6.5

ANSWER_WITHIN_S = 3.0

_DEFAULT_SERVER = "https://api.wandb.ai"

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|JWT|PRIVATE|(^|_)(API_?)?KEY$|(^|_)(AUTH|PAT)$", re.IGNORECASE)

#: WANDB_* that say how to reach a server or where caches go. The others (RUN_ID, RESUME, DIR, SERVICE, ...) are meant for somebody
#: else's run: WANDB_SERVICE leaks through sbatch into jobs and breaks init (seen).
_KEPT_WANDB = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")

_LOOK_S = 0.2


class Stop:
    """Whether this process was asked to stop. A request also starts the clock that ends it by force."""

    def __init__(self) -> None:
        self.is_set = False
        self._parent: int | None = None

    def install(self, with_parent: bool) -> None:
        """Let the stop signals ask, and with with_parent the parent's death; then unblock: children may start with them blocked."""
        self._parent = os.getppid() if with_parent else None
        for number in _STOP_SIGNALS:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Sleep so long, or until asked to stop; True if asked."""
        deadline = time.monotonic() + seconds
        while not self.is_set and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return self.is_set

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Nothing but a flag: an Event or a Timer takes locks that the interrupted code may hold.
        self.is_set = True

    def _watch(self) -> None:
        while not self.is_set:
            time.sleep(_LOOK_S)
            self.is_set = self.is_set or (self._parent is not None and os.getppid() != self._parent)
        time.sleep(STOP_WITHIN_S)
        leave(0)


def leave(code: int) -> None:
    """End this process now. Its children go first: a frozen wandb-core would outlive it, and wandb's own exit would wait for it."""
    for pid in _children():
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _children() -> list[int]:
    """Pids of direct children; empty where /proc does not list them (macOS: wandb-core ends by itself when its parent is gone)."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:
            continue
    return found


def clean_environment(environ: MutableMapping[str, str], scratch: Path) -> None:
    """Drop what must not reach W&B or would steer it; send its caches to scratch, because jobs write nothing under HOME."""
    for name in list(environ):
        foreign = name.startswith("WANDB_") and name not in _KEPT_WANDB
        secret = _SECRET.search(name) and name != "WANDB_API_KEY"
        if foreign or secret or name == "SLURM_JWT":
            del environ[name]
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        environ.setdefault(name, str(scratch / name.lower()))
    environ["WANDB_ERROR_REPORTING"] = "false"


def choose_mode(wanted: WandbMode, environ: Mapping[str, str]) -> tuple[Mode, str]:
    """The mode to use, and why, as words for a log."""
    asked = environ.get("WANDB_MODE")
    if wanted == "disabled" or (wanted == "auto" and asked == "disabled"):
        return "disabled", "the sweep or WANDB_MODE says so"
    if wanted == "offline" or (wanted == "auto" and asked == "offline"):
        return "offline", "the sweep or WANDB_MODE says so"
    server = environ.get("WANDB_BASE_URL") or _DEFAULT_SERVER
    if not has_key(environ, server):
        return "offline", "no key: set WANDB_API_KEY or run `wandb login`, then run python -m hpc.mirror on this sweep to upload"
    if not answers(server):
        return "offline", f"{server} does not answer within {ANSWER_WITHIN_S:.0f} s; run python -m hpc.mirror on this sweep later to upload"
    return "online", f"{server} answers"


def has_key(environ: Mapping[str, str], server: str) -> bool:
    """Whether WANDB_API_KEY is set, or netrc has an entry for the server's host. A broken netrc counts as none."""
    if environ.get("WANDB_API_KEY"):
        return True
    host = re.sub(r"^https?://", "", server).split("/")[0].split(":")[0]
    home = Path(environ.get("HOME") or "/nonexistent")
    paths = [Path(environ["NETRC"])] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for path in paths:
        try:
            if netrc.netrc(str(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError, ValueError):
            continue
    return False


def answers(server: str, within_s: float = ANSWER_WITHIN_S) -> bool:
    """Whether a server answers anything but an error of its own (5xx) in time."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(server, timeout=within_s) as response:
                answered.append(response.status < 500)
        except urllib.error.HTTPError as error:
            answered.append(error.code < 500)
        except (OSError, ValueError):
            answered.append(False)

    # In a thread, because a timeout of urllib does not cover the look-up of the name.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(within_s)
    return bool(answered and answered[0])


def lock(path: Path) -> IO[bytes] | None:
    """Hold this file's lock until the returned file is closed; None if another mirror has it."""
    path.parent.mkdir(exist_ok=True)
    file = open(path, "ab")  # noqa: SIM115 - it stays open for as long as the lock is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        return file  # a file system without locks: one mirror a task is the rule anyway
