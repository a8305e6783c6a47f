"""Tasks as child processes of the launcher, where there is no scheduler: so many at a time, stopped together, watched as they go.

A child is `python -m hpc.supervisor --sweep DIR --task ID` in the code snapshot, exactly what a SLURM task runs. One invariant:
whatever ends the launcher, every child is asked to save; where it can wait for them, none is left behind.
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from rich.console import Console

from hpc.paths import Submission, SweepFolder
from hpc.progress_view import RunProgress, showing
from seresnet.errors import SubmissionError

_POLL_S = 0.1
#: Saving is one checkpoint of a small network; the supervisor itself gives its ranks 12 s and its mirror 8 s.
_GRACE_S = 40.0
#: Two requests within it are one: a key pressed twice, or a wrapper that passes on what the process group has got already (seen).
_TAP_S = 1.0
#: A child that took the job around this launcher for its own would requeue it. SLURM_CONF is how clients find the controller; and with
#: PYTHONSAFEPATH `python -m` does not look into the working directory, which is the snapshot.
NOT_FOR_CHILDREN = re.compile(r"(SLURMD?_(?!CONF$|CLUSTERS$)|SBATCH_|SRUN_|SUBMITIT_|PMIX?_|PYTHONSAFEPATH$)")

Listed = Mapping[str, Literal["pending", "running"]]  # task -> whether it waits here or runs; those that ended are absent
Look = Callable[[Listed], Sequence[RunProgress]]  # -> a row a run


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """A task and what it occupies while it runs."""

    name: str
    processes: int = 1  # ranks that train at once, of all runs that are side by side
    threads: int = 1  # CPU threads of each of them
    gpus: int = 0

    @property
    def cores(self) -> int:
        return self.processes * self.threads


@dataclass(frozen=True, kw_only=True)
class Room:
    """How much may run at once: max_parallel tasks if that is given, else as many as the cores hold; one always may."""

    cores: int
    max_parallel: int | None = None

    def has_place(self, running: Iterable[LocalTask], task: LocalTask) -> bool:
        """Whether task may start beside those that run."""
        beside = list(running)
        if self.max_parallel is not None:
            return len(beside) < self.max_parallel
        return not beside or sum(other.cores for other in beside) + task.cores <= self.cores

    def __str__(self) -> str:
        if self.max_parallel is None:
            return f"as many tasks at a time as {self.cores} cores hold"
        return "1 task at a time" if self.max_parallel == 1 else f"{self.max_parallel} tasks at a time"


@dataclass
class _Children:
    """What runs and what waits. Mutable, because that is all it is about."""

    waiting: list[LocalTask]
    gpus: list[str]  # free ones, as CUDA_VISIBLE_DEVICES names them
    running: dict[LocalTask, subprocess.Popen[bytes]] = field(default_factory=dict)
    leased: dict[LocalTask, list[str]] = field(default_factory=dict)
    stop_requests: int = 0
    asked_at: float = -math.inf  # on the monotonic clock

    def start_what_fits(self, room: "Room", start: Callable[[LocalTask, list[str]], subprocess.Popen[bytes]]) -> None:
        """Start waiting tasks, in order, while there is room and there are GPUs for the next one."""
        while self.waiting and room.has_place(self.running, self.waiting[0]):
            task = self.waiting[0]
            if task.gpus > len(self.gpus):
                return
            self.leased[task], self.gpus = self.gpus[: task.gpus], self.gpus[task.gpus :]
            self.running[task] = start(self.waiting.pop(0), self.leased[task])

    def reap(self) -> None:
        """Take note of the tasks that have ended, and of the GPUs they give back."""
        for task in [task for task, child in self.running.items() if child.poll() is not None]:
            del self.running[task]
            self.gpus += self.leased.pop(task)

    def listed(self) -> Listed:
        """What there still is of the tasks."""
        running: Listed = {task.name: "running" for task in self.running}
        return {**running, **{task.name: "pending" for task in self.waiting}}

    def send(self, number: signal.Signals) -> None:
        """Signal every running supervisor; its ranks are its own to stop."""
        for child in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    def stop_and_wait(self) -> None:
        """Ask what runs to save, and return when it has ended: the caller holds the lock that says that these tasks have somebody."""
        self.waiting.clear()
        self.send(signal.SIGTERM)
        asked = time.monotonic()
        while self.running:
            if self.stop_requests > 1 or time.monotonic() - asked > _GRACE_S:
                self.send(signal.SIGKILL)
            time.sleep(_POLL_S)
            self.reap()


def run_local(sweep: SweepFolder, submission: Submission, tasks: Sequence[LocalTask], room: Room, console: Console, look: Look) -> bool:
    """Run the tasks of a submission to their end, showing progress; True if somebody asked to stop before that.

    The first SIGINT, SIGTERM or SIGHUP stops everything at a durable checkpoint, a second one that comes a second later or more kills
    what is left.
    """
    children = _Children(waiting=list(tasks), gpus=visible_gpus() if any(task.gpus for task in tasks) else [])
    code = sweep.code(submission.code).resolve()

    def start(task: LocalTask, gpus: list[str]) -> subprocess.Popen[bytes]:
        return _start(sweep, task, gpus, code)

    with _catching(children), showing(console) as show:
        stopping_since: float | None = None
        while children.waiting or children.running:
            if children.stop_requests and stopping_since is None:
                stopping_since = time.monotonic()
                children.waiting.clear()
                children.send(signal.SIGTERM)
                console.print("stopping: every run saves its state first; once more to kill at once")
            if children.stop_requests > 1 or (stopping_since is not None and time.monotonic() - stopping_since > _GRACE_S):
                children.send(signal.SIGKILL)
            children.start_what_fits(room, start)
            show(lambda: look(children.listed()), False)
            time.sleep(_POLL_S)
            children.reap()
        show(lambda: look({}), True)
    return children.stop_requests > 0


def check_fits(tasks: Sequence[LocalTask]) -> None:
    """Raise SubmissionError if a task needs more GPUs than this machine shows; it would wait for ever."""
    needed = max((task.gpus for task in tasks), default=0)
    gpus = visible_gpus() if needed else []
    if needed > len(gpus):
        raise SubmissionError(
            f"train.device is cuda and a task needs {needed} GPU{'s' if needed > 1 else ''}, but this machine shows {len(gpus)}. "
            "Use train.device=cpu train.amp=off, fewer ranks, or launch where the GPUs are."
        )


def cores() -> int:
    """Cores this process may use; macOS has no affinity to ask for."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """What may stand in CUDA_VISIBLE_DEVICES, one each; asks nvidia-smi where nobody has restricted it. No torch here."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() and name.strip() != "-1"]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split()


