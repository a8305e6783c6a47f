"""The arrays of a sweep that Slurm still has something of, from one look at the queue: what alter, hold, cancel and the cap work on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc.paths import Submission
from hpc.shapes import TaskShape


@dataclass(frozen=True, kw_only=True)
class QueuedArray:
    """One submission and the indices of its tasks that are listed."""

    submission: Submission
    job_id: str
    pending: tuple[int, ...]
    running: tuple[int, ...]

    @property
    def shape(self) -> TaskShape:
        """What each of its tasks takes, as far as submission.json says."""
        entry = self.submission
        return TaskShape(ranks=max(1, entry.gpus) * entry.nodes, gpus=entry.gpus, nodes=entry.nodes, at_a_time=entry.at_a_time)

    @property
    def gpus_each(self) -> int:
        return self.submission.gpus * self.submission.nodes


def queued_arrays(submissions: Sequence[Submission], listed: Mapping[str, str]) -> tuple[QueuedArray, ...]:
    """Arrays with at least one listed task, oldest first. listed: task -> "pending" or "running", as hpc.queues answers."""
    arrays = []
    for entry in submissions:
        states = [(index, listed.get(task)) for index, task in enumerate(entry.tasks)]
        pending, running = (tuple(index for index, state in states if state == wanted) for wanted in ("pending", "running"))
        if entry.mode == "slurm" and entry.job_id and (pending or running):
            arrays.append(QueuedArray(submission=entry, job_id=entry.job_id, pending=pending, running=running))
    return tuple(arrays)
