"""Runs to tasks: a pack is the runs of one array task, one after another with all the task's GPUs, or side by side. Pure.

Packs know nothing of a site's limits, and a task's index is its place in the result. One invariant: a finished run is in no pack,
every other run is in exactly one, and all runs of a pack want the same shape, because a task has one.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

from hpc.shapes import TaskShape
from hpc.sweep import PlannedRun
from hpc.sweep_spec import PackRequest


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The runs of one array task, in the order in which they are trained, and what the task needs for them."""

    runs: tuple[PlannedRun, ...]
    shape: TaskShape

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(run.run_id for run in self.runs)


def plan(runs: Sequence[PlannedRun], finished: Set[str], request: PackRequest) -> tuple[Pack, ...]:
    """Fill packs in the order of runs, one shape at a time; finished holds run ids. Nothing left gives no packs."""
    by_shape: dict[TaskShape, list[PlannedRun]] = {}
    for run in runs:
        if run.run_id not in finished:
            by_shape.setdefault(shape_of(run, request), []).append(run)
    packs = []
    for shape, alike in by_shape.items():
        size = request.runs_per_task or shape.at_a_time
        packs += [Pack(runs=tuple(alike[first : first + size]), shape=shape) for first in range(0, len(alike), size)]
    return tuple(packs)


def shape_of(run: PlannedRun, request: PackRequest) -> TaskShape:
    """What a task needs that trains this run; runs of several ranks are never side by side."""
    train = run.config.train
    is_cuda = train.device == "cuda"
    if request.mode == "concurrent" and train.ranks == 1:
        gpus = request.gpus_per_task if is_cuda else 0
        return TaskShape(ranks=1, gpus=gpus, at_a_time=request.per_gpu * max(1, gpus))
    return TaskShape(ranks=train.ranks, gpus=train.ranks // train.nodes if is_cuda else 0, nodes=train.nodes)
