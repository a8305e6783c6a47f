"""What a comparison of arms says: mean and spread over seeds, and differences paired by seed with their interval.

Pure functions of gathered rows; pandas does the grouping. One invariant: only finished runs are counted, and every number carries its n.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from hpc.gather import Gathered, RunRow
from hpc.states import STATES
from seresnet.errors import ConfigError

#: Columns of runs.csv, in order. Percentages are 0..100.
RESULT_COLUMNS = (
    "parameters",
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
    "tier",
    "commit",
    "code_digest",
    "data_name",
    "data_digest",
    "state_digest",
)

_WHOLE_NUMBERS = ("seed", "epochs_planned", "parameters", "val_chosen_epoch", "best_on_test_epoch", "attempts", "world_size")


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


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One line of the table. The three accuracies are on the test set, in percent; they differ in how the epoch was chosen."""

    arm: str
    is_baseline: bool
    parameters: tuple[int, ...]  # one number, unless the runs of this arm differ
    n: int
    last: Spread | None
    val_chosen: Spread | None
    best_on_test: Spread | None
    difference: Difference | None  # of last; None for the baseline, and where no seed is in both
    states: tuple[tuple[str, int], ...]


def choose_baseline(arms: Sequence[str], wanted: str | None) -> str:
    """The wanted arm; else the one called baseline, else the first. "arm" means "sweep/arm" where only one sweep has it."""
    name = wanted or "baseline"
    found = [arm for arm in arms if arm == name] or [arm for arm in arms if arm.rpartition("/")[2] == name]
    if wanted is None and arms:
        return found[0] if found else arms[0]
    if len(found) != 1:
        problem = "is in several sweeps" if found else "is no arm here"
        raise ConfigError(f"--baseline {name}: {problem}. Arms: {', '.join(arms)}.")
    return found[0]


def runs_frame(rows: Sequence[RunRow]) -> pd.DataFrame:
    """One row a run, in the order of rows; what the result would tell is empty where there is none."""
    table = pd.DataFrame([_flat(row) for row in rows], columns=[*_flat_columns(), *RESULT_COLUMNS])
    return table.astype(dict.fromkeys(_WHOLE_NUMBERS, "Int64"))


def runs_csv(rows: Sequence[RunRow]) -> str:
    """The whole of runs.csv: every run of the sweep, finished or not."""
    return runs_frame(rows).to_csv(index=False, lineterminator="\n")


def summarise(gathered: Gathered, baseline: str) -> tuple[ArmSummary, ...]:
    """One summary an arm, in the order of gathered.arms."""
    finished = runs_frame(gathered.finished)
    finished["arm"] = pd.Series([row.arms for row in gathered.finished], index=finished.index, dtype=object)
    by_arm = dict(list(finished.explode("arm").groupby("arm", sort=False)))
    nothing = finished.iloc[:0]
    reference = by_arm.get(baseline, nothing)
    return tuple(_summary(gathered, arm, baseline, by_arm.get(arm, nothing), reference) for arm in gathered.arms)


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
    return Spread(n=len(present), mean=float(present.mean()), std=float(present.std(ddof=1)) if len(present) > 1 else None)


def paired_difference(runs: pd.DataFrame, reference: pd.DataFrame, column: str) -> Difference | None:
    """runs minus reference at the seeds that both have. None without such a seed, or if a seed occurs twice in either."""
    ours, theirs = (frame.dropna(subset=["seed", column]).set_index("seed")[column].astype(float) for frame in (runs, reference))
    if not (ours.index.is_unique and theirs.index.is_unique):
        return None
    change = (ours - theirs).dropna()
    of_pairs = spread(change)
    if of_pairs is None:
        return None
    if of_pairs.std is None:
        return Difference(pairs=1, mean=of_pairs.mean, low=None, high=None)
    half = t_quantile(0.975, of_pairs.n - 1) * of_pairs.std / math.sqrt(of_pairs.n)
    return Difference(pairs=of_pairs.n, mean=of_pairs.mean, low=of_pairs.mean - half, high=of_pairs.mean + half)


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


def _summary(gathered: Gathered, arm: str, baseline: str, runs: pd.DataFrame, reference: pd.DataFrame) -> ArmSummary:
    return ArmSummary(
        arm=arm,
        is_baseline=arm == baseline,
        parameters=tuple(sorted({int(number) for number in runs["parameters"]})),
        n=len(runs),
        last=spread(runs["last_test_top1_pct"]),
        val_chosen=spread(runs["val_chosen_test_top1_pct"]),
        best_on_test=spread(runs["best_on_test_top1_pct"]),
        difference=None if arm == baseline else paired_difference(runs, reference, "last_test_top1_pct"),
        states=count_states(gathered.of_arm(arm)),
    )


def _flat_columns() -> tuple[str, ...]:
    return ("sweep", "arms", "run_id", "slug", "seed", "state", "ending", "reason", "epochs_done", "epochs_planned")


def _flat(row: RunRow) -> dict[str, object]:
    values = (
        row.sweep,
        "; ".join(row.arms),
        row.run_id,
        row.slug,
        row.seed,
        row.state,
        row.ending,
        row.reason,
        row.epochs_done,
        row.setting("train", "epochs"),
    )
    flat = dict(zip(_flat_columns(), values, strict=True))
    return flat | {key: getattr(row.result, key) if row.result else None for key in RESULT_COLUMNS}
