"""Runs to tasks: a pack is the runs of one array task, one after another, each with all the task's GPUs. Pure.

Packs know nothing of a site's limits, and a task's index is its place in the result. One invariant: a finished run is in no pack,
every other run is in exactly one, and all runs of a pack want the same number of ranks, because a task has one shape.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

from hpc.sweep import PlannedRun


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The runs of one array task, in the order in which they are trained, and the ranks that each of them gets."""

    runs: tuple[PlannedRun, ...]
    ranks: int

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(run.run_id for run in self.runs)


def plan(runs: Sequence[PlannedRun], finished: Set[str], runs_per_task: int) -> tuple[Pack, ...]:
    """Fill packs in the order of runs, one kind of rank count at a time; finished holds run ids. Nothing left gives no packs."""
    assert runs_per_task >= 1, f"runs_per_task is {runs_per_task}, read_sweep lets 1 and more pass"
    by_ranks: dict[int, list[PlannedRun]] = {}
    for run in runs:
        if run.run_id not in finished:
            by_ranks.setdefault(run.config.train.ranks, []).append(run)
    return tuple(
        Pack(runs=tuple(alike[first : first + runs_per_task]), ranks=ranks)
        for ranks, alike in by_ranks.items()
        for first in range(0, len(alike), runs_per_task)
    )
