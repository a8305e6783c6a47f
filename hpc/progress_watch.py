"""Whether the ranks of this node still make progress, seen from outside: the backup of their own watchdog (seresnet.watchdog).

A rank that is stopped or holds the interpreter's lock for good cannot say that it hangs. It is killed at twice its own limit, so that
its own word, with the stacks, mostly comes first, and its siblings are asked for theirs. One invariant: a program that never wrote of its
progress is never called hung.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seresnet.watchdog import mark_hung, read_progress

#: Looks at the files; a step or a save takes longer.
LOOK_EVERY_S = 1.0
#: Of the limit that a rank goes by itself.
PATIENCE = 2.0


@dataclass
class _Seen:
    count: int
    idle_s: float = 0.0


class ProgressWatch:
    """Looks at the files that ranks write into one folder."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._looked = clock()
        self._seen: dict[str, _Seen] = {}

    def look(self) -> str | None:
        """Which rank hangs and since when, or None. Cheap to call often."""
        now = self._clock()
        if now - self._looked < LOOK_EVERY_S:
            return None
        # Only time in which we looked counts: a suspended job stops us too.
        watched_s, self._looked = min(now - self._looked, 2 * LOOK_EVERY_S), now
        for path in sorted(self._folder.glob("progress-*")):
            progress = read_progress(path)
            if progress is None:
                continue
            seen = self._seen.setdefault(path.name, _Seen(progress.count))
            seen.idle_s = 0.0 if progress.count != seen.count else seen.idle_s + watched_s
            seen.count = progress.count
            if seen.idle_s > PATIENCE * progress.limit_s:
                rank = path.name.removeprefix("progress-")
                mark_hung(self._folder)
                return f"rank {rank} said nothing for {seen.idle_s:.0f} s, nor did its own watchdog after {progress.limit_s:.0f} s"
        return None
