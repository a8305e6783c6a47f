"""In a rank: die by SIGKILL right before, or right after, the n-th durable call of its start. See ranks.start's hook."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seresnet.durable import Files


def install(run_dir: Path, rank: int) -> None:
    """FORK_KILL_AT: number of the call, from 0; -1 counts calls into calls.txt beside the run folder."""
    at, seen = int(os.environ["FORK_KILL_AT"]), [0]
    for name in ("create", "sync", "rename", "link", "sync_folder"):
        setattr(Files, name, _counted(getattr(Files, name), at, seen, run_dir))


def _counted(call: Callable[..., Any], at: int, seen: list[int], run_dir: Path) -> Callable[..., Any]:
    def counted(*args: Any) -> Any:
        number, seen[0] = seen[0], seen[0] + 1
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args)
        if at < 0:
            with open(run_dir.parent / "calls.txt", "a") as file:
                file.write(f"{call.__name__} {args[-1]}\n")
        return result

    return counted
