"""The W&B mirror as a child of the supervisor: started, asked to stop, and killed if it does not; never waited for longer than 8 s.

One invariant: nothing it does, and no way in which it fails to start, reaches the task's exit code.
"""

import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpc.paths import SweepFolder, WandbMode
from hpc.ranks import UNKILLABLE_S, kill_group, start_process

log = logging.getLogger("hpc.supervisor")

#: Of 30 s of grace the mirror has 8 (ADR 7).
STOP_LIMIT_S = 8.0

Command = Sequence[str]


class MirrorChild:
    """The mirror's process, or none where W&B is disabled or it could not be started."""

    def __init__(self, process: "subprocess.Popen[bytes] | None" = None) -> None:
        self._process = process
        self._kill_at: float | None = None

    @classmethod
    def start(
        cls, sweep: SweepFolder, run_ids: Sequence[str], mode: WandbMode, command: Command | None, *, env: Mapping[str, str], cwd: Path
    ) -> "MirrorChild":
        """Start `python -m hpc.mirror SWEEP --runs ... --follow`, or `command`; its words go to logs/mirror.txt."""
        if mode == "disabled":
            return cls()
        command = command or (sys.executable, "-m", "hpc.mirror", str(sweep.path.resolve()), "--runs", ",".join(run_ids), "--follow")
        try:
            sweep.logs.mkdir(exist_ok=True)
            return cls(start_process(command, env=env, cwd=cwd, log=sweep.logs.resolve() / "mirror.txt"))
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("mirror_not_started error=%s", error)
            return cls()

    def ask_to_stop(self) -> None:
        """SIGTERM, once; its 8 s begin."""
        if self._process is not None and self._kill_at is None:
            self._kill_at = time.monotonic() + STOP_LIMIT_S
            self._process.terminate()

    def stop(self) -> None:
        """Ask it to stop unless that has been done, wait for what is left of its 8 s, and kill it and its children."""
        if self._process is None:
            return
        self.ask_to_stop()
        assert self._kill_at is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=max(0.0, self._kill_at - time.monotonic()))
        kill_group(self._process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a dead file system: the requeue must not wait for it
            self._process.wait(timeout=UNKILLABLE_S)
