"""Changing jobs that are queued: scontrol update, hold, release, scancel; each returns what Slurm refused, in Slurm's words.

Which tasks, and why, is hpc.control's business. Seen on Slurm 22.05: an array is asked once for all the tasks named, `A_[0-2,5]`; those
that are refused are listed by id and the others are changed all the same. One invariant: nothing here starts or submits anything.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from hpc import slurm

_TIMEOUT_S = 60.0


def tasks_of(job_id: str, indices: Sequence[int]) -> str:
    """How Slurm is told some tasks of an array: "12_[0-2,5]", and "12_5" for a single one."""
    if len(indices) == 1:
        return f"{job_id}_{indices[0]}"
    spans = [f"{first}" if first == last else f"{first}-{last}" for first, last in _spans(sorted(indices))]
    return f"{job_id}_[{','.join(spans)}]"


def _spans(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = last = indices[0]
    for index in indices[1:]:
        if index != last + 1:
            yield first, last
            first = index
        last = index
    yield first, last


def update(jobs: str, values: Mapping[str, str]) -> list[str]:
    """Give queued jobs other values, e.g. {"TimeLimit": "240"}; refusals as "12_4: Access/permission denied"."""
    return _refusals(
        slurm.call("scontrol", "update", f"JobId={jobs}", *(f"{key}={value}" for key, value in values.items()), timeout_s=_TIMEOUT_S), jobs
    )


def hold(job_id: str) -> list[str]:
    """Let nothing of an array start any more. Running tasks run on, and come back held if they are requeued (seen)."""
    return _unfinished(_refusals(slurm.call("scontrol", "hold", job_id, timeout_s=_TIMEOUT_S), job_id))


def release(job_id: str) -> list[str]:
    """Undo hold."""
    return _unfinished(_refusals(slurm.call("scontrol", "release", job_id, timeout_s=_TIMEOUT_S), job_id))


def _unfinished(refusals: list[str]) -> list[str]:
    """Without those of tasks that are over: there is nothing to hold or release, so nothing was refused."""
    return [line for line in refusals if not line.endswith("Job has already finished")]


def cancel(jobs: str) -> list[str]:
    return _refusals(slurm.call("scancel", jobs, timeout_s=_TIMEOUT_S), jobs)


def still_waits(job_id: str) -> bool:
    """Whether Slurm says that a task has not started, so that a refusal is about the values."""
    facts = slurm.job_facts(job_id)
    return facts is None or facts.state == "PENDING"


def dependencies() -> dict[str, str] | None:
    """Array or job id -> what it waits for, e.g. "afterok:12", of this user's queued jobs; None if Slurm does not answer."""
    reply = slurm.call("squeue", "--me", "--noheader", "--states=PENDING", "--format=%F|%E", timeout_s=30)
    if not reply.succeeded:
        return None
    rows = [line.split("|", 1) for line in reply.stdout.splitlines() if "|" in line]
    # afterok:12_*(unfulfilled) is how squeue says afterok:12.
    return {job_id: re.sub(r"_\*|\(\w+\)", "", text) for job_id, text in rows if text not in ("", "(null)")}


def _refusals(reply: slurm.Reply, jobs: str) -> list[str]:
    """Each line of what was refused; ranges that were changed are listed between them as "No error" (seen)."""
    if reply.succeeded:
        return []
    lines = [line.strip() for line in reply.stderr.splitlines() if line.strip() and not line.endswith(": No error")]
    return lines or [f"{jobs}: exit {reply.returncode}"]
