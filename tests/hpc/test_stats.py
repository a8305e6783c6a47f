"""The comparison against scipy and plain numpy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_sweep import FakeSweep
from scipy import stats as reference

from hpc.gather import gather
from hpc.stats import Difference, choose_baseline, paired_differences, runs_frame, seconds_per_epoch, spread, summarise, t_quantile
from seresnet.errors import ConfigError
from seresnet.run_folder import Parent


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.975, 0.9995])
def test_t_quantiles_are_those_of_scipy(probability: float) -> None:
    for freedom in [*range(1, 40), 99, 100, 999]:
        expected = reference.t.ppf(probability, freedom)
        assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-10, abs=1e-12), f"{freedom} degrees of freedom"


def test_spread_is_the_sample_standard_deviation() -> None:
    found = spread(pd.Series([90.0, 91.0, 95.0]))
    assert found is not None
    assert (found.n, found.mean, found.std) == (3, pytest.approx(92.0), pytest.approx(np.std([90, 91, 95], ddof=1)))


def test_one_run_has_no_standard_deviation_and_none_has_no_mean() -> None:
    only = spread(pd.Series([90.0, None]))
    assert only is not None and (only.n, only.mean, only.std) == (1, 90.0, None)
    assert spread(pd.Series([None, None], dtype=float)) is None


def difference(ours: dict[int, float], theirs: dict[int, float]) -> Difference | None:
    """Of an arm to a baseline, given as seed -> value."""
    lines = [(name, seed, value) for name, values in (("se", ours), ("base", theirs)) for seed, value in values.items()]
    return paired_differences(pd.DataFrame(lines, columns=["arm", "seed", "top1"]), "base", "top1").get("se")


def test_difference_is_paired_by_seed_and_its_interval_is_scipys() -> None:
    found = difference({2: 93.0, 0: 91.0, 1: 92.5, 7: 1.0}, {0: 90.0, 1: 90.5, 2: 92.5, 9: 2.0})
    expected = reference.ttest_rel([91.0, 92.5, 93.0], [90.0, 90.5, 92.5])
    interval = expected.confidence_interval(0.95)
    assert found is not None and (found.pairs, found.degrees_of_freedom) == (3, expected.df)
    assert (found.mean, found.low, found.high) == pytest.approx((7 / 6, interval.low, interval.high))


def test_one_pair_has_no_interval_and_no_common_seed_no_difference() -> None:
    found = difference({0: 91.0}, {0: 90.0, 1: 1.0})
    assert found is not None and (found.pairs, found.mean, found.low) == (1, 1.0, None)
    assert difference({0: 91.0}, {1: 90.0}) is None
    assert difference({0: 91.0}, {}) is None


@pytest.mark.parametrize("whose", ["se", "base"])
def test_a_seed_that_occurs_twice_is_not_paired_by_guessing_and_costs_no_other_arm(whose: str) -> None:
    lines = [("base", 0, 90.0), ("se", 0, 91.0), ("wide", 0, 94.0), (whose, 0, 92.0)]
    found = paired_differences(pd.DataFrame(lines, columns=["arm", "seed", "top1"]), "base", "top1")
    assert {arm: each.mean for arm, each in found.items()} == ({"wide": 4.0} if whose == "se" else {})


def test_summary_agrees_with_numpy_on_the_records(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=4)
    results = {key: sweep.finish(*key) for key in sweep.ids}
    summaries = {each.arm: each for each in summarise(gather([sweep.folder.path]), "baseline")}
    for name in ("baseline", "se"):
        values = [results[name, seed].val_chosen_test_top1_pct for seed in range(4)]
        found = summaries[name].val_chosen
        assert found is not None and (found.mean, found.std) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    pairs = [[results[name, seed].last_test_top1_pct for seed in range(4)] for name in ("se", "baseline")]
    interval = reference.ttest_rel(*pairs).confidence_interval(0.95)
    difference = summaries["se"].difference
    assert difference is not None and (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert summaries["baseline"].is_baseline and summaries["baseline"].difference is None


def test_hours_and_restarts_are_those_of_all_attempts_and_seconds_those_of_kept_epochs(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=2, epochs=6)
    sweep.finish("se", 0, seconds=15.0)
    sweep.finish("se", 1, seconds=21.0)
    sweep.attempt("se", 1, "preempted", generation=2)
    for seed, hours, generation in ((0, 1.5, 1), (1, 0.25, 1), (1, 4.0, 2)):
        sweep.lasted("se", seed, hours, generation)
    _, se = summarise(gather([sweep.folder.path]), "baseline")
    assert (se.device_hours, se.restarts) == ({"cpu": 5.75}, 1)
    seconds = se.metrics["seconds_per_epoch"]
    assert seconds is not None and (seconds.mean, seconds.std) == pytest.approx((3.0, np.std([15 / 6, 21 / 6], ddof=1)))


def test_a_fork_is_timed_by_the_epochs_that_it_trained_itself(tmp_path: Path) -> None:
    parent = Parent(run_id="0" * 12, slug="old", step=20, checkpoint="x", state_digest="y")
    result = FakeSweep(tmp_path, seeds=1, epochs=6).finish("se", 0, seconds=10.0, parent=parent)
    assert result.step == 60 and seconds_per_epoch(result) == pytest.approx(10.0 / 4)


def test_unfinished_runs_are_states_and_not_numbers(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=3)
    sweep.finish("se", 0)
    sweep.attempt("se", 1, "crashed", "boom")
    se = summarise(gather([sweep.folder.path]), "baseline")[1]
    assert (se.n, se.states) == (1, (("finished", 1), ("failed", 1), ("new", 1)))


def test_a_run_in_two_arms_counts_in_both(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.finish_all()
    plan = replace(sweep.plan, arms={**sweep.plan.arms, "again": sweep.plan.arms["se"]})
    shared = {name: replace(run, arms=(*run.arms, "again")) if "se" in run.arms else run for name, run in plan.runs.items()}
    replace(plan, runs=shared).write(sweep.folder)
    summaries = summarise(gather([sweep.folder.path]), "baseline")
    assert [(each.arm, each.n) for each in summaries] == [("baseline", 1), ("se", 1), ("again", 1)]
    assert summaries[1].last == summaries[2].last


def test_baseline_is_the_wanted_arm_else_the_one_of_that_name_else_the_first() -> None:
    assert choose_baseline(["a", "se", "baseline"], "se") == "se"
    assert choose_baseline(["a", "baseline"], None) == "baseline"
    assert choose_baseline(["a", "b"], None) == "a"
    assert choose_baseline(["one/a", "two/b"], "b") == "two/b"
    with pytest.raises(ConfigError, match=r"--baseline x: is no arm here. Arms: a, b."):
        choose_baseline(["a", "b"], "x")
    with pytest.raises(ConfigError, match="several sweeps"):
        choose_baseline(["one/a", "two/a"], "a")


def test_runs_frame_keeps_whole_numbers_whole_beside_missing_runs(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=2)
    sweep.finish("baseline", 0)
    frame = runs_frame(gather([sweep.folder.path]).rows)
    assert list(frame["state"]) == ["finished", "new", "new", "new"]
    assert str(frame["parameters"].iloc[0]) == "297242" and frame["parameters"].isna().sum() == 3
