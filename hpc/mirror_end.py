"""How a mirror ends: told to stop, told that its task is over, or left by its parent; and calls of wandb that never come back.

Imports no wandb. One invariant: whatever wandb does, this process is gone within a known time of being asked, and takes its core along.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

#: How long W&B may take for the last rows of a run when its task is over; the task waits for it, and for 5 s more.
FINISH_TIMEOUT_S = 20.0
#: The supervisor allows 5 s after SIGTERM; what is left is for killing a frozen core.
STOP_WITHIN_S = 4.5
#: A call that only hands something to wandb-core takes milliseconds. Longer than this and the core is taken for frozen.
CALL_LIMIT_S = 20.0
#: The same once we were asked to end: what is left of our time is for another core.
HURRIED_LIMIT_S = 2.0

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_LOOK_S = 0.1


class Stop:
    """Whether this process was asked to end, and a clock that sees to it. A second thread watches; it takes no lock of the first."""

    def __init__(self, finish_timeout_s: float = FINISH_TIMEOUT_S, scratch: Path | None = None) -> None:
        self.is_told = False  # a signal, or the parent is dead: a few seconds are left
        self.is_end = False  # the task is over: as long as W&B may take for the last rows
        self.last_words: Callable[[], None] = lambda: None  # called before the end by force, if it takes no time
        self.finish_timeout_s, self._scratch = finish_timeout_s, scratch
        self._parent: int | None = None
        self._end_fd: int | None = None
        self._call: tuple[float, float, bool] | None = None  # began, may take, may take as long also when hurried

    @property
    def is_set(self) -> bool:
        return self.is_told or self.is_end

    def install(self, *, with_parent: bool, end_fd: int | None = None) -> None:
        """Let the stop signals tell, with_parent the parent's death, and end_fd's end of file; then unblock what a parent blocked."""
        self._parent = os.getppid() if with_parent else None
        self._end_fd = end_fd
        for number in _STOP_SIGNALS:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Sleep so long, or until asked to end; True if asked."""
        deadline = time.monotonic() + seconds
        while not self.is_set and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return self.is_set

    @contextlib.contextmanager
    def within(self, seconds: float, *, is_patient: bool = False) -> Iterator[None]:
        """A call of wandb. If it takes longer its core is killed, and the call raises. is_patient: it waits for a server."""
        self._call = (time.monotonic(), seconds, is_patient)
        try:
            yield
        finally:
            self._call = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Nothing but a flag: an Event or a Timer takes locks that the interrupted code may hold.
        self.is_told = True

    def _watch(self) -> None:
        told_at = end_at = None
        while True:
            time.sleep(_LOOK_S)
            now = time.monotonic()
            self.is_told = self.is_told or (self._parent is not None and os.getppid() != self._parent)
            self.is_end = self.is_end or self._is_at_end()
            told_at = told_at or (now if self.is_told else None)
            end_at = end_at or (now if self.is_end else None)
            if told_at is not None and now > told_at + STOP_WITHIN_S:
                self._leave()
            if end_at is not None and now > end_at + self.finish_timeout_s + STOP_WITHIN_S:
                self._leave()
            self._end_a_call_without_end(now, min((when for when in (told_at, end_at) if when is not None), default=None))

    def _is_at_end(self) -> bool:
        if self._end_fd is None or not select.select([self._end_fd], [], [], 0)[0]:
            return False
        return not os.read(self._end_fd, 64)

    def _end_a_call_without_end(self, now: float, hurried_since: float | None) -> None:
        call = self._call
        if call is None:
            return
        began, limit_s, is_patient = call
        is_late = now > began + limit_s
        if hurried_since is not None and not is_patient:
            is_late = is_late or now > max(began, hurried_since) + HURRIED_LIMIT_S
        if is_late:
            self._call = None
            kill_children()

    def _leave(self) -> None:
        words = threading.Thread(target=self.last_words, daemon=True)
        words.start()
        words.join(0.3)  # a dead file system must not keep us
        leave(0, self._scratch)


def leave(code: int, scratch: Path | None = None) -> None:
    """End this process now. Its children go first: a frozen wandb-core would outlive it, and wandb's own exit would wait for it."""
    kill_children()
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def kill_children() -> None:
    """SIGKILL to each child by its pid: wandb-core leads a session of its own, which no signal to our group reaches (seen)."""
    for pid in children():
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def children(pid: int | None = None) -> list[int]:
    """Pids of direct children of a process, by default this one; empty where /proc does not list them (macOS: wandb-core ends by
    itself when its parent is gone).
    """
    found: list[int] = []
    for path in Path(f"/proc/{pid or 'self'}/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            found += map(int, path.read_text().split())
    return found


def has_live_child() -> bool | None:
    """Whether a child of ours runs, or is at least frozen and no corpse; None where the system does not say."""
    if not sys.platform.startswith("linux"):
        return None
    states = []
    for pid in children():
        with contextlib.suppress(OSError, IndexError):
            states.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
    return any(state not in "ZX" for state in states)
