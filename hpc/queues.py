"""One look at whoever runs the tasks of a sweep: SLURM, asked once for all submissions, and the locks of local launchers.

An error of the scheduler proves nothing, and neither does the silence of another cluster's: both are handed on as the reason why
nobody knows, and never read as "not listed".
"""

import functools
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from hpc import locks, slurm
from hpc.paths import Plan, Submission, SweepFolder, submission_id
from hpc.states import Queue
from seresnet.errors import ConfigError
from seresnet.run_folder import RunFolder, is_finished

_PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")

Listed = dict[str, Literal["pending", "running"]]


def job_name(plan: Plan, submission_id: str) -> str:
    """What SLURM calls the array of a submission: by it an array is found whose id was never written down."""
    return f"{plan.sweep}-{plan.salt}-{submission_id}"


def this_cluster() -> str | None:
    """The cluster that SLURM's clients speak for here; None if nobody says."""
    reply = slurm.call("scontrol", "show", "config")
    found = re.search(r"^ClusterName\s*=\s*(\S+)", reply.stdout, re.MULTILINE) if reply.succeeded else None
    return found[1] if found else os.environ.get("SLURM_CLUSTER_NAME")


def look(sweep: SweepFolder, plan: Plan, submissions: Sequence[Submission], finished: Collection[str] | None = None) -> Queue:
    """Which tasks are still listed anywhere. Asks SLURM only where an unfinished run may be in its hands.

    finished: ids of the runs that are known to be finished, where somebody has looked already.
    """
    tasks: Listed = {}
    # Tasks of no submission are single runs (hpc.single): no queue has them, their claims say everything.
    asked = {task for task in plan.tasks if submission_id(task) is None}
    unfinished = _unfinished_tasks(sweep, plan, finished)
    scheduler, problem = _Slurm(), None
    for submission in (*submissions, *forgotten(sweep, plan, submissions)):
        mine = [task for task in submission.tasks if task in unfinished]
        if submission.mode == "local" or submission.state == "done" or not mine:
            is_alive = submission.mode == "local" and locks.is_held(sweep.local_lock(submission.id))
            asked.update(submission.tasks)
            tasks.update(dict.fromkeys(mine if is_alive else (), "pending"))
            continue
        found, doubt = scheduler.find(submission, job_name(plan, submission.id), mine)
        tasks.update(found)
        if doubt:
            problem = doubt
        else:
            asked.update(submission.tasks)
    return Queue(tasks=tasks, asked=frozenset(asked), problem=problem, jobs=scheduler.found)


class _Slurm:
    """What SLURM answers, asked at most once, and only when somebody wants to know."""

    def __init__(self) -> None:
        self.found: dict[str, slurm.ListedJob] = {}  # by task

    @functools.cached_property
    def jobs(self) -> dict[str, slurm.ListedJob] | None:
        return slurm.listed_jobs()

    @functools.cached_property
    def cluster(self) -> str | None:
        return this_cluster()

    def find(self, submission: Submission, name: str, tasks: Sequence[str]) -> tuple[Listed, str | None]:
        """Those of a submission's tasks that are listed, and why nothing is known of the others; None: they are gone."""
        if self.jobs is None:
            return {}, "squeue does not answer"
        found: Listed = {}
        job_id = submission.job_id or _found_by_name(name, self.jobs)
        for task in tasks:
            job = self.jobs.get(f"{job_id}_{task.partition('/')[2]}")
            # Another cluster, or this one after its counter was reset, gives the same id to somebody else's job.
            if job is not None and job.name == name:
                found[task] = "pending" if job.state in _PENDING else "running"
                self.found[task] = job
        return found, self._doubt(submission) if len(found) < len(tasks) else None

    def _doubt(self, submission: Submission) -> str | None:
        """Why this squeue's silence says nothing about a submission. One that names no cluster can only be believed to be here."""
        sent_to = submission.cluster
        if sent_to is None or sent_to.lower() == (self.cluster or "").lower():
            return None
        here = f"cluster {self.cluster}" if self.cluster else "a cluster that does not say its name"
        return f"submission {submission.id} went to cluster {sent_to}, and squeue here answers for {here}"


def forgotten(sweep: SweepFolder, plan: Plan, submissions: Sequence[Submission]) -> list[Submission]:
    """Submissions that the plan has tasks of and submission.json does not know: it was moved away, or torn. Their jobs may be queued."""
    known = {task for submission in submissions for task in submission.tasks}
    tasks: dict[str, list[str]] = {}
    for task in plan.tasks:
        owner = submission_id(task)
        if owner is not None and task not in known:
            tasks.setdefault(owner, []).append(task)
    return [
        # Only a local launch leaves its lock.
        Submission(id=owner, created=0, code="", mode="local" if sweep.local_lock(owner).exists() else "slurm", tasks=tuple(names))
        for owner, names in tasks.items()
    ]


def adopt_orphans(plan: Plan, submissions: Iterable[Submission]) -> list[Submission]:
    """Submissions whose launcher died between sbatch and writing the id, with the id that the queue knows by their name."""
    lost = [entry for entry in submissions if entry.mode == "slurm" and entry.state == "intent" and entry.job_id is None]
    jobs = slurm.listed_jobs() if lost else None
    found = [(entry, _found_by_name(job_name(plan, entry.id), jobs or {})) for entry in lost]
    return [replace(entry, job_id=job_id, state="submitted") for entry, job_id in found if job_id]


def _found_by_name(name: str, jobs: dict[str, slurm.ListedJob]) -> str | None:
    return next((job.job_id.partition("_")[0] for job in jobs.values() if job.name == name), None)


def _unfinished_tasks(sweep: SweepFolder, plan: Plan, finished: Collection[str] | None) -> set[str]:
    if finished is None:
        finished = {run_id for run_id in plan.runs if _is_finished(sweep.run_folder(run_id, plan))}
    unfinished = plan.runs.keys() - finished
    return {task for task, run_ids in plan.tasks.items() if unfinished.intersection(run_ids)}


def _is_finished(folder: RunFolder) -> bool:
    try:
        return is_finished(folder)
    except ConfigError:
        return False  # of a run whose files cannot be read, somebody may still have the task
