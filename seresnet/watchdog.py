"""The watchdog of a rank: no progress for too long, and it writes down where every thread is, says `hung` and ends the process.

Imports nothing heavy, because it watches the start too. What it cannot see, a stopped process or a lock of the interpreter that is
never given back, is the supervisor's to see (hpc.progress_watch), by the counter that is written here. One invariant: only time
in which this process ran is counted, so that a suspended job does not wake up hung.
"""

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

#: Without a step for 20 median steps, and for 120 s at least, a rank hangs.
STEPS = 20
LEAST_S = 120.0
#: Before the first step there is no median: data is prepared, CUDA and NCCL start, a network is compiled. In units of LEAST_S.
START_FACTOR = 15.0
#: The slowest save seen was 41 s on NFS (ADR 4), and several may wait in line.
SAVE_FACTOR = 5.0
TICK_S = 1.0
#: Beside the ranks' progress: one of them hangs, and all write down where they are. The supervisor leaves them 3 s for it.
HUNG_MARK = "hung"
#: NCCL keeps what its last collectives did; how many, unless the user has said so.
FLIGHT_RECORDS = "2000"
FLIGHT_LIMIT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a rank last wrote of itself."""

    count: int
    limit_s: float  # so long it may take until the next count


def read_progress(path: Path) -> Progress | None:
    """None before the first word, and for half a word."""
    try:
        count, limit_s = path.read_text().split()
        return Progress(count=int(count), limit_s=float(limit_s))
    except (OSError, ValueError):
        return None


class Watchdog:
    """Counts this rank's signs of progress. Inert until start(), so that code that beats needs no other case."""

    def __init__(self, rank: int = 0, environ: Mapping[str, str] = os.environ) -> None:
        """SERESNET_WATCHDOG_S replaces LEAST_S and scales the rest; 0 turns the watchdog off, what is no number is passed over."""
        self.least_s = LEAST_S
        with contextlib.suppress(ValueError):
            self.least_s = float(environ.get("SERESNET_WATCHDOG_S") or LEAST_S)
        self._file = Path(environ["SERESNET_PROGRESS"]) / f"progress-{rank}" if environ.get("SERESNET_PROGRESS") else None
        self._steps: deque[float] = deque(maxlen=101)
        self._last_step: float | None = None
        self._is_main = rank == 0
        self._is_saving = False
        self._count = 0

    @property
    def limit_s(self) -> float:
        """How long nothing may happen now."""
        if not self._steps:
            return START_FACTOR * self.least_s
        # Rank 0 alone writes, and the others wait for it in their next step without knowing why.
        is_patient = self._is_saving or not self._is_main
        return max(STEPS * statistics.median(self._steps), self.least_s * (SAVE_FACTOR if is_patient else 1.0))

    def start(self, bark: Callable[[float], NoReturn]) -> "Watchdog":
        """Watch from now on. bark: called from a thread of ours, with the seconds that nothing happened; it must end the process."""
        if self.least_s > 0:
            os.environ.setdefault("TORCH_FR_BUFFER_SIZE", FLIGHT_RECORDS)  # read when NCCL starts
            self._write()
            threading.Thread(target=self._run, args=(bark,), name="watchdog", daemon=True).start()
        return self

    def expect_compiling(self) -> None:
        """The first step, evaluation and smaller batch will each take minutes."""
        self.least_s *= SAVE_FACTOR

    def step(self) -> None:
        """An optimiser step is done."""
        now = time.monotonic()
        if self._last_step is not None:
            self._steps.append(now - self._last_step)
        self._last_step = now
        self._count += 1

    def beat(self) -> None:
        """Something other than a step went on: a batch of an evaluation, a piece of the data. What follows is no step's time."""
        self._last_step = None
        self._count += 1

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """A stretch in which a slow disk, and not the device, says how long it takes."""
        self._is_saving = True
        self.beat()
        try:
            yield
        finally:
            self.beat()
            self._is_saving = False

    def _run(self, bark: Callable[[float], NoReturn]) -> None:
        tick_s = min(TICK_S, self.least_s / 10)
        idle_s, seen, before = 0.0, self._count, time.monotonic()
        while True:
            limit_s = self.limit_s
            # A timer of C, moved on for as long as this thread gets the interpreter's lock: without it the log has the stacks.
            faulthandler.dump_traceback_later(limit_s + 10 * tick_s, file=sys.__stderr__ or sys.stderr)
            time.sleep(tick_s)
            now = time.monotonic()
            idle_s = 0.0 if self._count != seen else idle_s + min(now - before, 2 * tick_s)
            seen, before = self._count, now
            if idle_s > limit_s:
                mark_hung(self._file and self._file.parent)
                bark(idle_s)
            if self._file is not None and (self._file.parent / HUNG_MARK).exists():
                bark(idle_s)  # the stacks of those who wait say little without those of the one who does not come
            if idle_s == 0.0:
                self._write()

    def _write(self) -> None:
        """For the supervisor. Best effort: on a full node-local disk the rank is watched by itself alone."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            handle = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.write(handle, b"%020d %012.1f\n" % (self._count, self.limit_s))  # of one width, in place: never half a number
            finally:
                os.close(handle)


def mark_hung(folder: Path | None) -> None:
    """Let every rank of this node write down where it is. Best effort."""
    if folder is not None:
        with contextlib.suppress(OSError):
            (folder / HUNG_MARK).touch()


def dump_flight_record(path: Path, limit_s: float = FLIGHT_LIMIT_S) -> None:
    """What NCCL's last collectives did, as JSON, if this process uses a GPU. Best effort: NCCL's own locks may be what hangs."""
    torch, c10d = sys.modules.get("torch"), sys.modules.get("torch._C._distributed_c10d")
    dump = getattr(c10d, "_dump_nccl_trace_json", None)
    if torch is None or dump is None or not torch.cuda.is_initialized():
        return

    def write() -> None:
        with contextlib.suppress(Exception):
            record = dump()
            path.write_bytes(record if isinstance(record, bytes) else str(record).encode())

    thread = threading.Thread(target=write, name="flight-record", daemon=True)
    thread.start()
    thread.join(limit_s)


def dump_stacks(path: Path) -> None:
    """Where every thread of this process is, into a file that is best effort: the disk may be what hangs."""
    with contextlib.suppress(OSError), open(path, "w") as file:
        faulthandler.dump_traceback(file, all_threads=True)
