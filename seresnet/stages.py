"""What the seconds between a process's start and its first optimiser step went into.

Imports nothing heavy, because importing is one of the stages; what the stages are is said by those who mark them. One invariant: the
parts add up to the whole, so that no second of a start is anybody's secret.
"""

import contextlib
import logging
import os
import sys
import time

from seresnet.durable import parse_json, write_json_durably
from seresnet.process_identity import process_state
from seresnet.run_folder import RunFolder

log = logging.getLogger("seresnet")

#: --profile takes no more: a trace is held in memory, some thousand events and 0.7 MB of its text (JSON) a step.
MOST_STEPS = 100
#: No interpreter takes this long: what says so counts in another time than ours (a container with a /proc of its own making).
_LARGEST_AGE_S = 3600.0


class Stages:
    """Marks between the start of this process and its first step; after finish() they are final."""

    def __init__(self, age_s: float | None = None) -> None:
        """age_s: of this process, by default as the system says; where it does not (macOS) the count begins here."""
        age_s = process_age_s() if age_s is None else age_s
        self._last = time.monotonic()
        self._seconds: dict[str, float] = {} if age_s is None else {"python": age_s}
        self.is_over = False

    def mark(self, name: str) -> None:
        """What was done since the last mark was this. Marks of one name add up, and none counts after finish()."""
        if not self.is_over:
            now = time.monotonic()
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
            self._last = now

    def finish(self) -> None:
        """The first step is done."""
        self.mark("step")
        self.is_over = True

    def to_dict(self) -> dict[str, float]:
        """after_s, from the process's start to the last mark, and <name>_s of every stage in the order of their first marks."""
        return {"after_s": round(sum(self._seconds.values()), 3), **{f"{name}_s": round(value, 3) for name, value in self._seconds.items()}}

    def line(self) -> str:
        """The line of the log."""
        return "first_step " + " ".join(f"{name}={value:.2f}" for name, value in self.to_dict().items())

    def report(self, folder: RunFolder, generation: int) -> None:
        """One line in the log, and the numbers beside the claim. Best effort: a full disk must not end a run that has just begun."""
        log.info("%s", self.line())
        path = folder.environment(generation)
        try:
            facts = parse_json(path.read_text()) if path.exists() else {}
            write_json_durably(path, {**facts, "first_step": self.to_dict()})
        except (OSError, ValueError) as error:
            log.warning("first_step_not_recorded error=%s training goes on", error)


def process_age_s() -> float | None:
    """Seconds since this process was started, to 10 ms; None where the system does not say, or nothing that can be believed."""
    if sys.platform == "linux":
        state = process_state(os.getpid())
        with contextlib.suppress(OSError, ValueError, TypeError):
            # proc(5): in clock ticks since boot, the time in which the machine slept included.
            started = int(state[1]) / os.sysconf("SC_CLK_TCK") if state else None
            age = None if started is None else time.clock_gettime(time.CLOCK_BOOTTIME) - started
            return age if age is not None and 0 <= age < _LARGEST_AGE_S else None
    return None