def _start(sweep: SweepFolder, task: LocalTask, gpus: list[str], code: Path) -> subprocess.Popen[bytes]:
    # Not the site's python: that one is for the job side, and may need its container.
    command = [*_bound(), sys.executable, "-m", "hpc.supervisor", "--sweep", str(sweep.path.resolve()), "--task", task.name]
    environ = {name: value for name, value in os.environ.items() if not NOT_FOR_CHILDREN.match(name)}
    if task.gpus:
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    log = sweep.task_log(task.name)
    try:
        log.parent.mkdir(exist_ok=True)  # not with the folders above it: the sweep may have been moved
        with open(log, "ab") as output:
            # A session of its own: Ctrl-C on the terminal reaches the launcher alone, which then asks each child once.
            return subprocess.Popen(
                command, cwd=code, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
    except OSError as error:
        why = f"task {task.name} cannot be started: {error.strerror}"
        raise SubmissionError(f"{error.filename or log}: {why}. If the sweep was moved, launch it where it is now.") from error


def _bound() -> list[str]:
    """Words before a command that then is asked to save when the launcher dies, however it dies: nobody else would stop it.

    SIGTERM and not SIGKILL: a supervisor stops its ranks at a durable checkpoint. It is set in the child and not between fork and exec:
    the launcher draws its progress in a thread. Linux alone can do it; elsewhere a killed launcher leaves its tasks to finish.
    """
    return [sys.executable, "-I", "-S", "-c", _BIND, str(os.getpid())] if sys.platform.startswith("linux") else []


#: 1 is PR_SET_PDEATHSIG, which survives exec. The parent may be gone before it is set.
_BIND = f"""\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)})
os.getppid() == int(sys.argv[1]) or os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def _catching(children: _Children) -> Iterator[None]:
    def count(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - children.asked_at >= _TAP_S:
            children.stop_requests, children.asked_at = children.stop_requests + 1, now

    before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        children.stop_and_wait()  # something runs here only after an error of our own
        for number, handler in before.items():
            signal.signal(number, handler)
