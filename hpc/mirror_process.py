"""The surroundings of a mirror: a clean environment, the choice of online or offline, and a lock a run.

Imports no wandb. One invariant: no secret but the key of W&B itself is left in the environment that wandb and its core get.
"""

import contextlib
import fcntl
import importlib.util
import logging
import netrc
import os
import re
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import IO, Literal

from hpc.paths import WandbMode
from seresnet.strict_yaml import hide_secrets

Mode = Literal["online", "offline", "disabled"]

ANSWER_WITHIN_S = 3.0

LATER = "python -m hpc.mirror on this sweep uploads it"
KEY_FIRST = "with WANDB_API_KEY set (or after `wandb login`)"

_DEFAULT_SERVER = "https://api.wandb.ai"

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|JWT|PRIVATE|(^|_)(API_?)?KEY$|(^|_)(AUTH|PAT)$", re.IGNORECASE)
#: What keys and tokens begin with: GitHub, Hugging Face, OpenAI, AWS, Slack, Google, a JSON web token, a key file.
_SECRET_VALUE = re.compile(
    r"(?<![0-9A-Za-z])(gh[opsu]_\w{16}|github_pat_\w{16}|hf_\w{16}|sk-[\w-]{16}|AKIA[0-9A-Z]{16}|xox[abp]-\w{8}|AIza[\w-]{20}|eyJ[\w-]{16}"
    r"|glpat-[\w-]{16})|-----BEGIN|://[^/\s:@]*:[^/\s@]+@"
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")  # may hold a password, and without them there is no way to the server

#: WANDB_* that say how to reach a server or where caches go. The others (RUN_ID, RESUME, DIR, SERVICE, ...) are meant for somebody
#: else's run: WANDB_SERVICE leaks through sbatch into jobs and breaks init (seen).
_KEPT_WANDB = (
    "WANDB_API_KEY",
    "WANDB_BASE_URL",
    "WANDB_CACHE_DIR",
    "WANDB_CONFIG_DIR",
    "WANDB_DATA_DIR",
)


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what looks like a secret by its name or its value, but for the key of W&B."""
    return {name: value for name, value in environ.items() if name == "WANDB_API_KEY" or not _is_secret(name, value)}


def _is_secret(name: str, value: str) -> bool:
    if _SECRET_NAME.search(name) or name == "SLURM_JWT":
        return True
    return name.upper() not in _PROXIES and bool(hide_secrets(value) != value or _SECRET_VALUE.search(value))


def clean_environment(environ: MutableMapping[str, str], scratch: Path) -> None:
    """Drop what must not reach W&B or would steer it. Its caches and temporary files go to scratch: jobs write nothing under HOME."""
    kept = without_secrets(environ)
    for name in list(environ):
        if name not in kept or (name.startswith("WANDB_") and name not in _KEPT_WANDB):
            del environ[name]
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        environ.setdefault(name, str(scratch / name.lower()))
    environ["WANDB_ERROR_REPORTING"] = "false"
    environ["TMPDIR"] = tempfile.tempdir = str(scratch)  # wandb leaves folders and a socket behind (seen)


def choose_mode(wanted: WandbMode, environ: Mapping[str, str]) -> tuple[Mode, str]:
    """The mode to use, and why, as words for a log. Asks the server, for ANSWER_WITHIN_S at most."""
    mode, why = mode_without_asking(wanted, environ)
    if mode != "online":
        return mode, why
    server = server_of(environ)
    if not answers(server):
        return "offline", f"{server} does not answer within {ANSWER_WITHIN_S:.0f} s; later {LATER}"
    return "online", f"{server} answers"


def mode_without_asking(wanted: WandbMode, environ: Mapping[str, str]) -> tuple[Mode, str]:
    """As choose_mode, as far as it can be said without a network: "online" is then what is tried."""
    asked = environ.get("WANDB_MODE")
    if wanted == "disabled" or (wanted == "auto" and asked == "disabled"):
        return "disabled", "the sweep or WANDB_MODE says so"
    if importlib.util.find_spec("wandb") is None:
        return "disabled", "the package wandb is not installed here"
    if wanted == "offline" or (wanted == "auto" and asked == "offline"):
        return "offline", "the sweep or WANDB_MODE says so"
    server = server_of(environ)
    if not has_key(environ, server):
        return "offline", f"no key; {KEY_FIRST} {LATER}"
    return "online", f"there is a key for {server}"


def plan_line(wanted: WandbMode, environ: Mapping[str, str]) -> str:
    """What a launch says of W&B. Its machine is not the one that trains: whether that has the package and a network is seen there."""
    asked = environ.get("WANDB_MODE") if wanted == "auto" else None
    if "disabled" in (wanted, asked):
        return "W&B: disabled"
    if "offline" in (wanted, asked):
        return f"W&B: offline; later {LATER}"
    server = server_of(environ)
    if not has_key(environ, server):
        return f"W&B: offline, no key: rows are kept in files; {KEY_FIRST} {LATER}"
    return f"W&B: online where {server} answers, else offline"


def server_of(environ: Mapping[str, str]) -> str:
    return environ.get("WANDB_BASE_URL") or _DEFAULT_SERVER


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


@contextlib.contextmanager
def scratch(given: Path | None) -> Iterator[Path]:
    """A folder for wandb's caches and logs; the supervisor gives one, and removes it when we cannot."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="hpc-mirror-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def log_to(say_fd: int | None) -> None:
    """Everything to stdout; what the user should know also to the task's log."""
    logging.raiseExceptions = False  # a closed log must not end the mirror
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if say_fd is not None:
        handlers.append(logging.StreamHandler(os.fdopen(say_fd, "w")))
        handlers[-1].setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="mirror: %(message)s", handlers=handlers)


def one_line(error: BaseException) -> str:
    """An error in one line of a log."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")
