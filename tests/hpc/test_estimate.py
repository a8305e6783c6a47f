"""Estimates: arithmetic checked by hand, words, and where the numbers come from."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sweep import FakeSweep

from hpc import draft as drafts
from hpc import estimate, slurm, timings
from hpc.estimate import RunLoad, TaskLoad, calculate
from hpc.paths import SweepFolder
from hpc.site import Site
from hpc.sweep import expand, read_sweep
from hpc.timings import Known, Timing, shape_digest, shape_key
from seresnet.config import to_dict

TEN_S = Timing(low_s=10.0, high_s=12.0, source="3 earlier runs", checkpoint_bytes=50_000_000)


def tasks(count: int, runs: int = 1, timing: Timing | None = TEN_S, **more: int) -> list[TaskLoad]:
    return [TaskLoad(runs=(RunLoad(epochs=900, timing=timing),) * runs, **more) for _ in range(count)]


# --- arithmetic


def test_a_plan_of_known_speed_is_what_a_calculation_by_hand_gives() -> None:
    found = calculate(tasks(4, runs=2, gpus=2), walltime_s=4 * 3600, signal_delay_s=60, parallel=2)
    assert found.run_s == (9000, 10800)
    assert found.task_s == (18000, 21600)
    assert found.gpu_hours == (4 * 2 * 18000 / 3600, 4 * 2 * 21600 / 3600)
    assert found.total_s == (36000, 43200)
    # 18,000 s and 21,600 s in pieces of 14,400 - 60 - 120 s.
    assert found.requeues == (1, 1)
    assert found.disk_bytes == 8 * (6 * 50_000_000 + 600 * 900)


@pytest.mark.parametrize(("seconds", "requeues"), [(100, 0), (14_220, 0), (14_221, 1), (28_440, 1), (28_441, 2)])
def test_requeues_are_the_pieces_that_a_task_is_cut_into_less_one(seconds: int, requeues: int) -> None:
    exact = Timing(low_s=seconds, high_s=seconds, source="x")
    found = calculate([TaskLoad(runs=(RunLoad(epochs=1, timing=exact),))], walltime_s=4 * 3600, signal_delay_s=60)
    assert found.requeues == (requeues, requeues)


def test_runs_side_by_side_take_between_the_longest_and_all_in_turn() -> None:
    (task,) = tasks(1, runs=4, at_a_time=4, gpus=1)
    assert task.seconds == (9000, 4 * 10800)


def test_one_unknown_run_makes_its_task_unknown_and_the_sums_a_least() -> None:
    found = calculate([*tasks(1, gpus=1), *tasks(1, timing=None, gpus=1)], walltime_s=3600)
    assert (found.unknown, found.runs, found.total_s) == (1, 2, None)
    text = dict(found.lines())
    assert "1 of 2 runs not known" in text["time"] and text["use"].startswith("at least "), text


def test_nothing_known_is_one_short_line() -> None:
    assert calculate(tasks(3, timing=None), walltime_s=3600).lines() == (("time", "not known: --calibrate times some steps"),)


def test_all_lines_of_a_known_plan() -> None:
    found = calculate(tasks(4, runs=2, gpus=2), walltime_s=4 * 3600, signal_delay_s=60, parallel=2)
    assert replace(found, start="now, if nothing changes (sbatch --test-only)", packing="auto: x").lines() == (
        ("time", "about 11 s an epoch (from 3 earlier runs); about 2.8 h a run"),
        ("tasks", "the longest takes about 5.5 h at 4 h of walltime: about 1 requeue; all of them about 11 h, 2 at a time"),
        ("use", "about 44 GPU-hours"),
        ("disk", "about 2.4 GB, 220 files"),
        ("start", "now, if nothing changes (sbatch --test-only)"),
        ("pack", "auto: x"),
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (0.1234, "0.12 s"), (9.96, "10 s"), (89, "89 s"), (100, "1.7 min"), (5399, "90 min")),
        *((5400, "1.5 h"), (100_000, "28 h"), (4 * 86400, "4 days"), (123 * 86400, "120 days")),
    ],
)
def test_durations_have_two_digits(seconds: float, text: str) -> None:
    assert estimate.duration(seconds) == text


def test_ranges_within_a_quarter_are_one_number() -> None:
    assert estimate.between((10.0, 12.0), estimate.duration) == "about 11 s"
    assert estimate.between((10.0, 14.0), estimate.duration) == "10 s to 14 s"


# --- where numbers come from


def known(sweep: FakeSweep, **more: object) -> Known:
    configs = {run_id: to_dict(config) for run_id, config in sweep.configs.items()}
    return Known(sweep.folder, sweep.plan, configs, begun=list(configs), **more)  # type: ignore[arg-type]


def test_a_run_counts_its_own_epochs_first_and_other_runs_those_of_its_shape(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    sweep.train("se", 0, range(1, 4))
    own, other = known(sweep).of_run(sweep.ids["se", 0]), known(sweep).of_run(sweep.ids["se", 1])
    assert own is not None and (own.low_s, own.high_s, own.source) == (4.5, 4.5, "its own epochs")
    assert other is not None and other.source == "1 earlier run"
    assert known(sweep).of_run(sweep.ids["baseline", 0]) is None


def test_a_sweep_beside_this_one_is_asked_where_this_one_knows_nothing(tmp_path: Path) -> None:
    FakeSweep(tmp_path, name="older").finish_all()
    sweep = FakeSweep(tmp_path, name="newer", epochs=60)
    found = known(sweep).of_run(sweep.ids["se", 0])
    assert found is not None and (found.source, found.low_s) == ("1 sibling sweep run", 4.5)


def test_a_sweep_beside_this_one_that_is_another_users_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mode 700 does not stop root, so stat says what it says to others."""
    FakeSweep(tmp_path, name="older").finish_all()
    FakeSweep(tmp_path, name="theirs").finish_all()
    sweep, real = FakeSweep(tmp_path, name="newer", epochs=60), Path.stat

    def stat(path: Path, **more: bool) -> os.stat_result:
        if path.is_relative_to(tmp_path / "theirs") and path != tmp_path / "theirs":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    found = known(sweep).of_run(sweep.ids["se", 0])
    assert found is not None and found.source == "1 sibling sweep run"


