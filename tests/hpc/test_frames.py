"""hpc.load: two tables for notebooks, with every run and every epoch once, and nothing imported before it is asked for."""

import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_sweep import FakeSweep

import hpc
from hpc import frames
from hpc.archive import archive
from seresnet.errors import ConfigError


def test_runs_and_history_hold_what_the_files_say(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, epochs=4).finish_all()
    runs, history = hpc.load(str(sweep.folder.path))
    for run_id in sweep.configs:
        raw = [json.loads(line) for line in sweep.run(run_id).journal(1).read_text().splitlines()]
        ours = history[history["run_id"] == run_id]
        assert ours["test_top1_pct"].tolist() == [line["test_top1_pct"] for line in raw] and ours["epoch"].tolist() == [1, 2, 3, 4]
        result = json.loads(sweep.run(run_id).result.read_text())
        assert runs.set_index("run_id").loc[run_id, "last_test_top1_pct"] == result["last_test_top1_pct"]


def test_dtypes_are_those_of_the_values(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, epochs=2).finish_all()
    (sweep.of("se", 1).run_yaml).unlink()
    loaded = hpc.load(sweep.folder.path)
    kinds = {key: str(loaded.history[key].dtype) for key in ("sweep", "run_id", "seed", "epoch", "skipped_steps", "lr", "tflops")}
    assert kinds == {
        "sweep": "category",
        "run_id": "category",
        "seed": "Int64",
        "epoch": "int64",
        "skipped_steps": "int64",
        "lr": "float64",
        "tflops": "float64",
    }
    assert np.isnan(loaded.history["tflops"]).all() and pd.isna(loaded.history["seed"].iloc[-1])
    assert str(loaded.runs["model.width"].dtype) == "Int64" and pd.isna(loaded.runs["model.width"].iloc[-1])


def test_every_planned_run_is_a_row_and_a_sweep_without_epochs_has_an_empty_history(tmp_path: Path) -> None:
    runs, history = hpc.load(FakeSweep(tmp_path).folder.path)
    assert runs["state"].tolist() == ["new"] * 4 and len(history) == 0
    assert {"run_id", "arms", "seed", "epoch", "lr"} <= set(history.columns)


def two_sweeps(root: Path) -> tuple[FakeSweep, FakeSweep]:
    """Both have all four runs; `two` was made anew with the same results."""
    return FakeSweep(root, name="one", epochs=2).finish_all(), FakeSweep(root, name="two", epochs=2).finish_all()


def test_a_run_of_two_sweeps_with_the_same_bits_counts_once(tmp_path: Path) -> None:
    one, two = two_sweeps(tmp_path)
    runs, history = hpc.load(one.folder.path, two.folder.path)
    assert runs["arms"].tolist() == ["one/baseline; two/baseline"] * 2 + ["one/se; two/se"] * 2
    assert not history.duplicated(["run_id", "epoch"]).any() and len(history) == 8


def test_a_run_of_two_sweeps_with_other_bits_counts_in_each(tmp_path: Path) -> None:
    one, two = two_sweeps(tmp_path)
    two.finish("se", 1, state_digest="other")
    runs, _ = hpc.load(one.folder.path, two.folder.path)
    assert runs[runs["run_id"] == one.ids["se", 1]]["arms"].tolist() == ["one/se", "two/se"]
    assert len(runs) == 5


def test_a_sweep_given_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSweep(tmp_path, epochs=2).finish_all()
    monkeypatch.chdir(tmp_path)
    assert hpc.load("demo", tmp_path / "demo").runs["arms"].tolist() == ["baseline", "baseline", "se", "se"]


def test_the_example_in_the_docstring_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSweep(tmp_path / "runs", name="ablation").finish_all()
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(frames.load.__doc__ or "", {}, "hpc.load", None, None)
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test) == doctest.TestResults(failed=0, attempted=5)


@pytest.mark.parametrize("sweeps", [[], ["nowhere"]])
def test_nothing_to_load_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeps: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="Name at least one" if not sweeps else "Launch it first"):
        hpc.load(*sweeps)


def test_importing_hpc_imports_neither_pandas_nor_numpy() -> None:
    code = "import sys, hpc; assert hpc.__version__; print(*({'pandas', 'numpy', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    with pytest.raises(AttributeError, match="has no attribute 'loda'"):
        hpc.loda  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("place", ["copy", "sweep.tar"])
def test_a_sweep_that_was_copied_or_archived_loads_the_same(tmp_path: Path, place: str) -> None:
    sweep = FakeSweep(tmp_path, epochs=2).finish_all()
    first = hpc.load(sweep.folder.path)
    if place == "copy":
        shutil.copytree(sweep.folder.path, tmp_path / place)
    else:
        archive(sweep.folder.path, tmp_path / place)
    again = hpc.load(tmp_path / place)
    pd.testing.assert_frame_equal(first.history, again.history)
    pd.testing.assert_frame_equal(first.runs, again.runs)
