"""What a comparison of arms says: mean and spread over seeds, and differences paired by seed with their interval.

Pure functions of gathered rows; pandas does the grouping, in one pass for all arms, because a sweep may have thousands. One invariant:
only finished runs are counted in a mean, and every number carries its n.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from hpc.gather import Gathered, RunRow
from hpc.metrics import DEFAULT, METRICS
from hpc.states import STATES
from seresnet.errors import ConfigError, printable
from seresnet.run_folder import TrainResult

#: Columns of runs.csv that the result tells, in order. Percentages are 0..100.
RESULT_COLUMNS = (
    "parameters",
    "multiply_adds",
    "last_test_top1_pct",
    "last_val_top1_pct",
    "val_chosen_epoch",
    "val_chosen_val_top1_pct",
    "val_chosen_test_top1_pct",
    "best_on_test_epoch",
    "best_on_test_top1_pct",
    "last_test_loss",
    "train_loss",
    "seconds",
    "attempts",
    "world_size",
    "device",
    "amp",
    "averaged",
    "tier",
    "commit",
    "code_digest",
    "data_name",
    "data_digest",
    "state_digest",
)

_WHOLE_NUMBERS = (
    "seed",
    "epochs_done",
    "epochs_planned",
    "restarts",
    "parameters",
    "multiply_adds",
    "val_chosen_epoch",
    "best_on_test_epoch",
    "attempts",
    "world_size",
)

#: The interval of a difference, as a caption and a program are told.
CONFIDENCE = 0.95
TEST = "two-sided paired t-test on the differences at equal seeds"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over n runs; std is the sample standard deviation (n - 1), None for a single run."""

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of the differences to the baseline at equal seeds; low..high is a 95 % t interval, None for one pair."""

    pairs: int
    mean: float
    low: float | None
    high: float | None

    @property
    def degrees_of_freedom(self) -> int:
        return self.pairs - 1


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One line of the table. Means are over finished runs; hours, restarts and states are of all runs of the arm."""

    arm: str
    is_baseline: bool
    parameters: tuple[int, ...]  # one number, unless the runs of this arm differ
    n: int
    metrics: Mapping[str, Spread | None]  # every name of hpc.metrics
    difference: Difference | None  # of the first metric shown; None for the baseline, and where no seed is in both
    states: tuple[tuple[str, int], ...]
    multiply_adds: tuple[int, ...] = ()  # of one image's forward pass
    seeds: tuple[int, ...] = ()  # of the finished runs, ascending, twice where a seed occurs twice
    device_hours: Mapping[str, float] = field(default_factory=dict)  # "gpu", "cpu" -> hours of all attempts; a kind nobody used is absent
    restarts: int = 0

    @property
    def last(self) -> Spread | None:
        return self.metrics["last_test_top1_pct"]

    @property
    def val_chosen(self) -> Spread | None:
        return self.metrics["val_chosen_test_top1_pct"]

    @property
    def best_on_test(self) -> Spread | None:
        return self.metrics["best_on_test_top1_pct"]


def choose_baseline(arms: Sequence[str], wanted: str | None) -> str:
    """The wanted arm; else the one called baseline, else the first. "arm" means "sweep/arm" where only one sweep has it."""
    name = "baseline" if wanted is None else wanted
    found = [arm for arm in arms if arm == name] or [arm for arm in arms if arm.rpartition("/")[2] == name]
    if wanted is None and arms:
        return found[0] if found else arms[0]
    if len(found) != 1:
        problem = "is in several sweeps" if found else "is no arm here"
        raise ConfigError(f"--baseline {name}: {problem}. Arms: {', '.join(arms[:20])}{', ...' if len(arms) > 20 else ''}.")
    return found[0]


def runs_frame(rows: Sequence[RunRow]) -> pd.DataFrame:
    """One row a run, in the order of rows; what the result would tell is empty where there is none."""
    return pd.DataFrame({key: _column(rows, key) for key in (*_OF_RUNS, *RESULT_COLUMNS)}).astype(dict.fromkeys(_WHOLE_NUMBERS, "Int64"))


