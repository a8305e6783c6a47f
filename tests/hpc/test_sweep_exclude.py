"""Exclude: what is left is what filtering afterwards leaves, for any conditions."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from sweep_text import expand_text, read_text

from hpc.sweep import PlannedRun
from seresnet.errors import ConfigError

SWEEP = """
arms:
  baseline: {}
  se: {model.attention: se}
  wide: {model.width: 128, seeds: [5]}
grid:
  optim.lr: [0.05, 0.1]
  model.blocks: [[1, 1], [2]]
seeds: 3
"""


def is_excluded(run: PlannedRun, condition: dict[str, Any]) -> bool:
    config = run.config
    values = {
        "arm": {run.arms[0], run.arms[0].partition(" ")[0]},
        "seed": {config.train.seed},
        "optim.lr": {config.optim.lr},
        "model.attention": {config.model.attention},
        "model.blocks": {config.model.blocks},
    }
    wanted = {key: value if isinstance(value, list) else [value] for key, value in condition.items()}
    return all(values[key] & {tuple(one) if isinstance(one, list) else one for one in several} for key, several in wanted.items())


def test_exclude_is_filtering_afterwards(tmp_path: Path) -> None:
    every = expand_text(tmp_path, SWEEP)
    options = {
        "arm": ["baseline", "se", ["baseline", "wide"], "se lr=0.05 blocks=2"],
        "seed": [0, [1, 2], 5],
        "optim.lr": [0.05, [0.1, 0.05]],
        "model.attention": ["none", "se"],
        "model.blocks": [[[1, 1]], [[1, 1], [2]]],
    }
    pick, tried = random.Random(0), 0
    for _ in range(60):
        keys = [pick.sample(list(options), pick.randrange(1, 4)) for _ in range(pick.randrange(1, 4))]
        conditions = [{key: pick.choice(options[key]) for key in some} for some in keys]
        left = [run for run in every if not any(is_excluded(run, condition) for condition in conditions)]
        if not left or not all(any(is_excluded(run, condition) for run in every) for condition in conditions):
            continue
        tried += 1
        found = expand_text(tmp_path, f"{SWEEP}exclude: {json.dumps(conditions)}\n")
        assert [(run.run_id, run.arms) for run in found] == [(run.run_id, run.arms) for run in left], conditions
    assert tried > 15, tried


def test_a_list_of_numbers_is_one_value_of_a_key_that_holds_lists(tmp_path: Path) -> None:
    runs = expand_text(tmp_path, SWEEP + "exclude: [{model.blocks: [1, 1]}]")
    assert {run.config.model.blocks for run in runs} == {(2,)}


def test_one_condition_may_stand_without_a_list(tmp_path: Path) -> None:
    runs = expand_text(tmp_path, SWEEP + "exclude: {arm: [se, wide], optim: {lr: 0.1}}")
    assert [run.arms[0] for run in runs if run.config.optim.lr == 0.1 and run.config.train.seed == 0] == [
        "baseline lr=0.1 blocks=1-1",
        "baseline lr=0.1 blocks=2",
    ]


def test_defaults_and_the_base_count_as_values(tmp_path: Path) -> None:
    text = "base: {model.width: 32}\narms: {a: {}, b: {model.width: 16}, c: {optim.momentum: 0.5}}\n"
    text += "exclude: [{model.width: 32, optim.momentum: 0.9}]"
    assert [run.arms for run in expand_text(tmp_path, text)] == [("b",), ("c",)]


def test_exclude_leaves_out_what_cannot_be_trained(tmp_path: Path) -> None:
    text = "base: {}\ngrid: {train.global_batch_size: [96, 100], train.micro_batch_size: [48, 50]}\n"
    with pytest.raises(ConfigError, match="does not divide"):
        read_text(tmp_path, text)
    text += "exclude:\n- {train.global_batch_size: 96, train.micro_batch_size: 50}\n"
    text += "- {train.global_batch_size: 100, train.micro_batch_size: 48}\n"
    sizes = [(c.train.global_batch_size, c.train.micro_batch_size) for c in (run.config for run in expand_text(tmp_path, text))]
    assert sizes == [(96, 48), (100, 50)]


def test_exclude_by_the_seed_that_a_run_names_itself(tmp_path: Path) -> None:
    text = "arms: {a: {train.seed: 4}, b: {train.seed: 5}}\nexclude: {seed: 4}"
    assert [run.slug for run in expand_text(tmp_path, text)] == ["b-s5"]


def test_a_condition_may_miss_when_the_command_line_took_its_runs_away(tmp_path: Path) -> None:
    text = "arms: {a: {}, b: {model.attention: se}}\nseeds: 3\nexclude: [{arm: b, seed: 2}]"
    assert [run.slug for run in expand_text(tmp_path, text)] == ["a-s0", "a-s1", "a-s2", "b-s0", "b-s1"]
    assert [run.slug for run in expand_text(tmp_path, text, "seeds=1")] == ["a-s0", "b-s0"]


def test_a_fault_elsewhere_brings_no_second_one_about_conditions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path, "base: {}\ngrid: {optim.lr: [0.1, x]}\nexclude: [{optim.lr: 0.2}]")
    assert str(caught.value).count("\n") == 0 and "'x' is text" in str(caught.value), caught.value
