"""Whether the kernel killed a rank for its memory: the oom_kill counter of this task's memory cgroup, version 1 or 2.

A SIGKILL alone proves nothing. One invariant: a kill that was counted explains one attempt, never two.
"""

import re
from collections.abc import Callable
from pathlib import Path


def count_kills(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Processes of this task's memory cgroup that the kernel has killed for memory; None where nothing says so."""
    try:
        lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in lines:
        inside = path.lstrip("/")
        places = {"": root / inside / "memory.events", "memory": root / "memory" / inside / "memory.oom_control"}
        if controllers in places and (found := _read_count(places[controllers])) is not None:
            return found
    return None


def _read_count(path: Path) -> int | None:
    try:
        found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


class MemoryKills:
    """The kills of a task, each given out once."""

    def __init__(self, count: Callable[[], int | None] = count_kills) -> None:
        self._count = count
        self._explained = count()

    @property
    def evidence(self) -> str:
        """What can be said of a rank that was killed without a counted kill."""
        return "no memory cgroup could be asked" if self._explained is None else "its memory cgroup counts no kill"

    def forget(self) -> None:
        """Nothing of ours ran until now: what was counted is somebody else's."""
        self._explained = self._count()

    def take(self, killed: int) -> bool:
        """Whether the kernel has killed for memory since; explains at most `killed` of its kills."""
        now = self._count()
        if now is None or self._explained is None or now <= self._explained:
            return False
        self._explained = min(now, self._explained + killed)
        return True
