"""The runs of a task: one after another, or so many side by side; tried again after their siblings, stopped together.

One attempt is attempt_runner's. Everything goes on in one loop of the main thread, because the kernel ties a rank's life to the
thread that started it. One invariant: what one run does, or how long its claim or its end takes, keeps no other from being watched.
"""

import contextlib
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc import hold, requeue
from hpc.attempt_runner import AttemptRunner, Nothing, note
from hpc.later import Later
from hpc.memory_kills import MemoryKills
from hpc.mirror_child import MirrorChild
from hpc.nodes import Team
from hpc.paths import Plan
from hpc.ranks import POLL_S, Description
from hpc.slots import Slot, own_cpus, slots
from hpc.task import Task
from seresnet import journal
from seresnet.errors import ToolkitError
from seresnet.exits import is_gpu_fault

log = logging.getLogger("hpc.supervisor")

#: Under MPS a fatal fault of one client ends the others within moments; the first to fall is taken for its cause.
BLAME_S = 5.0
#: What a neighbour's memory may have caused: tried again with the machine to itself.
_ALONE = frozenset({"out_of_memory", "killed"})


@dataclass(kw_only=True)
class _Queue:
    """Which runs are still to be trained, and in which order: siblings first, then those that failed, some of them alone."""

    waiting: deque[str]
    again: deque[str] = field(default_factory=deque)  # failed; after their siblings
    failed: set[str] = field(default_factory=set)
    alone: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.waiting or self.again)

    def next(self, live: Sequence[str]) -> str | None:
        """Take the run to start beside the live ones; None if none may start now."""
        if self.alone & set(live):
            return None
        if self.waiting:
            return self.waiting.popleft()
        if not self.again or not self.failed.issuperset(live) or (live and self.again[0] in self.alone):
            return None
        return self.again.popleft()

    def put_back(self, run_id: str, ending: str) -> None:
        """A run that ended before its time, and may be tried again."""
        if ending == "interrupted":
            self.waiting.append(run_id)
            return
        self.again.append(run_id)
        self.failed.add(run_id)
        if ending in _ALONE:
            self.alone.add(run_id)


def _poll(attempt: AttemptRunner, stop_reason: str | None) -> "Description | Nothing | None":
    """attempt.poll(); what goes wrong in it, such as no space for its ranks' meeting place, is this run's crash and no sibling's."""
    try:
        return attempt.poll(stop_reason)
    except Exception as error:
        log.exception("run=%s", attempt.run_id)
        return Description(ending="crashed", code=1, reason=f"its ranks could not be run: {type(error).__name__}: {error}")


