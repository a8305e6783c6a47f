"""`--max-gpus N`: so many GPUs of one sweep at a time, although Slurm caps arrays one by one.

N is shared by all arrays of the sweep; one that no longer fits waits for those before it (a dependency), so that the sum of what may run
is never above N. What runs already is left alone. One invariant: a dependency that is not ours (a smoke test's) is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc import queues, slurm_control
from hpc.paths import Plan, Submission, SweepFolder
from hpc.plan_view import count
from hpc.queued_arrays import QueuedArray, queued_arrays
from hpc.shapes import TaskShape
from seresnet.errors import SubmissionError


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one array could use: GPUs of a task, over all its nodes, and its tasks."""

    gpus_each: int
    tasks: int


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one array may use: tasks at a time, and whether it first waits for all arrays before it."""

    parallel: int
    waits: bool = False


def parallel_of(max_gpus: int, shape: TaskShape) -> int | None:
    """Tasks of this shape that N GPUs hold; None where tasks take no GPU, and no cap is needed.

    Raises SubmissionError for a task that takes more than N: it would wait for ever.
    """
    return _fitting(max_gpus, shape.gpus * shape.nodes) if shape.gpus else None


def shares(max_gpus: int, needs: Sequence[Need]) -> tuple[Share, ...]:
    """Divide N among arrays, oldest first; tasks without GPUs are not capped. Raises SubmissionError as parallel_of.

    Every array gets one task as long as they fit, then the older ones get what is left. From the first that does not fit on, each waits
    for all before it, and then has N alone. Sum of what may run <= N at every moment.
    """
    found: list[Share] = []
    first_waiting = _first_waiting(max_gpus, needs)
    left = max_gpus - sum(need.gpus_each for need in needs[:first_waiting])
    for index, need in enumerate(needs):
        if not need.gpus_each:
            found.append(Share(parallel=0))
        elif index >= first_waiting:
            found.append(Share(parallel=_fitting(max_gpus, need.gpus_each), waits=True))
        else:
            more = min(need.tasks - 1, left // need.gpus_each)
            left -= more * need.gpus_each
            found.append(Share(parallel=1 + more))
    return tuple(found)


def cap_gpus(sweep: SweepFolder, plan: Plan, submissions: Sequence[Submission], max_gpus: int) -> list[str]:
    """Tell Slurm how many tasks of each queued array may run at a time; lines to print. Raises SubmissionError.

    Call it after the last sbatch, under the launch lock; it asks the queue itself.
    """
    queue = queues.look(sweep, plan, submissions)
    if queue.problem is not None:
        raise SubmissionError(f"--max-gpus {max_gpus}: {queue.problem}, so nothing was capped. Say it again when it answers.")
    return cap_arrays(queued_arrays(submissions, queue.tasks), max_gpus)


def cap_arrays(arrays: Sequence[QueuedArray], max_gpus: int) -> list[str]:
    """cap_gpus for arrays that are known."""
    needs = [Need(gpus_each=array.gpus_each, tasks=len(array.pending) + len(array.running)) for array in arrays]
    if not any(need.gpus_each for need in needs):
        return [f"--max-gpus {max_gpus}: nothing that is queued takes a GPU"]
    waits_for = slurm_control.dependencies()
    if waits_for is None:
        # A task's Dependency is replaced as a whole: unseen, a smoke test's would be lost.
        raise SubmissionError(f"--max-gpus {max_gpus}: squeue does not answer, so nothing was capped. Say it again when it does.")
    lines = []
    capped = [(array, share) for array, share in zip(arrays, shares(max_gpus, needs), strict=True) if share.parallel]
    for index, (array, share) in enumerate(capped):
        before = [earlier.job_id for earlier, _ in capped[:index]]
        lines += _cap(array, share, before if share.waits else [], waits_for, {other.job_id for other in arrays})
    return lines


def _cap(array: QueuedArray, share: Share, before: Sequence[str], waits_for: Mapping[str, str], ours: set[str]) -> list[str]:
    parallel = min(share.parallel, array.submission.site.get("array_parallelism") or share.parallel)
    refusals = slurm_control.update(array.job_id, {"ArrayTaskThrottle": str(parallel)})
    known = waits_for.get(array.job_id, "")
    others = [part for part in known.split(",") if part and not _is_ours(part, ours)]
    wanted = ",".join([*others, *(f"afterany:{job_id}" for job_id in before)])
    if array.pending and wanted != known:
        refusals += slurm_control.update(slurm_control.tasks_of(array.job_id, array.pending), {"Dependency": wanted})
    then = f", after job {', '.join(before)}" if before else ""
    gpus = count(parallel * array.gpus_each, "GPU")
    return [f"job {array.job_id}: at most {count(parallel, 'task')} at a time ({gpus}){then}", *(f"refused: {text}" for text in refusals)]


def _is_ours(part: str, ours: set[str]) -> bool:
    kind, _, job_id = part.partition(":")
    return kind == "afterany" and job_id in ours


def _first_waiting(max_gpus: int, needs: Sequence[Need]) -> int:
    """The index of the first array of which not even one task fits beside one of each before it."""
    taken = 0
    for index, need in enumerate(needs):
        if need.gpus_each:
            _fitting(max_gpus, need.gpus_each)
        taken += need.gpus_each
        if taken > max_gpus:
            return index
    return len(needs)


def _fitting(max_gpus: int, gpus_each: int) -> int:
    if gpus_each > max_gpus:
        raise SubmissionError(f"--max-gpus {max_gpus}: a task takes {gpus_each} GPUs and would never start. Use {gpus_each} or more.")
    return max_gpus // gpus_each
