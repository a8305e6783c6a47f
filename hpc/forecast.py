"""When a sweep is likely to be done: the tasks that run, and those that wait, at the pace and with the width of now.

Pure. One invariant: it never names a time that rests on a guess about a pace that nobody has measured.
"""

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc.progress_view import RunProgress
from hpc.states import OWNED


@dataclass(frozen=True, kw_only=True)
class TaskLeft:
    """What is left of one task."""

    seconds: float
    is_running: bool
    start: float | None = None  # unix time that the scheduler expects, of a task that waits


def likely_done(rows: Sequence[RunProgress], at_a_time: Mapping[str, int], starts: Mapping[str, float], now: float) -> float | None:
    """Unix time at which the last run that somebody has will be done; None if nobody can say yet, or nobody has any.

    at_a_time: task -> runs of it that train side by side. starts: task -> expected start.
    """
    tasks = tasks_left(rows, at_a_time, starts)
    return None if not tasks else last_end(tasks, now)


def tasks_left(rows: Sequence[RunProgress], at_a_time: Mapping[str, int], starts: Mapping[str, float]) -> list[TaskLeft] | None:
    """None if the pace of a run that is to come is not known."""
    paces = [row.epoch_s for row in rows if row.epoch_s is not None]
    usual_s = statistics.median(paces) if paces else None
    packs: dict[str, list[RunProgress]] = {}
    for row in rows:
        if row.run.state in OWNED:
            packs.setdefault(row.run.task or row.run.run_id, []).append(row)
    tasks = []
    for task, pack in packs.items():
        left = [_left_s(row, usual_s) for row in pack]
        known = [seconds for seconds in left if seconds is not None]
        if len(known) < len(left):
            return None
        is_running = any(row.run.state in ("running", "waiting") for row in pack)
        seconds = max(max(known), sum(known) / at_a_time.get(task, 1))
        tasks.append(TaskLeft(seconds=seconds, is_running=is_running, start=starts.get(task)))
    return tasks


def last_end(tasks: Sequence[TaskLeft], now: float) -> float | None:
    """Waiting tasks start in order, as soon as one that runs has ended, or when the scheduler expects them to, whichever is later."""
    places = [now + task.seconds for task in tasks if task.is_running]
    waiting = [task for task in tasks if not task.is_running]
    if not places and any(task.start is None for task in waiting):
        return None
    heapq.heapify(places)
    ends = list(places)
    for task in waiting:
        free = heapq.heappop(places) if places and task.start is None else now
        end = max(free, task.start or now) + task.seconds
        heapq.heappush(places, end)
        ends.append(end)
    return max(ends)


def _left_s(row: RunProgress, usual_s: float | None) -> float | None:
    pace = row.epoch_s if row.epoch_s is not None else usual_s
    if pace is None or row.epochs is None:
        return None
    return max(0, row.epochs - row.epoch) * pace
