"""Where the runs of a concurrent pack train: each slot has one of the task's GPUs and its share of the task's CPUs. Pure.

GPUs are slices of the CUDA_VISIBLE_DEVICES that Slurm gave, whatever its entries are: indices, UUIDs, MIG names. One invariant: a
pack of one run at a time has everything that the task has, and nothing is set for it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What one run of the pack may use."""

    index: int = 0
    gpu: str | None = None  # as CUDA_VISIBLE_DEVICES names it; None: all that the task has
    cpus: tuple[int, ...] | None = None  # None: all that the task has
    env: Mapping[str, str] = field(default_factory=dict)


def slots(count: int, environ: Mapping[str, str], cpus: Sequence[int]) -> tuple[Slot, ...]:
    """`count` slots. GPUs go round in turn; CPUs are divided, unless there are fewer than slots (or none: the system cannot say)."""
    if count <= 1:
        return (Slot(),)
    gpus = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    found = []
    for index in range(count):
        gpu = gpus[index % len(gpus)] if gpus else None
        share = tuple(cpus[index * len(cpus) // count : (index + 1) * len(cpus) // count]) if len(cpus) >= count else None
        found.append(Slot(index=index, gpu=gpu, cpus=share, env={"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}))
    return tuple(found)


def own_cpus() -> tuple[int, ...]:
    """The CPUs that this process may use; empty where the system cannot say (macOS)."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0)))
