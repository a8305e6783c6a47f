"""The W&B mirror as a child of the supervisor: started, told when the task is over or evicted, and killed if it takes too long.

One invariant: nothing it does, and no way in which it fails to start or to end, reaches the task's exit code or outlives the task.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hpc.mirror_end import FINISH_TIMEOUT_S
from hpc.mirror_process import without_secrets
from hpc.paths import SweepFolder, WandbMode
from hpc.ranks import UNKILLABLE_S, kill_group, start_process

log = logging.getLogger("hpc.supervisor")

#: From SIGTERM to SIGKILL when the task is evicted: of 30 s of grace the mirror has 8 (ADR 7).
STOP_LIMIT_S = 5.0
#: The same when its runs are over and nobody is in a hurry.
END_LIMIT_S = FINISH_TIMEOUT_S + 5.0
#: A mirror that dies, as of memory, is started again so often, and not at once.
_MOST_STARTS = 3
_START_AGAIN_S = 30.0
_LOOK_S = 0.05
#: In the environment of the mirror and of all that it starts: wandb-core leads a session of its own, and may outlive its parent.
_MARK = "HPC_MIRROR_OF"

Command = Sequence[str]


class MirrorChild:
    """The mirror's process, or none where W&B is disabled or it could not be started."""

    def __init__(self, start: "Callable[[], subprocess.Popen[bytes]] | None" = None, mark: str = "", scratch: Path | None = None) -> None:
        self._start_one, self._mark, self._scratch = start, mark, scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._starts, self._started = 0, 0.0
        self._is_told = False
        self._kill_at: float | None = None
        self._end: int | None = None  # the pipe whose closing says that the task is over

    @classmethod
    def start(
        cls, sweep: SweepFolder, run_ids: Sequence[str], mode: WandbMode, command: Command | None, *, env: Mapping[str, str], cwd: Path
    ) -> "MirrorChild":
        """Start `python -m hpc.mirror SWEEP --runs ... --follow`, or `command`; its words go to logs/mirror.txt, the main ones here."""
        if mode == "disabled":
            return cls()
        mark, own = secrets.token_hex(8), command is None
        try:
            sweep.logs.mkdir(exist_ok=True)
            scratch = _scratch(env)
        except OSError as error:
            log.warning("mirror_not_started error=%s", error)
            return cls()
        told = command or (sys.executable, "-m", "hpc.mirror", str(sweep.path.resolve()), "--runs", ",".join(run_ids), "--follow")
        child = cls(None, mark, scratch)

        def start_one() -> "subprocess.Popen[bytes]":
            end, child._end = os.pipe()
            say = os.dup(1)
            more = ("--end-fd", str(end), "--say-fd", str(say), "--scratch", str(scratch), "--finish-timeout", str(FINISH_TIMEOUT_S))
            try:
                return start_process(
                    (*told, *(more if own else ())), env={**without_secrets(env), _MARK: mark}, cwd=cwd,
                    log=sweep.logs.resolve() / "mirror.txt", pass_fds=(end, say),
                )  # fmt: skip
            finally:
                os.close(end)
                os.close(say)

        child._start_one = start_one
        child._start()
        return child

    def keep_alive(self) -> None:
        """Start it again if it has died of something; called now and then from the thread that started it."""
        if self._process is None or self._kill_at is not None or self._process.poll() in (None, 0):
            return
        if self._starts < _MOST_STARTS and time.monotonic() - self._started > _START_AGAIN_S:
            log.warning("mirror_died status=%s starting it again", self._process.returncode)
            self._kill_what_it_started()
            self._close_end()
            self._start()

    def ask_to_stop(self) -> None:
        """SIGTERM, once; its 5 s begin."""
        if self._process is not None and not self._is_told:
            self._is_told = True
            self._kill_at = min(self._kill_at or float("inf"), time.monotonic() + STOP_LIMIT_S)
            self._process.terminate()

    def stop(self, is_evicted: Callable[[], object] = lambda: True) -> None:
        """Tell it that the task is over, wait as long as it may take, and kill it and its core. is_evicted: whether its 5 s must do."""
        if self._process is not None:
            self._close_end()
            self._kill_at = self._kill_at or time.monotonic() + END_LIMIT_S
            while self._process.poll() is None and time.monotonic() < self._kill_at:
                if is_evicted():
                    self.ask_to_stop()
                time.sleep(_LOOK_S)
            kill_group(self._process)
            self._kill_what_it_started()
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a dead file system: the requeue must not wait for it
                self._process.wait(timeout=UNKILLABLE_S)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _start(self) -> None:
        assert self._start_one is not None
        self._starts, self._started = self._starts + 1, time.monotonic()
        try:
            self._process = self._start_one()
        except (OSError, subprocess.SubprocessError) as error:
            self._process = None
            self._close_end()
            log.warning("mirror_not_started error=%s", error)

    def _close_end(self) -> None:
        if self._end is not None:
            os.close(self._end)
            self._end = None

    def _kill_what_it_started(self) -> None:
        for pid in marked(self._mark):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _scratch(env: Mapping[str, str]) -> Path:
    """A folder on the node for wandb's caches and logs. Raises OSError where no folder for temporary files can be written."""
    for place in (env.get("SLURM_TMPDIR"), env.get("TMPDIR")):
        with contextlib.suppress(OSError):
            if place:
                return Path(tempfile.mkdtemp(prefix="hpc-mirror-", dir=place))
    return Path(tempfile.mkdtemp(prefix="hpc-mirror-"))


def marked(mark: str) -> list[int]:
    """Pids of our processes that have the mark in their environment; empty without /proc (macOS: a core ends when its parent is gone)."""
    found, wanted = [], f"{_MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid() and wanted in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found
