"""Stop requests: handlers that only set a flag. Imports nothing heavy, because it must be in place before torch is.

One invariant: once an attempt is at its first optimiser step no handler ends the process; the training loop does, at a step boundary.
"""

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

_PR_SET_PDEATHSIG = 1


class StopFlag:
    """Whether somebody asked this process to stop, and by which signal first."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._at_once: Callable[[str], None] | None = None

    @property
    def is_set(self) -> bool:
        return self.signal_name is not None

    def install(self, at_once: Callable[[str], None] | None = None) -> None:
        """Take over SIGTERM, SIGINT, SIGUSR1 and SIGUSR2, then unblock them: a parent may have started us with them blocked.

        at_once: called with the signal's name until first_step() is, because before the first step there is nothing to save.
        """
        self._at_once = at_once
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def first_step(self) -> None:
        """From now on a signal only sets the flag."""
        self._at_once = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name
        if self._at_once is not None:
            self._at_once(self.signal_name)


def die_with_parent(expected_parent: int | None = None) -> None:
    """Ask the kernel to SIGKILL this process when its parent dies (Linux; elsewhere nothing happens).

    expected_parent: the parent's pid as the parent gave it; if it is gone already, exit at once.
    """
    if not sys.platform.startswith("linux"):
        return
    prctl()(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(1)


@functools.cache
def prctl() -> Callable[[int, int], int]:
    """Linux's prctl(), loaded at the first call: a forked child of a process with threads must not be the one to load it."""
    call: Callable[[int, int], int] = ctypes.CDLL(None, use_errno=True).prctl
    return call