def _column(rows: Sequence[RunRow], key: str) -> list[object]:
    if key in _OF_RUNS:
        tell = _OF_RUNS[key]
        return [tell(row) for row in rows]
    return [getattr(row.result, key) if row.result else None for row in rows]


#: Columns of runs.csv that runs tell which have no result, too.
_OF_RUNS: Mapping[str, Callable[[RunRow], object]] = {
    "sweep": lambda row: row.sweep,
    "arms": lambda row: "; ".join(row.arms),
    "run_id": lambda row: row.run_id,
    "slug": lambda row: row.slug,
    "seed": lambda row: row.seed,
    "state": lambda row: row.state,
    "ending": lambda row: row.ending,
    "reason": lambda row: row.reason,
    # A result says it without the journal, which need not be read then.
    "epochs_done": lambda row: row.result.epochs if row.result else row.epochs_done,
    "epochs_planned": lambda row: row.epochs_planned,
    "restarts": lambda row: row.restarts,
    "device_kind": lambda row: row.device_kind,
    "device_hours": lambda row: row.device_hours if row.spans else None,
    "seconds_per_epoch": lambda row: seconds_per_epoch(row.result) if row.result else None,
    "forked_from": lambda row: row.result.parent.run_id if row.result and row.result.parent else None,
}


def runs_csv(rows: Sequence[RunRow]) -> str:
    """The whole of runs.csv: every run of the sweep, finished or not."""
    frame = runs_frame(rows)
    for name, column in frame.items():
        if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
            frame[name] = column.map(inert)
    return frame.to_csv(index=False, lineterminator="\n")


def inert(value: object) -> object:
    """Text that neither steers a terminal nor is a formula to a spreadsheet; anything else as it is."""
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if shown[:1] in ("=", "@") else shown


def seconds_per_epoch(result: TrainResult) -> float | None:
    """Training and evaluation, mean over the run's own epochs: a fork did not train those before its parent's checkpoint."""
    own = 1.0 if result.parent is None else (result.step - result.parent.step) / max(1, result.step)
    return (
        result.seconds / (result.epochs * own) if result.epochs * own > 0 and result.seconds > 0 else None
    )  # 0: a program without a journal


def summarise(gathered: Gathered, baseline: str, metric: str = DEFAULT[0]) -> tuple[ArmSummary, ...]:
    """One summary an arm, in the order of gathered.arms; the differences are of metric."""
    arms = _by_arm(gathered)
    finished = _finished(gathered)
    spreads = _spreads(finished)
    differences = paired_differences(finished, baseline, metric)
    return tuple(
        ArmSummary(
            arm=arm,
            is_baseline=arm == baseline,
            parameters=_numbers(rows, "parameters"),
            multiply_adds=_numbers(rows, "multiply_adds"),
            n=sum(row.state == "finished" for row in rows),
            seeds=tuple(sorted(row.seed for row in rows if row.state == "finished" and row.seed is not None)),
            metrics={name: spreads[name].get(arm) for name in METRICS},
            difference=None if arm == baseline else differences.get(arm),
            device_hours=_hours(arm, rows),
            restarts=sum(max(0, len(spans) - 1) for row in rows for spans in row.costs(arm)),
            states=count_states(rows),
        )
        for arm, rows in arms.items()
    )


def _by_arm(gathered: Gathered) -> dict[str, list[RunRow]]:
    """gathered.of_arm for all arms at once: one by one it would look at every run for each of 1,000 arms."""
    found: dict[str, list[RunRow]] = {arm: [] for arm in gathered.arms}
    for row in gathered.rows:
        for arm in row.arms:
            if arm in found:
                found[arm].append(row)
    return found


def _finished(gathered: Gathered) -> pd.DataFrame:
    """A line for each arm of each finished run: arm, seed, metrics."""
    rows = gathered.finished
    frame = pd.DataFrame({key: pd.Series(_column(rows, key), dtype=float) for key in ("seed", *METRICS)})
    frame.insert(0, "arm", pd.Series([row.arms for row in rows], index=frame.index, dtype=object))
    return frame.explode("arm").dropna(subset=["arm"])


def _numbers(rows: Sequence[RunRow], key: str) -> tuple[int, ...]:
    return tuple(sorted({number for row in rows if row.result and (number := getattr(row.result, key)) is not None}))