class PackRunner:
    """All runs of one task, to their ends or to a stop request."""

    def __init__(self, task: Task, run_ids: Sequence[str], mirror: MirrorChild, team: Team | None = None) -> None:
        self.ended: dict[str, Description] = {}  # run id -> its last attempt in this task
        self.left_alone: set[str] = set()  # by the user's word
        self.is_held = False
        self._task, self._mirror, self._team = task, mirror, team
        self._queue = _Queue(waiting=deque(run_ids))
        self._free = list(slots(task.at_a_time, task.env, own_cpus()))
        self._live: list[AttemptRunner] = []
        self._stopped: list[tuple[AttemptRunner, Description]] = []  # wait for the scheduler's word
        self._look: Later[requeue.Verdict] | None = None
        self._telling: list[Later[None]] = []
        self._tries = 0
        self._memory = MemoryKills()
        self._last_gpu_fault: float | None = None

    def use_files(self) -> list[Path]:
        """Where a sample of GPU use goes now."""
        return [path for attempt in list(self._live) if (path := attempt.use_file) is not None]

    def run(self) -> None:
        """Everything that is to be done, or until a stop request has been met."""
        try:
            while self._has_work():
                if self._team is not None:
                    self._team.listen()  # also between two runs: a stop request may come to another node alone
                self._step(self._task.should_stop())
                time.sleep(POLL_S)
        finally:
            for attempt in (*self._live, *(attempt for attempt, _ in self._stopped)):
                attempt.close()

    def _has_work(self) -> bool:
        if self._live or self._stopped:
            return True
        if self._task.should_stop():
            return False
        # The next run starts after the last failure has been counted, or it would start in a sweep that is to be held.
        return bool(self._queue and not self.is_held) or not all(telling.is_done for telling in self._telling)

    def _step(self, stop_reason: str | None) -> None:
        if stop_reason:
            self._mirror.ask_to_stop()  # together with the ranks: one after the other would not fit into the grace
        else:
            self._mirror.keep_alive()
            self._start_what_fits()
        for attempt in list(self._live):
            ended = _poll(attempt, stop_reason)
            if ended is not None:
                self._live.remove(attempt)
                self._take(attempt, ended)
        self._finish_stopped()

    def _start_what_fits(self) -> None:
        if self.is_held or not all(telling.is_done for telling in self._telling):
            return
        while self._free:
            run_id = self._queue.next([attempt.run_id for attempt in self._live])
            if run_id is None or self._is_held_now():
                return
            if why := self._why_left_alone(run_id):
                log.info("run=%s left alone: %s", run_id, why)
                self.left_alone.add(run_id)
                continue
            if not self._live:
                self._memory.forget()
            self._tries += 1
            self._live.append(AttemptRunner(self._task, run_id, self._free.pop(0), self._tries, self._memory, self._team))

    def _is_held_now(self) -> bool:
        """Whether nothing of this sweep may start any more. What runs goes on, the rest waits for a launch."""
        try:
            why = hold.why_held(self._task.sweep)
        except (ToolkitError, OSError) as error:
            log.warning("hold_not_read error=%s", error)
            return False
        if why:
            log.warning("task=%s starts nothing more: %s", self._task.name, why)
            self.is_held = True
        return self.is_held

    def _why_left_alone(self, run_id: str) -> str | None:
        """--drop-removed or --cancel, also if it was said since this task began; where that cannot be read, as it was at the start."""
        task, plan, cancelled = self._task, self._task.plan, frozenset[str]()
        with contextlib.suppress(ToolkitError, OSError):
            plan, cancelled = Plan.read(task.sweep), hold.cancelled(task.sweep).get(task.name, frozenset())
        if run_id in cancelled:
            return "cancelled by the user"
        return "no longer asked for" if run_id in plan.runs and plan.runs[run_id].dropped else None

    def _take(self, attempt: AttemptRunner, ended: "Description | Nothing") -> None:
        """An attempt is over: keep it for the scheduler's word if it was stopped, else write down how it ended."""
        if isinstance(ended, Nothing):
            attempt.close()
            self._give_back(attempt.slot)
        elif ended.ending == "stopped":
            self._stopped.append((attempt, ended))
        else:
            self._record(attempt, self._without_blame(ended), None)

    def _finish_stopped(self) -> None:
        """Write down the stopped attempts once the scheduler has been asked why; one look serves all that stop together."""
        if not self._stopped:
            return
        if self._look is None:
            self._look = Later(self._task.job.judge, "look-at-job")
        if not self._look.is_done:
            return
        verdict, stopped, self._stopped = self._look.result(), self._stopped, []
        if not self._task.stop.is_set:
            self._look = None  # somebody told a rank to stop, not the task: the next one may have another reason
        for attempt, ended in stopped:
            self._record(attempt, ended, verdict)

    def _record(self, attempt: AttemptRunner, ended: Description, verdict: requeue.Verdict | None) -> None:
        ended = attempt.finish(ended, verdict)
        self._give_back(attempt.slot)
        run_id = attempt.run_id
        self.ended[run_id] = ended
        log.info("run=%s ending=%s code=%d reason=%s", run_id, ended.ending, ended.code, ended.reason)
        if ended.ending in requeue.RETRIED:
            self._queue.put_back(run_id, ended.ending)
        if ended.ending in requeue.FAILING | requeue.FINAL - {"finished"}:
            self._tell_of_failure(attempt, ended)

    def _tell_of_failure(self, attempt: AttemptRunner, ended: Description) -> None:
        """Let hold decide whether the sweep is broken as a whole. It locks and may ask Slurm: not in this thread."""
        sweep, plan, folder = self._task.sweep, self._task.plan, attempt.folder

        def tell() -> None:
            try:
                epochs = max((epoch.epoch for epoch in journal.read(folder)), default=0)
                why = hold.note_failure(sweep, plan, attempt.run_id, ended.ending, ended.reason, epochs)
            except (ToolkitError, OSError) as error:
                why = f"the failure could not be counted: {error}"
            if why:
                log.error("run=%s: %s", attempt.run_id, why)
                note(folder, why)

        self._telling.append(Later(tell, "tell-of-failure"))

    def _without_blame(self, ended: Description) -> Description:
        """Under MPS the first GPU fault is a run's own, and those right after it are its work on others."""
        if not (self._task.has_shared_gpu_contexts and ended.ending == "crashed" and is_gpu_fault(ended.reason)):
            return ended
        now, before = time.monotonic(), self._last_gpu_fault
        if before is None or now - before > BLAME_S:
            self._last_gpu_fault = now
            return ended
        return dataclasses.replace(ended, ending="interrupted", reason=f"interrupted by a sibling's GPU fault (MPS): {ended.reason}")

    def _give_back(self, slot: Slot) -> None:
        self._free = sorted([*self._free, slot], key=lambda free: free.index)
