"""Stop requests: handlers that only set a flag, and a thread that ends the process at once while there is nothing to save.

Imports nothing heavy, because it must be in place before torch is. One invariant: once an attempt is at its first optimiser step nothing
here ends the process; the training loop does, at a step boundary.
"""

import ctypes
import functools
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

_PR_SET_PDEATHSIG = 1

#: How often a rank that has not begun asks whether another one has left for good.
LOOK_S = 0.5


class StopFlag:
    """Whether somebody asked this process to stop, and by which signal first."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._at_once: Callable[[str], None] | None = None
        self._leaving = threading.Lock()

    @property
    def is_set(self) -> bool:
        return self.signal_name is not None

    def install(self, at_once: Callable[[str], None] | None = None, look: Callable[[], str | None] = lambda: None) -> None:
        """Take over SIGTERM, SIGINT, SIGUSR1 and SIGUSR2, then unblock them: a parent may have started us with them blocked.

        at_once: called in a thread of ours until first_step() is, because before the first step there is nothing to save: with the
        signal's name, or with what look, asked twice a second, says is a reason to leave.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)
        if at_once is not None:
            self._at_once = at_once
            self._watch(look)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def first_step(self) -> None:
        """From now on a signal only sets the flag."""
        if self._at_once is not None:
            with self._leaving:  # whoever is leaving does so
                self._at_once = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name

    def _watch(self, look: Callable[[], str | None]) -> None:
        # Python's handlers wait for the main thread, and that may be in a rendezvous for minutes; C's handler writes into this pipe.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._leave_at_once, args=(reading, look), name="stop", daemon=True).start()

    def _leave_at_once(self, wakeups: int, look: Callable[[], str | None]) -> None:
        while self._at_once is not None:
            if select.select([wakeups], [], [], LOOK_S)[0]:
                names = [signal.Signals(number).name for number in os.read(wakeups, 64) if number in STOP_SIGNALS]
                self.signal_name = self.signal_name or next(iter(names), None)
            reason = self.signal_name or look()
            with self._leaving:
                if reason is not None and self._at_once is not None:
                    self._at_once(reason)


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
