"""Batches to arrays: what a cluster takes at once, in how many pieces, and how they wait for each other. Pure.

The numbers are hpc.limits' and hpc.control's. One invariant: arrays hold the tasks of the batches in their order, each once.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from hpc.draft import Batch
from hpc.paths import Submission


def cut(batches: Sequence[Batch], sizes: Callable[[int], Sequence[int]]) -> tuple[Batch, ...]:
    """The batches in pieces; sizes: number of tasks -> tasks of each array."""
    arrays = []
    for batch in batches:
        first = 0
        for size in sizes(len(batch.packs)):
            arrays.append(replace(batch, packs=batch.packs[first : first + size]))
            first += size
        assert first == len(batch.packs), f"{first} of {len(batch.packs)} tasks are in an array"
    return tuple(arrays)


def take(batches: Sequence[Batch], tasks: int) -> tuple[tuple[Batch, ...], tuple[tuple[str, ...], ...]]:
    """The first so many tasks, and the packs of the others."""
    taken, left = list[Batch](), list[tuple[str, ...]]()
    for batch in batches:
        now, later = batch.packs[:tasks], batch.packs[tasks:]
        tasks -= len(now)
        taken += [replace(batch, packs=now)] if now else []
        left += later
    return tuple(taken), tuple(left)


def dependency(smoke: str | None, chained: Sequence[str]) -> str | None:
    """As sbatch takes it: the smoke test must succeed, and arrays under a cap of GPUs follow each other however they end."""
    parts = [f"afterok:{smoke}"] if smoke else []
    parts += [f"afterany:{':'.join(chained)}"] if chained else []
    return ",".join(parts) or None


def holding_gpus(submissions: Sequence[Submission], tasks: Sequence[str]) -> list[str]:
    """Job ids of the arrays that want GPUs and of which tasks are still listed."""
    listed = set(tasks)
    return [entry.job_id for entry in submissions if entry.job_id and entry.gpus and not listed.isdisjoint(entry.tasks)]
