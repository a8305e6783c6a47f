"""The table of a sweep, written by the task that ends its last run, so that it waits for the user.

A child process does it, `python -m hpc.collect SWEEP`, with a time limit; its words go to logs/table.txt. Four invariants: a stop
request ends it at once, nothing of it reaches the task's exit code, who cannot know whether a run has somebody lets it be, and it is
left to nobody else before that table is there.
"""

import contextlib
import hashlib
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hpc import hold, locks, queues
from hpc.paths import Plan, Submissions, SweepFolder
from hpc.ranks import POLL_S, UNKILLABLE_S, kill_group, start_process
from hpc.states import MISSING, Queue, facts_of, state_of
from hpc.task import Task
from seresnet.claims import this_process

log = logging.getLogger("hpc.supervisor")

#: The environment variable that keeps tasks from making tables: HPC_TABLE_AT_END=off.
SWITCH = "HPC_TABLE_AT_END"
#: For waiting and writing. 1,000 runs of a few arms take seconds, 400 arms of one run took 30 s (seen); the devices idle meanwhile.
LIMIT_S = 120.0


def write_if_last(task: Task, command: Sequence[str] | None = None, limit_s: float = LIMIT_S) -> None:
    """Make the table if every run of the sweep is finished or has nobody any more. Raises nothing. command: in place of hpc.collect."""
    if task.env.get(SWITCH, "").lower() == "off" or task.should_stop():
        return
    try:
        waits_for = _who_has_one(task.sweep, task.name)
        if waits_for:
            log.info("table=later waits_for=%s", waits_for)
            return
        deadline = time.monotonic() + limit_s  # for waiting and writing together: the task's devices idle meanwhile
        seen, lock = _seen(task), task.sweep.path / ".table.lock"
        with _alone(task, lock, deadline) as is_mine:
            if is_mine and lock.read_text() == seen and (task.sweep.path / "table.md").exists():
                log.info("table=%s made_by=another task, of the same records", task.sweep.path / "table.md")
            elif is_mine:
                argv = command or (sys.executable, "-m", "hpc.collect", str(task.sweep.path.resolve()))
                if _write(task, argv, deadline, limit_s):
                    with contextlib.suppress(OSError):  # then the next one makes it again
                        lock.write_text(seen)
    except Exception as error:  # the runs are trained, and that is what this task is judged by
        log.warning("table=none error=%s", error)


def _who_has_one(sweep: SweepFolder, own_task: str) -> str | None:
    """A run that somebody else has or may have, in words; None if there is none. What this task has not finished, nobody has."""
    plan, here = Plan.read(sweep), this_process()
    cancelled = hold.cancelled_runs(sweep, plan)
    newest = {run_id: task for task, run_ids in plan.tasks.items() for run_id in run_ids}
    has_result = {run_id: sweep.run_folder(run_id, plan).result.exists() for run_id, entry in plan.runs.items() if entry.arms}
    queue: Queue | None = None
    # Those without a result first, from the end: the first look mostly says that others are still at work.
    backwards = [*has_result][::-1]
    for run_id in [run_id for wanted in (False, True) for run_id in backwards if has_result[run_id] is wanted]:
        facts = facts_of(sweep.run_folder(run_id, plan), here, run_id=run_id)
        state = state_of(plan, run_id, facts, None, Queue(), run_id in cancelled).state
        task = newest.get(run_id)
        if state in MISSING and task is not None and task != own_task:
            queue = queue or _ask(sweep, plan, has_result)
            # Where nobody answers it counts as queued: that run's task will look again.
            state = "queued" if task in queue.tasks or (queue.problem and task not in queue.asked) else state
        if state in ("running", "queued"):
            return f"{plan.runs[run_id].slug} ({state})"
    return None


def _ask(sweep: SweepFolder, plan: Plan, has_result: Mapping[str, bool]) -> Queue:
    finished = {run_id for run_id, is_there in has_result.items() if is_there}
    return queues.look(sweep, plan, Submissions.read(sweep).submissions, finished=finished)


@contextlib.contextmanager
def _alone(task: Task, lock: Path, deadline: float) -> Iterator[bool]:
    """Wait for another task that makes a table: it may fail, or have looked before our last run had ended. False: we are to stop."""
    while not task.should_stop() and time.monotonic() < deadline:
        with locks.holding(lock) as is_mine:
            if is_mine:
                yield True
                return
        time.sleep(POLL_S)
    yield False


def _seen(task: Task) -> str:
    """A digest of names, sizes, times and inodes of the records that a table is made from, as they are now.

    Looked at before the table is begun: whoever finds the same later, with the files of its own runs among them, would make the same
    table. A file system that shows another machine's files late makes them differ, and then a table is made twice.
    """
    sweep, plan = task.sweep, Plan.read(task.sweep)
    folders = [sweep.run_folder(run_id, plan) for run_id in sorted(plan.runs)]
    paths = [path for path in sorted(sweep.path.glob("*.json")) if path.name != "table.json"]
    for folder in folders:
        paths += [folder.run_yaml, folder.result, *sorted(folder.attempts.glob("*")), *sorted(folder.metrics.glob("*"))]
    digest = hashlib.sha256(str(task.code_dir).encode())
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            digest.update(repr((path.relative_to(sweep.path).parts, facts.st_size, facts.st_mtime_ns, facts.st_ino)).encode())
    return digest.hexdigest()


def _write(task: Task, command: Sequence[str], deadline: float, limit_s: float) -> bool:
    """Run it; whether it made a table."""
    task.sweep.logs.mkdir(exist_ok=True)
    words = task.sweep.logs.resolve() / "table.txt"
    began, said = time.monotonic(), words.stat().st_size if words.exists() else 0
    # In its own group, which dies with us: nothing that it starts outlives the task.
    process = start_process(command, env=task.env, cwd=task.code_dir, log=words)
    why = None
    try:
        while process.poll() is None and why is None:
            why = task.should_stop() or (f"it took more than {limit_s:.0f} s" if time.monotonic() > deadline else None)
            time.sleep(POLL_S)
    finally:
        kill_group(process)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a dead file system: the task must not wait for it
            process.wait(timeout=UNKILLABLE_S)
    if why is None and process.returncode == 0:
        log.info("table=%s seconds=%.1f", task.sweep.path / "table.md", time.monotonic() - began)
        return True
    with open(words, "rb") as file:
        file.seek(said)
        last = file.read().decode(errors="replace").strip().rpartition("\n")[2]
    by_hand = f"python -m hpc.collect {shlex.quote(str(task.sweep.path))}"
    log.warning("table=incomplete reason=%s; by hand: %s", why or last or f"exit {process.returncode}", by_hand)
    return False
