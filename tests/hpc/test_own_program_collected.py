"""Tables, page, methods and mirror of runs whose program said two numbers, or many, beside runs of the built-in training."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fake_sweep import FakeSweep, record

from hpc import collect, methods, report
from hpc.comparison import compare
from hpc.gather import gather
from hpc.mirror_rows import durable_records
from hpc.progress_view import progress_of
from hpc.states import RunState
from hpc.stats import seconds_per_epoch
from seresnet import journal
from seresnet.config import ProgramConfig, to_dict
from seresnet.errors import ConfigError
from seresnet.run_folder import RunRecord, TrainResult

BARE: dict[str, Any] = {"epochs": 6, "last_test_top1_pct": 60}
WHOLE = {
    **BARE,
    "classes": ["a", "b"],
    "confusion": [[30, 20], [20, 30]],
    "parameters": 7,
    "train_images": 80,
    "val_images": 20,
    "test_images": 9,
}


def sweep_of_programs(root: Path, result: dict[str, Any], arms: tuple[str, ...] = ("baseline", "se"), lines: bool = False) -> FakeSweep:
    """Runs of these arms are a program's, finished with this result; the others are left to the test."""
    sweep = FakeSweep(root)
    for (arm, seed), identity in sweep.ids.items():
        if arm in arms:
            config = replace(sweep.configs[identity], program=ProgramConfig(command=("python", "my train.py", "{run_dir}")))
            folder = sweep.of(arm, seed)
            RunRecord(run_id=identity, slug=sweep.plan.runs[identity].slug, config=to_dict(config)).write(folder)
            sweep.attempt(arm, seed, "finished")
            for epoch in range(1, 7) if lines else ():
                journal.append(folder, record(arm, seed, epoch, 6))
            folder.result.write_text(json.dumps(result))
    return sweep


@pytest.mark.parametrize(("result", "lines"), [(BARE, False), (WHOLE, True)])
def test_everything_that_is_collected_can_be_made_of_it(tmp_path: Path, result: dict[str, Any], lines: bool) -> None:
    sweep = sweep_of_programs(tmp_path, result, lines=lines)
    assert collect.main([str(sweep.folder.path), "--figures", "all", "--figure-formats", "svg", "--format", "latex"]) == 0
    said = (sweep.folder.path / "table.md").read_text() + (sweep.folder.path / "report.html").read_text().partition("<script")[0]
    assert "| baseline |" in said and "60.00" in said and "None" not in said


def test_a_run_without_a_journal_is_as_far_as_its_result_says_and_took_no_time_that_anybody_knows(tmp_path: Path) -> None:
    sweep = sweep_of_programs(tmp_path, BARE)
    folder = sweep.of("se", 0)
    far = progress_of(RunState(run_id=sweep.ids["se", 0], slug="se-seed0", arms=("se",), folder=folder, state="finished"))
    result = TrainResult.read(folder)
    assert (far.epoch, far.test_top1_pct) == (6, 60)
    assert result is not None and seconds_per_epoch(result) is None


def test_numbers_that_no_training_reaches_do_not_end_everybodys_page(tmp_path: Path) -> None:
    sweep = sweep_of_programs(tmp_path, BARE, lines=True)
    line = {**asdict(record("se", 0, 3, 6)), "step": 31, "train_loss": 1e308, "seconds": 1e308}
    with open(sweep.of("se", 0).journal(1), "a") as file:
        file.write(json.dumps(line) + "\n")
    assert len(journal.read(sweep.of("se", 0))) == 6
    assert collect.main([str(sweep.folder.path), "--figures", "loss", "--figure-formats", "svg"]) == 0


def test_images_that_nobody_counted_are_not_said_to_be_none(tmp_path: Path) -> None:
    comparison = compare(gather([sweep_of_programs(tmp_path, BARE).folder.path]), None)
    assert "Data: own data." in methods.paragraph(comparison)
    assert " 0 t" not in methods.paragraph(comparison) + report.page(comparison).partition("<script")[0]


def test_methods_keep_our_defaults_from_a_program_and_its_command_from_our_runs(tmp_path: Path) -> None:
    alone = methods.paragraph(compare(gather([sweep_of_programs(tmp_path / "alone", WHOLE).folder.path]), None))
    assert "Training is by `python 'my train.py' '{run_dir}'`." in alone
    assert "stratified draw" not in alone and "SGD" not in alone and "precision" not in alone
    mixed = sweep_of_programs(tmp_path / "mixed", WHOLE, arms=("se",))
    for seed in (0, 1):
        mixed.finish("baseline", seed)
    said = methods.paragraph(compare(gather([mixed.folder.path]), None))
    assert "Training of some configurations is by `python 'my train.py' '{run_dir}'`." in said and "SGD with momentum" in said


def test_runs_are_grouped_by_one_argument(tmp_path: Path) -> None:
    sweep = sweep_of_programs(tmp_path, BARE, arms=("se",))
    for seed, lr in enumerate((0.1, 0.2)):
        record_of = RunRecord.read(sweep.of("se", seed))
        record_of.config["program"]["args"] = {"lr": lr}
        record_of.write(sweep.of("se", seed))
        sweep.finish("baseline", seed)
    found = compare(gather([sweep.folder.path]), None, ["program.args.lr"])
    assert {arm.arm: arm.n for arm in found.arms} == {"program.args.lr=unset": 2, "program.args.lr=0.1": 1, "program.args.lr=0.2": 1}
    with pytest.raises(ConfigError, match=r"--by program\.args\.rl: no config has this key"):
        compare(gather([sweep.folder.path]), None, ["program.args.rl"])


@pytest.mark.parametrize("key", ["val_chosen_epoch", "val_chosen_val_top1_pct", "val_chosen_test_top1_pct"])
def test_an_epoch_that_was_chosen_comes_with_its_figures(tmp_path: Path, key: str) -> None:
    sweep = sweep_of_programs(tmp_path, {**BARE, key: 3})
    with pytest.raises(ConfigError, match="val_chosen_test_top1_pct go together"):
        TrainResult.read(sweep.of("se", 0))


def test_the_mirror_publishes_each_line_of_a_program_as_it_comes(tmp_path: Path) -> None:
    sweep = sweep_of_programs(tmp_path, BARE, arms=("se",), lines=True)
    assert [line.epoch for line in durable_records(sweep.of("se", 0), is_finished=False)] == [1, 2, 3, 4, 5, 6]
    journal.append(sweep.of("baseline", 0), record("baseline", 0, 1, 6))
    assert durable_records(sweep.of("baseline", 0), is_finished=False) == []  # ours: no checkpoint covers it yet
