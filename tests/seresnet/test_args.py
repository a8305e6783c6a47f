"""Targets and their arguments in files, overrides and sweeps: one text for equal ones, layers that add up, and what identifies a run."""

from pathlib import Path

import pytest

from hpc.sweep_file import read_sweep
from seresnet.config import ModelConfig, RunConfig, identity, run_id, to_dict
from seresnet.config_file import config_from_dict, read_run_config


def read(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    (tmp_path / "run.yaml").write_text(text)
    return read_run_config(tmp_path / "run.yaml", overrides).config


def test_order_of_arguments_does_not_matter_and_their_values_do(tmp_path: Path) -> None:
    texts = ("{depth: 3, wide: true}", "{wide: true, depth: 3}", "{depth: 3, wide: false}")
    ids = [run_id(read(tmp_path, f"model: {{target: a.b, args: {text}}}")) for text in texts]
    assert ids[0] == ids[1] != ids[2]


def test_both_spellings_of_a_target_are_one_run(tmp_path: Path) -> None:
    assert run_id(read(tmp_path, "model.target: timm.create_model")) == run_id(read(tmp_path, "model.target: timm:create_model"))
    assert run_id(read(tmp_path, "model.target: a.b:c")) != run_id(read(tmp_path, "model.target: a:b.c"))


def test_arguments_that_no_run_has_change_no_id() -> None:
    assert run_id(RunConfig()) == run_id(RunConfig(model=ModelConfig(target=None, args=())))
    assert identity(RunConfig()) == {}


def test_dict_of_arguments_reads_back_with_their_types(tmp_path: Path) -> None:
    config = read(tmp_path, "model: {target: a.b, args: {n: 1, x: 1.0, on: true, none: null, words: [a, 2, 0.5], empty: ''}}")
    back = config_from_dict(to_dict(config), "run.yaml")
    assert back == config
    assert [(name, type(value)) for name, value in back.model.args] == [(name, type(value)) for name, value in config.model.args]


def test_later_layers_add_to_arguments_and_win(tmp_path: Path) -> None:
    config = read(tmp_path, "model: {target: a.b, args: {depth: 3, width: 8}}", "model.args.depth=4", "model.args.words=[x]")
    assert config.model.args == (("depth", 4), ("width", 8), ("words", ("x",)))


@pytest.mark.parametrize(
    "axis", ["grid: {model.args.depth: [2, 3]}", "grid: {model: {args: {depth: [2, 3]}}}", "zip: {model.args.depth: [2, 3]}"]
)
def test_sweep_walks_an_argument(tmp_path: Path, axis: str) -> None:
    (tmp_path / "own.yaml").write_text(f"base: {{model: {{target: a.b, args: {{width: 8}}}}}}\n{axis}\n")
    arms = read_sweep(tmp_path / "own.yaml").arms
    assert [(arm.name, arm.loaded.config.model.args) for arm in arms] == [
        (f"own depth={depth}", (("depth", depth), ("width", 8))) for depth in (2, 3)
    ]


def test_condition_on_an_argument_leaves_out_its_values(tmp_path: Path) -> None:
    text = "base: {model.target: a.b}\ngrid: {model.args.depth: [1, 2, 3]}\nexclude: {model.args.depth: [1, 3]}\n"
    (tmp_path / "own.yaml").write_text(text)
    assert [arm.name for arm in read_sweep(tmp_path / "own.yaml").arms] == ["own depth=2"]
