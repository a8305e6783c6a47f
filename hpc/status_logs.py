"""`hpc.status --logs RUN`: the end of one run's log, where the rest lies, and with --watch what is added to it.

Reads. One invariant: what follows is printed once and in order, also when the log is begun anew or appears only later.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpc import queues
from hpc.paths import Plan, Submission, Submissions, SweepFolder, submission_id
from hpc.states import OWNED, read_facts, state_of
from hpc.status_watch import ASK_S
from seresnet.errors import ConfigError

LINES = 40
_FOLLOW_S = 1.0
_TAIL_BYTES = 64_000


def show(sweep: SweepFolder, name: str, *, follow: bool, sleep: Callable[[float], None] = time.sleep) -> int:
    """Print; 0. Raises ConfigError for a run that is not of this sweep."""
    plan = Plan.read(sweep)
    run_id = plan.find(name)
    folder = sweep.run_folder(run_id, plan)
    for path in task_logs(sweep, plan, run_id):
        print(f"task log: {path}")
    print(f"log: {folder.log}{'' if folder.log.exists() else ' (not there yet: the run writes it when it starts)'}", flush=True)
    place = _print_end(folder.log)
    if follow:
        try:
            for text in _added(folder.log, place, lambda: _is_owned(sweep, plan, run_id), sleep):
                sys.stdout.write(text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            print()
    return 0


def task_logs(sweep: SweepFolder, plan: Plan, run_id: str) -> list[Path]:
    """What the tasks that had this run wrote outside of its own log, oldest task first; only files that exist."""
    try:
        submissions = Submissions.read(sweep)
    except ConfigError:
        submissions = Submissions()
    found: list[Path] = []
    for task, run_ids in plan.tasks.items():
        entry = submissions.get(submission_id(task) or "") if run_id in run_ids else None
        if run_id in run_ids:
            found.append(sweep.task_log(task))
        if entry is not None and entry.job_id:
            found += sorted(sweep.logs.glob(f"{entry.job_id}_{task.partition('/')[2]}_*log.*"))
    return [path for path in found if path.exists()]


def _print_end(path: Path) -> int:
    """Print the last lines; returns how far the file was read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read()
    except OSError:
        return 0
    print(*(line.decode(errors="replace") for line in text.splitlines()[-LINES:]), sep="\n", flush=True)
    return size


def _added(path: Path, place: int, is_owned: Callable[[], bool], sleep: Callable[[float], None]) -> Iterator[str]:
    """What is appended from `place` on, until nobody has the run any more."""
    asked, owned = time.monotonic(), is_owned()
    while True:
        text, place = _read_from(path, place)
        if text:
            yield text.decode(errors="replace")
        elif not owned:
            return
        if time.monotonic() - asked >= ASK_S:
            asked, owned = time.monotonic(), is_owned()
        sleep(_FOLLOW_S)


def _read_from(path: Path, place: int) -> tuple[bytes, int]:
    try:
        with open(path, "rb") as file:
            if file.seek(0, 2) < place:
                place = 0
            file.seek(place)
            text = file.read()
    except OSError:
        return b"", place
    return text, place + len(text)


def _is_owned(sweep: SweepFolder, plan: Plan, run_id: str) -> bool:
    """Whether somebody has the run: by its own files where they say so, else by the queue."""
    facts = read_facts(sweep, plan, run_ids=[run_id])[run_id]
    if facts.is_beating or facts.is_finished:
        return facts.is_beating
    task = next((name for name in reversed(list(plan.tasks)) if run_id in plan.tasks[name]), None)
    queue = queues.look(sweep, plan, _submissions(sweep, task), plan.runs.keys() - {run_id})
    return state_of(plan, run_id, facts, task, queue).state in OWNED


def _submissions(sweep: SweepFolder, task: str | None) -> list[Submission]:
    try:
        entry = Submissions.read(sweep).get(submission_id(task or "") or "")
    except ConfigError:
        return []
    return [entry] if entry else []
