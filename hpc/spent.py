"""What a run has cost until now: the GPUs (or CPU cores) that its attempts held, times how long they held them.

Reads the records of attempts. One invariant: what nobody can know (an owner that left no beat and no end) counts nothing, so that the
sum is never too high by a guess.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hpc.paths import Submission
from hpc.states import RunState
from seresnet import attempts
from seresnet.attempts import Claim, End, Owner
from seresnet.run_folder import RunFolder, RunHead

Device = Literal["gpu", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Device hours of one run: GPUs of a cuda run, cores (ranks x threads) of a cpu run."""

    device: Device
    hours: float


def spent(run: RunState, head: RunHead | None, by_job: Mapping[str, Submission], now: float | None = None) -> Spent | None:
    """None before the first attempt, and where run.yaml does not say what the run occupies. by_job: Slurm's job id -> submission."""
    if head is None or head.device is None or run.claim is None:
        return None
    until = (time.time() if now is None else now) if run.state == "running" else last_sign(run.folder, run.claim, run.end)
    seconds = _device_seconds(run.claim, until, head, by_job)
    for generation in range(1, run.claim.generation):
        seconds += _seconds_of(run.folder, generation, head, by_job)
    return Spent(device="cpu" if head.device == "cpu" else "gpu", hours=seconds / 3600)


def totals(parts: Sequence[Spent | None]) -> dict[Device, float]:
    """Hours by device; devices that nobody used are left out."""
    found: dict[Device, float] = {}
    for part in parts:
        if part is not None:
            found[part.device] = found.get(part.device, 0.0) + part.hours
    return found


def by_job_id(submissions: Sequence[Submission]) -> dict[str, Submission]:
    """Submissions by the job ids of their arrays."""
    return {entry.job_id: entry for entry in submissions if entry.job_id}


def _seconds_of(folder: RunFolder, generation: int, head: RunHead, by_job: Mapping[str, Submission]) -> float:
    """Of an earlier attempt; a number that was skipped, or whose records cannot be read, counts nothing."""
    try:
        claim = attempts.read_claim(folder, generation)
        return _device_seconds(claim, last_sign(folder, claim, attempts.read_end(folder, generation)), head, by_job)
    except OSError:
        return 0.0


def _device_seconds(claim: Claim, until: float | None, head: RunHead, by_job: Mapping[str, Submission]) -> float:
    owner = claim.owner
    if owner is None or until is None or not is_time(owner.started):
        return 0.0
    return max(0.0, until - owner.started) * width(head, owner, by_job)


def last_sign(folder: RunFolder, claim: Claim, end: End | None) -> float | None:
    """When the attempt ended by its own word; else its last beat: an end that a later owner inferred may be days late."""
    said = end.facts.get("time") if end is not None and not end.inferred else None
    if isinstance(said, int | float) and is_time(said):
        return float(said)
    try:
        return folder.beat(claim.generation).stat().st_mtime
    except OSError:
        return None


def width(head: RunHead, owner: Owner, by_job: Mapping[str, Submission]) -> float:
    """Devices that an attempt held, see devices."""
    return devices(head, owner.array_job_id or owner.raw_job_id, by_job)


def devices(head: RunHead, job: str | None, by_job: Mapping[str, Submission]) -> float:
    """Devices held: of a cuda run its ranks' GPUs, or its share of them where several runs of a pack train side by side."""
    if head.device == "cpu":
        return head.ranks * head.threads
    entry = by_job.get((job or "").partition("_")[0])
    if entry is not None and entry.at_a_time > 1 and entry.gpus:
        return entry.gpus * entry.nodes / entry.at_a_time
    return head.ranks


def is_time(value: object) -> bool:
    """Whether this can be a unix time: records of somebody else's making hold anything."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e11