def _hours(arm: str, rows: Sequence[RunRow]) -> dict[str, float]:
    hours: dict[str, float] = {}
    for row in rows:
        spans = [span for spans in row.costs(arm) for span in spans]
        if row.device_kind is not None and spans:
            hours[row.device_kind] = hours.get(row.device_kind, 0.0) + sum(span.device_hours for span in spans)
    return dict(sorted(hours.items(), reverse=True))


def count_states(rows: Sequence[RunRow]) -> tuple[tuple[str, int], ...]:
    """(state, how many) in the order of STATES, zeros left out. Diverged runs are counted apart: they say something about the arm."""
    counts = Counter("failed: diverged" if (row.state, row.ending) == ("failed", "diverged") else row.state for row in rows)
    words = [word for state in STATES for word in ((state, "failed: diverged") if state == "failed" else (state,))]
    return tuple((word, counts[word]) for word in words if counts[word])


def spread(values: "pd.Series[float]") -> Spread | None:
    """Mean and sample standard deviation of the values that are there; None of none."""
    present = values.dropna().astype(float)
    if present.empty:
        return None
    return _spread(len(present), float(present.mean()), float(present.std(ddof=1)))


def _spread(n: int, mean: float, std: float) -> Spread | None:
    # Sums of values near the largest float are infinite: no number is better than one that is none.
    return Spread(n=n, mean=mean, std=std if n > 1 and math.isfinite(std) else None) if math.isfinite(mean) else None


def _spreads(finished: pd.DataFrame) -> dict[str, dict[str, Spread | None]]:
    """Metric -> arm -> spread."""
    grouped = finished.groupby("arm", sort=False)
    found = {}
    for name in METRICS:
        table = grouped[name].agg(["count", "mean", "std"])
        lines = zip(table.index, table["count"], table["mean"], table["std"], strict=True)
        found[name] = {arm: _spread(int(n), float(mean), float(std)) for arm, n, mean, std in lines if n}
    return found


def paired_differences(finished: pd.DataFrame, baseline: str, metric: str) -> dict[str, Difference]:
    """Arm -> its differences to the baseline at the seeds that both have. finished: columns arm, seed and metric.

    Absent without such a seed, and if a seed occurs twice in the arm or the baseline: which to pair would be a guess.
    """
    there = finished.dropna(subset=["seed", metric])
    twice = set(there.loc[there.duplicated(["arm", "seed"]), "arm"])
    reference = there[there["arm"] == baseline]
    if baseline in twice or reference.empty:
        return {}
    others = there[(there["arm"] != baseline) & ~there["arm"].isin(twice)]
    change = others[metric] - others["seed"].map(reference.set_index("seed")[metric]).astype(float)
    table = change.groupby(others["arm"], sort=False).agg(["count", "mean", "std"])
    lines = zip(table.index, table["count"], table["mean"], table["std"], strict=True)
    return {str(arm): _difference(int(n), float(mean), float(std)) for arm, n, mean, std in lines if n and math.isfinite(mean)}


def _difference(pairs: int, mean: float, std: float) -> Difference:
    if pairs == 1:
        return Difference(pairs=1, mean=mean, low=None, high=None)
    half = t_quantile((1 + CONFIDENCE) / 2, pairs - 1) * std / math.sqrt(pairs)
    return Difference(pairs=pairs, mean=mean, low=mean - half, high=mean + half)


@functools.lru_cache(maxsize=1024)
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t for whole degrees of freedom and 0.5 <= probability < 1.

    Bisection on the angle atan(t / sqrt(freedom)), in which the distribution is a finite sum. scipy has it too, but comes only
    with the training environment, and tables are made on login nodes; the tests compare with scipy.
    """
    assert freedom >= 1 and 0.5 <= probability < 1, f"no t quantile of {probability} at {freedom} degrees of freedom"
    low, high = 0.0, math.pi / 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return math.sqrt(freedom) * math.tan(middle)
        if _t_central_mass(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle


def _t_central_mass(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) tan(angle)). Source: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    cosine_squared = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine_squared * (k - 1) / k
        total += term
    mass = math.sin(angle) * total
    return 2 / math.pi * (angle + mass) if odd else mass