def test_runs_that_the_sweep_no_longer_asks_for_still_tell_their_speed(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    sweep.train("se", 0, range(1, 4))
    left = {run_id: to_dict(config) for run_id, config in sweep.configs.items() if run_id != sweep.ids["se", 0]}
    found = Known(sweep.folder, sweep.plan, left).of_run(sweep.ids["se", 1])
    assert found is not None and (found.source, found.low_s) == ("1 earlier run", 4.5)


def test_what_was_seen_on_another_gpu_does_not_count(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    sweep.train("se", 0, range(1, 4))
    sweep.of("se", 0).environment(1).write_text(json.dumps({"device": "cuda: NVIDIA A100-SXM4-80GB"}))
    assert known(sweep, gpu_word="h200").of_run(sweep.ids["se", 1]) is None
    found = known(sweep, gpu_word="a100").of_run(sweep.ids["se", 1])
    assert found is not None and found.gpu == "NVIDIA A100-SXM4-80GB"


def test_a_trial_counts_until_a_run_has_epochs(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    report = {"time": 1.0, "epoch_s": 10.0, "checkpoint_bytes": 1000, "steps": 20, "peak_memory_mb": 1.0, "ranks": 1, "gpu": None}
    shape = shape_digest(to_dict(sweep.configs[sweep.ids["se", 0]]))
    sweep.folder.trials.mkdir()
    (sweep.folder.trials / "smoke-0001.end.json").write_text(json.dumps({"x": {"shape": shape, "report": report}, "y": {"report": None}}))
    found = known(sweep).of_run(sweep.ids["se", 1])
    assert found is not None and (found.low_s, found.high_s, found.source) == (9.0, 12.0, "a trial of 20 steps")
    sweep.train("se", 0, range(1, 4))
    again = known(sweep).of_run(sweep.ids["se", 1])
    assert again is not None and again.source == "1 earlier run"


def test_damaged_files_are_no_news(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    sweep.of("se", 0).journal(1).write_bytes(b'{"epoch": 1, "sec\xff')
    sweep.folder.trials.mkdir()
    (sweep.folder.trials / "smoke-0001.end.json").write_text("[1")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plan.json").write_text("{")
    assert known(sweep).of_run(sweep.ids["se", 0]) is None


def test_a_checkpoint_that_vanishes_and_a_neighbour_of_nonsense_stop_no_plan(tmp_path: Path) -> None:
    broken, sweep = FakeSweep(tmp_path, name="older").finish_all(), FakeSweep(tmp_path, name="newer")
    for identity in broken.configs:
        broken.run(identity).run_yaml.write_text("config: {model: 3}")
    assert known(sweep).of_run(sweep.ids["se", 1]) is None
    sweep.train("se", 0, range(1, 4))
    gone = sweep.of("se", 0).checkpoints / "gone.safetensors"
    gone.touch()
    (entry,) = [entry for entry in os.scandir(gone.parent) if entry.name == gone.name]
    gone.unlink()
    assert timings._size(entry) == 0


def test_a_shape_forgets_seed_and_length_and_keeps_what_costs_time(tmp_path: Path) -> None:
    config = to_dict(FakeSweep(tmp_path).configs.popitem()[1])
    longer = {**config, "train": {**config["train"], "epochs": 5, "seed": 9}, "optim": {**config["optim"], "lr": 1.0}}
    older = {**config, "train": {key: value for key, value in config["train"].items() if key != "nodes"}}
    wider = {**config, "model": {**config["model"], "width": 99}}
    assert shape_key(longer) == shape_key(older) == shape_key(config) != shape_key(wider)


def test_an_estimate_of_a_thousand_runs_takes_no_time(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=500)
    sweep.train("se", 3, range(1, 4))
    started = time.perf_counter()
    found = known(sweep)
    timings = [found.of_run(run_id) for run_id in sweep.configs]
    seconds = time.perf_counter() - started
    assert sum(timing is not None for timing in timings) == 500
    assert seconds < 2.0, f"{seconds:.2f} s"


# --- when it would start


def draft_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> drafts.Draft:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "s.yaml"
    file.write_text("name: s\nbase.train: {device: cpu, amp: off}\narms: {a: {}}\n")
    spec = read_sweep(file, ())
    return drafts.make_draft(spec, expand(spec), SweepFolder(tmp_path / "s"), Site(name="x"), is_local=False)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (
            slurm.Reply(returncode=0, stdout="", stderr="sbatch: Job 7 to start at 2099-01-02T03:04:05 using 2 processors on nodes n1"),
            "2099-01-02 03:04, if nothing changes (sbatch --test-only)",
        ),
        (
            slurm.Reply(returncode=0, stdout="", stderr="sbatch: Job 7 to start at 2001-01-02T03:04:05 using 2 processors on nodes n1"),
            "now, if nothing changes (sbatch --test-only)",
        ),
        (
            slurm.Reply(
                returncode=1, stdout="", stderr="x\nallocation failure: Invalid account or account/partition combination specified"
            ),
            "not known: allocation failure: Invalid account or account/partition combination specified",
        ),
        (
            slurm.Reply(returncode=None, stdout="", stderr="sbatch did not answer within 10 s"),
            "not known: sbatch did not answer within 10 s",
        ),
    ],
)
def test_the_start_is_what_sbatch_says_or_why_it_does_not(
    reply: slurm.Reply, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def call(*args: str, **more: object) -> slurm.Reply:
        asked.append(Path(args[-1]).read_text())
        return reply

    monkeypatch.setattr(slurm, "call", call)
    draft = draft_of(tmp_path, monkeypatch)
    assert estimate.ask_slurm(draft) == text
    assert "#SBATCH --array=0-0" in asked[0] and not (tmp_path / "s").exists()
