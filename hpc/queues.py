"""One look at whoever runs the tasks of a sweep: SLURM, asked once for all submissions, and the locks of local launchers.

An error of the scheduler proves nothing: it is handed on as the reason why nobody knows, and never read as "not listed".
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from hpc import locks, slurm
from hpc.paths import Plan, Submission, SweepFolder
from hpc.states import Queue

_PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")


def job_name(plan: Plan, submission_id: str) -> str:
    """What SLURM calls the array of a submission: by it an array is found whose id was never written down."""
    return f"{plan.sweep}-{plan.salt}-{submission_id}"


def look(sweep: SweepFolder, plan: Plan, submissions: Sequence[Submission]) -> Queue:
    """Which tasks are still listed anywhere. Asks SLURM only where an unfinished run may be in its hands."""
    tasks: dict[str, Literal["pending", "running"]] = {}
    # Tasks of no submission are single runs (hpc.single): no queue has them, their claims say everything.
    asked = set(plan.tasks) - {task for submission in submissions for task in submission.tasks}
    unfinished = _unfinished_tasks(sweep, plan)
    jobs: dict[str, slurm.ListedJob] | None = None
    is_asked, problem = False, None
    for submission in submissions:
        mine = [task for task in submission.tasks if task in unfinished]
        if submission.mode == "local" or submission.state == "done" or not mine:
            is_alive = submission.mode == "local" and locks.is_held(sweep.local_lock(submission.id))
            asked.update(submission.tasks)
            tasks.update(dict.fromkeys(mine if is_alive else (), "pending"))
            continue
        if not is_asked:
            is_asked, jobs = True, slurm.listed_jobs()
        if jobs is None:
            problem = "squeue does not answer"
            continue
        asked.update(submission.tasks)
        job_id = submission.job_id or _found_by_name(job_name(plan, submission.id), jobs)
        for task in mine:
            job = jobs.get(f"{job_id}_{task.partition('/')[2]}")
            if job is not None:
                tasks[task] = "pending" if job.state in _PENDING else "running"
    return Queue(tasks=tasks, asked=frozenset(asked), problem=problem)


def adopt_orphans(plan: Plan, submissions: Iterable[Submission]) -> list[Submission]:
    """Submissions whose launcher died between sbatch and writing the id, with the id that the queue knows by their name."""
    lost = [entry for entry in submissions if entry.mode == "slurm" and entry.state == "intent" and entry.job_id is None]
    jobs = slurm.listed_jobs() if lost else None
    found = [(entry, _found_by_name(job_name(plan, entry.id), jobs or {})) for entry in lost]
    return [replace(entry, job_id=job_id, state="submitted") for entry, job_id in found if job_id]


def _found_by_name(name: str, jobs: dict[str, slurm.ListedJob]) -> str | None:
    return next((job.job_id.partition("_")[0] for job in jobs.values() if job.name == name), None)


def _unfinished_tasks(sweep: SweepFolder, plan: Plan) -> set[str]:
    unfinished = {run_id for run_id in plan.runs if not sweep.run_folder(run_id, plan).result.exists()}
    return {task for task, run_ids in plan.tasks.items() if unfinished.intersection(run_ids)}
