"""`program:` of a sweep: read, refused where it is wrong, part of the run's id, and a result of two numbers made whole."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweep_text import expand_text, read_text

from hpc.code_snapshot import snapshot_code
from hpc.debug import debug_run
from hpc.estimate import Estimate
from hpc.launch_session import Request
from hpc.launcher import launch
from hpc.login_data import distinct_data
from hpc.reproduce import reproduce
from hpc.sweep import expand
from seresnet.config import RunConfig, identity, run_id, to_dict
from seresnet.config_file import config_from_dict
from seresnet.errors import ConfigError
from seresnet.evaluate import main as evaluate
from seresnet.journal import EpochRecord, append
from seresnet.run_folder import RunFolder, RunRecord, TrainResult, is_finished
from seresnet.train import main

COMMAND = "[python, train.py, '{run_dir}/run.yaml']"
SWEEP = f"name: own\nprogram: {COMMAND}\nbase: {{train: {{epochs: 5, device: cpu}}}}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text('raise SystemExit("was run on the login node")\n')
    (tmp_path / "torn.py").write_text("def (:\n")
    for name in ("train.sh", "program", ".hidden/train.py", "mine/__init__.py", "mine/train.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def test_arms_grids_and_overrides_add_up_arguments_by_name(folder: Path) -> None:
    text = f"{SWEEP}program.args.depth: 2\narms: {{a: {{}}, b: {{program.args.depth: 3}}}}\ngrid: {{program.args.lr: [0.1, 0.2]}}\n"
    runs = expand_text(folder, text, "program.args.extra=x")
    assert [dict(run.config.program.args) for run in runs] == [
        {"depth": depth, "extra": "x", "lr": lr} for depth in (2, 3) for lr in (0.1, 0.2)
    ]
    assert len({run.run_id for run in runs}) == 4
    assert all(run.config.program.command == ("python", "train.py", "{run_dir}/run.yaml") for run in runs)


@pytest.mark.parametrize(
    "text", [SWEEP, SWEEP.replace("program: [", "program.command: ["), SWEEP.replace(f"program: {COMMAND}\n", "").replace(
        "base: {", f"base: {{program: {COMMAND}, ")]
)  # fmt: skip
def test_every_spelling_is_one_run(folder: Path, text: str) -> None:
    (run,) = expand_text(folder, text)
    assert identity(run.config)["program.command"] == ["python", "train.py", "{run_dir}/run.yaml"]
    assert run.run_id == expand_text(folder, SWEEP)[0].run_id


def test_a_run_without_a_program_has_the_records_and_the_id_of_before() -> None:
    assert "program" not in to_dict(RunConfig())
    assert run_id(RunConfig()) == "7c30de8a9850"  # as it was before there were programs


def test_run_yaml_reads_back(folder: Path) -> None:
    (run,) = expand_text(folder, f"{SWEEP}program.args: {{lr: 0.1, sizes: [1, 2]}}\n")
    RunRecord(run_id=run.run_id, slug=run.slug, config=to_dict(run.config)).write(RunFolder(path=folder))
    record = RunRecord.read(RunFolder(path=folder))
    assert record.config["program"]["args"] == {"lr": 0.1, "sizes": [1, 2]}
    assert run_id(config_from_dict(record.config, "run.yaml")) == run.run_id


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("[python, trian.py, '{run_dir}']", "there is no trian.py in {folder}. Did you mean train.py?"),
        ("[python, torn.py, '{run_dir}']", "torn.py:1: invalid syntax"),
        ("[python, train.py]", "is not told which run it is. Add '{{run_dir}}/run.yaml'."),
        (
            "[python, train.py, '{run_dir}', '{seed}']",
            "{{seed}} in 'python train.py {{run_dir}} {{seed}}' is nothing that would be filled in",
        ),
        ("[]", "program.command: has no words, or an empty one"),
        ("python train.py", "'python train.py' is text, a list of lines or null is wanted"),
        (
            "[train.py, '{run_dir}']",
            "train.py would be looked for on PATH. Write the interpreter before it, such as python, or ./train.py.",
        ),
        ("[./train.py, '{run_dir}']", "train.py is not executable. Say chmod +x, or write its interpreter before it."),
        ("[./program, '{run_dir}']", "./program is not among the files of {folder} that are copied with a sweep"),
        ("[bash, trian.sh, '{run_dir}']", "there is no trian.sh in {folder}. Did you mean train.sh?"),
        ("[python, .hidden/train.py, '{run_dir}']", ".hidden/train.py is not copied with a sweep"),
        ("[python, ../{name}/train.py, '{run_dir}']", "train.py is not copied with a sweep: it is hidden, outside of"),
        ("[python, -u, -m, mine.trian, '{run_dir}']", "there is no mine/trian.py in {folder}. Did you mean mine/train.py?"),
        ("[python, 3]", "a list with 3 in it"),
        ("{comand: [python]}", "Did you mean program.command?"),
        ("{args: {lr: 1}}", "program.args has arguments, and program.command is not set"),
    ],
)
def test_wrong_program_is_refused_with_its_line_and_the_fix(folder: Path, program: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_text(folder, f"code_root: .\nprogram: {program.replace('{name}', folder.name)}\nbase: {{}}\n")
    assert f"{folder / 'sweep.yaml'}:2: " in str(refused.value)
    assert said.format(folder=folder.resolve()) in str(refused.value)


@pytest.mark.parametrize(
    "program",
    [
        "[bash, train.sh, '{run_dir}', '${HOME}', '{}', '{\"lr\": 0.1}']",
        "[bash, -c, 'python train.py', '{run_dir}']",
        "[python, -u, -m, mine, '{run_dir}']",
        "[python, ./mine/train.py, --table=x.py, '{run_dir}']",
    ],
)
def test_words_that_mean_something_to_others_are_left_to_them(folder: Path, program: str) -> None:
    (folder / "mine" / "__main__.py").write_text("")
    assert len(expand_text(folder, f"program: {program}\nbase.train.epochs: 5\n")) == 1


def test_a_relative_program_without_a_code_root_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"bin/simulate is started in the copy of code_root, and there is none"):
        read_text(folder, "program: [bin/simulate, '{run_dir}']\nbase: {}\n")


def test_a_wrong_program_is_not_judged_as_our_training(folder: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_text(folder, "program: python train.py\nbase.train.epochs: 5\n")
    assert "warmup" not in str(refused.value)


def test_scripts_of_other_languages_come_along_and_stay_executable(folder: Path) -> None:
    (folder / "train.sh").chmod(0o755)
    spec = read_text(folder, "program: [./train.sh, '{run_dir}']\nseeds: 2\n")
    copy = folder / "runs" / snapshot_code(folder / "runs", user=spec.code_root) / "user" / "train.sh"
    assert (spec.notes, os.access(copy, os.X_OK), os.access(copy.with_name("train.py"), os.X_OK)) == ((), True, False)


def test_the_command_line_may_give_program_and_arguments_whole(folder: Path) -> None:
    (run,) = expand_text(folder, SWEEP, "program=[python,mine/train.py,'{run_dir}']", "program.args={a: 1, b: [x, y]}")
    assert run.config.program.command == ("python", "mine/train.py", "{run_dir}")
    assert dict(run.config.program.args) == {"a": 1, "b": ("x", "y")}


def test_two_programs_for_one_run_and_several_nodes_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"the key is set here and in base \(.*:3\)\. Keep one"):
        read_text(folder, SWEEP.replace("base: {", f"base: {{program: {COMMAND}, "))
    with pytest.raises(ConfigError, match=r"train\.nodes: 2 is set beside a program, which runs on one node"):
        read_text(folder, SWEEP, "train.ranks=2", "train.nodes=2")


def test_rules_of_the_built_in_training_do_not_bind_a_program(folder: Path) -> None:
    # Warm-up of ten epochs beyond the horizon of five, three ranks that cannot share 1,024 samples.
    assert expand_text(folder, SWEEP, "train.ranks=3")[0].config.train.ranks == 3


def test_what_cannot_be_looked_at_is_noted(folder: Path) -> None:
    text = "program: [Rscript, /x/train.R, '{run_dir}']\nbase: {}\n"
    assert "names no script of code_root" in read_text(folder, text).notes[0]
    assert "module absent is not in code_root" in read_text(folder, "program: [python, -m, absent, '{run_dir}']\nbase: {}\n").notes[0]


def test_its_data_is_its_own_business(folder: Path) -> None:
    assert distinct_data(expand(read_text(folder, SWEEP))) == []


@pytest.mark.parametrize("option", ["--smoke", "--calibrate", "--debug"])
def test_what_looks_into_our_training_is_refused(folder: Path, option: str) -> None:
    read_text(folder, SWEEP)
    request = Request(
        sweep_file=folder / "sweep.yaml", runs_dir=folder / "runs", local=True, smoke=option == "--smoke", calibrate=option == "--calibrate"
    )
    with pytest.raises(ConfigError, match=rf"{option} looks into the built-in training"):
        debug_run(request, "own-s0") if option == "--debug" else launch(request)


def test_our_training_does_not_start_in_its_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.yaml").write_text(f"program: {COMMAND}\ntrain: {{epochs: 1, device: cpu}}\n")
    assert main(["--config", str(folder / "run.yaml"), "--run-dir", str(folder / "run")]) == 2
    assert "a script of its own, which the launcher starts" in capsys.readouterr().err


def test_what_needs_our_network_says_whose_this_is(tmp_path: Path) -> None:
    folder = own_run(tmp_path, {"epochs": 5, "last_test_top1_pct": 65})
    with pytest.raises(ConfigError, match="--reproduce looks into the built-in training"):
        reproduce(folder.path, None)
    assert evaluate([str(folder.path), "--output", str(tmp_path / "out")]) == 2


# --- results ---


def own_run(tmp_path: Path, result: dict[str, Any], program: str = COMMAND, lines: int = 0) -> RunFolder:
    (tmp_path / "train.py").write_text("")
    (run,) = expand_text(tmp_path, SWEEP.replace(COMMAND, program))
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    RunRecord(run_id=run.run_id, slug=run.slug, config=to_dict(run.config)).write(folder)
    for epoch in range(1, lines + 1):
        append(folder, line(epoch))
    folder.result.write_text(json.dumps(result))
    return folder


def line(epoch: int) -> EpochRecord:
    return EpochRecord(
        epoch=epoch, step=10 * epoch, generation=1, lr=0.1, train_loss=1.0 / epoch, train_top1_pct=50.0,
        val_loss=None, val_top1_pct=[70.0, 80.0, 75.0, 80.0, 60.0][epoch - 1], test_loss=2.0 / epoch,
        test_top1_pct=[60.0, 61.0, 66.0, 64.0, 65.0][epoch - 1],
        skipped_steps=0, seconds=2.0, images_per_s=None, time=0.0,
    )  # fmt: skip


def test_two_numbers_are_a_result_and_nothing_is_made_up(tmp_path: Path) -> None:
    folder = own_run(tmp_path, {"epochs": 5, "last_test_top1_pct": 65})
    result = TrainResult.read(folder)
    assert result is not None and is_finished(folder)
    assert (result.epochs, result.last_test_top1_pct, result.best_on_test_epoch, result.best_on_test_top1_pct) == (5, 65, 5, 65)
    assert (result.parameters, result.train_loss, result.val_chosen_epoch, result.classes) == (None, None, None, [])


def test_the_rest_comes_from_its_journal(tmp_path: Path) -> None:
    result = TrainResult.read(own_run(tmp_path, {"epochs": 5, "last_test_top1_pct": 65.0, "parameters": 7}, lines=5))
    assert result is not None
    assert (result.best_on_test_epoch, result.best_on_test_top1_pct) == (3, 66.0)
    # Of equal validation accuracies the first, as the built-in training chooses.
    assert (result.val_chosen_epoch, result.val_chosen_val_top1_pct, result.val_chosen_test_top1_pct) == (2, 80.0, 61.0)
    assert (result.seconds, result.step, result.train_loss, result.parameters) == (10.0, 50, 0.2, 7)


def test_lines_that_lie_neither_end_a_run_nor_get_into_its_result(tmp_path: Path) -> None:
    folder = own_run(tmp_path, {"epochs": 5, "last_test_top1_pct": 65.0}, lines=2)
    append(folder, replace(line(3), test_top1_pct=150.0))
    folder.journal(9).mkdir()
    assert is_finished(folder), "which the journal has no say in"
    folder.journal(9).rmdir()
    result = TrainResult.read(folder)
    assert result is not None and (result.best_on_test_epoch, result.best_on_test_top1_pct) == (2, 61.0)


def test_equal_numbers_of_one_run_are_the_same_bits_and_others_are_not(tmp_path: Path) -> None:
    digests = set()
    for place, top1 in enumerate((65.0, 65.0, 66.0)):
        (tmp_path / str(place)).mkdir()
        result = TrainResult.read(own_run(tmp_path / str(place), {"epochs": 5, "last_test_top1_pct": top1}))
        assert result is not None
        digests.add(result.state_digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"epochs": 5}, "has no last_test_top1_pct. A program's result needs epochs and last_test_top1_pct"),
        ({"epochs": 5, "last_test_top1_pct": 1.0, "paramters": 3}, "paramters is no key of a result. Did you mean parameters?"),
        ({"epochs": 5, "last_test_top1_pct": "65"}, "wrong type or not finite: last_test_top1_pct"),
        ({"epochs": 5, "last_test_top1_pct": 650}, "is 650, not a percentage"),
        ({"epochs": 5, "last_test_top1_pct": 65, "train_images": -3}, "train_images is -3, below zero"),
        (
            {"epochs": 5, "last_test_top1_pct": 65, "classes": ["a", "b"], "confusion": [[1, 2], [-1, 3]]},
            "confusion counts fewer than zero images",
        ),
        ({"epochs": 5, "last_test_top1_pct": 65, "best_on_test_epoch": 3}, "go together. Write all of them, or none"),
        ({"epochs": 5, "last_test_top1_pct": 65, "classes": ["a", "b"]}, "confusion is not 2 x 2"),
    ],
)
def test_wrong_result_says_what_is_wrong(tmp_path: Path, result: dict[str, Any], said: str) -> None:
    folder = own_run(tmp_path, result)
    with pytest.raises(ConfigError) as refused:
        TrainResult.read(folder)
    assert said in str(refused.value) and str(folder.result) in str(refused.value)


def test_a_result_without_schema_is_nobodys_where_there_is_no_program(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    folder.create()
    RunRecord(run_id="a", slug="a", config=to_dict(RunConfig())).write(folder)
    folder.result.write_text(json.dumps({"epochs": 900, "last_test_top1_pct": 99.0}))
    with pytest.raises(ConfigError, match="schema is None"):
        TrainResult.read(folder)


def test_the_plan_does_not_advise_what_would_be_refused() -> None:
    assert Estimate(runs=1, can_calibrate=False).lines() == (("time", "not known: an earlier run of the program would tell"),)
