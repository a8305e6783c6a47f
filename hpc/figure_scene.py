"""What all figures of one comparison share: the runs of each arm, its look, its name at a legend's length, the baseline.

One invariant: sums and orders do not depend on the order in which the runs were read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpc import stats
from hpc.figure_style import MOST_ARMS, Look, look, short
from hpc.gather import Gathered, RunRow

_LONGEST_NAME = 34


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Arms are in the order of the plan. Of more than MOST_ARMS, the baseline and the best are in looks; the others are drawn in grey."""

    gathered: Gathered
    baseline: str
    arms: tuple[str, ...]
    runs: Mapping[str, tuple[RunRow, ...]]
    looks: Mapping[str, Look]
    names: Mapping[str, str]

    def finished(self, arm: str) -> list[RunRow]:
        return [row for row in self.runs[arm] if row.result is not None]

    @property
    def data_name(self) -> str:
        """The data sets of the finished runs; without one, the sweeps."""
        names = {row.result.data_name for row in self.gathered.finished if row.result}
        return " and ".join(sorted(names)) or ", ".join(sorted({row.sweep for row in self.gathered.rows}))

    @property
    def others(self) -> int:
        """Arms without a look of their own."""
        return len(self.arms) - len(self.looks)


def scene(gathered: Gathered, baseline: str | None = None) -> Scene:
    """baseline: as --baseline has it; the table's rule where it is not given. Raises ConfigError for one that is no arm."""
    chosen = stats.choose_baseline(gathered.arms, baseline)
    runs: dict[str, list[RunRow]] = {arm: [] for arm in gathered.arms}
    for row in sorted(gathered.rows, key=_by_seed):
        for arm in row.arms:
            if arm in runs:
                runs[arm].append(row)
    telling = _most_telling(gathered.arms, runs, chosen)
    shown = [arm for arm in gathered.arms if arm in telling]
    return Scene(
        gathered=gathered,
        baseline=chosen,
        arms=gathered.arms,
        runs={arm: tuple(rows) for arm, rows in runs.items()},
        looks={arm: look(place) for place, arm in enumerate(shown)},
        names=short(gathered.arms, _LONGEST_NAME),
    )


def _by_seed(row: RunRow) -> tuple[bool, int, str, str]:
    return row.seed is None, row.seed or 0, row.sweep, row.run_id


def _most_telling(arms: Sequence[str], runs: Mapping[str, Sequence[RunRow]], baseline: str) -> set[str]:
    """All arms, or the baseline and those with the best mean accuracy of the last epoch, as many as have looks."""
    best = sorted((arm for arm in arms if arm != baseline), key=lambda arm: -_accuracy(runs[arm]))
    return {baseline, *best[: MOST_ARMS - 1]}


def _accuracy(rows: Sequence[RunRow]) -> float:
    """Below every finished arm where no run is finished."""
    values = [row.result.last_test_top1_pct for row in rows if row.result]
    if values:
        return 1000 + sum(values) / len(values)
    last = [values[-1] for _, values in (row.history.series("test_top1_pct") for row in rows) if len(values)]
    return sum(last) / len(last) if last else -1.0
