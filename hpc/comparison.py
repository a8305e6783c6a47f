"""The comparison that every form of the table shows, put together from gathered runs: grouped, with a baseline and its metrics.

Computing is hpc.stats', showing hpc.tables' and its siblings'. One invariant: all forms get the same comparison.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpc.gather import Gathered
from hpc.metrics import DEFAULT, Metric, chosen
from hpc.regroup import regroup
from hpc.stats import ArmSummary, choose_baseline, summarise


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What every form of the table shows."""

    title: str
    baseline: str
    gathered: Gathered  # where grouped_by is set, with groups as arms
    arms: tuple[ArmSummary, ...]
    metrics: tuple[Metric, ...] = chosen(DEFAULT)  # the columns; differences are of the first
    grouped_by: tuple[str, ...] = ()  # config keys; empty: by arm


def compare(
    gathered: Gathered, baseline: str | None = None, by: Sequence[str] = (), metrics: Sequence[str] = DEFAULT, title: str | None = None
) -> Comparison:
    """Raises ConfigError for an unknown baseline, key or metric."""
    shown = chosen(metrics or DEFAULT)
    keys = tuple(dict.fromkeys(by))
    grouped = regroup(gathered, keys) if keys else gathered
    wanted = baseline if baseline is not None or not keys else _group_of_baseline(gathered, grouped)
    reference = choose_baseline(grouped.arms, wanted)
    return Comparison(
        title=title or ", ".join(dict.fromkeys(row.sweep for row in gathered.rows)),
        baseline=reference,
        gathered=grouped,
        arms=summarise(grouped, reference, shown[0].name),
        metrics=shown,
        grouped_by=keys,
    )


def _group_of_baseline(gathered: Gathered, grouped: Gathered) -> str | None:
    """The group that the first run of the arm is in that would be the baseline."""
    arm = choose_baseline(gathered.arms, None)
    first = next((row.run_id for row in gathered.rows if arm in row.arms), None)
    return next((row.arms[0] for row in grouped.rows if row.run_id == first and row.arms), None)
