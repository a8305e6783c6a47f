"""Identity: which configs are one experiment. The golden ids are a promise: folders on disk are named after them."""

import hashlib
import json
from dataclasses import field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from seresnet import config as config_module
from seresnet.config import (
    KeyClass,
    KeyRule,
    ModelConfig,
    RunConfig,
    fitting_world_sizes,
    identity,
    iter_keys,
    micro_batch_size,
    numeric_keys,
    run_id,
    schedule_epochs,
    slug,
    to_dict,
    to_dict_as_before,
)
from seresnet.config_file import config_from_dict

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "run_ids.json").read_text())

#: A value other than the default for every key that no run id may depend on.
OTHER_VALUES: dict[str, Any] = {
    "data.path": "/elsewhere",
    "data.dir": "/elsewhere",
    "train.device": "cpu",
    "train.amp": "off",
    "train.channels_last": False,
    "train.compile": True,
    "train.deterministic": False,
    "train.fused_optimizer": True,
    "train.threads": 7,
    "train.eval_batch_size": 7,
    "train.data_on": "host",
    "train.ranks": 1024,
    "train.nodes": 2,
    "train.checkpoint_every_s": 7.0,
}


def config(**values: Any) -> RunConfig:
    """RunConfig from train__seed=1 and the like."""
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, name = key.split("__")
        nested.setdefault(section, {})[name] = value
    return config_from_dict(nested, "test")


def test_there_are_twenty_golden_ids() -> None:
    assert len({entry["run_id"] for entry in GOLDEN}) >= 18  # two pairs are one experiment each, on purpose
    assert len(GOLDEN) == 20


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda entry: entry["name"])
def test_golden_run_id(entry: dict[str, Any]) -> None:
    assert run_id(config_from_dict(entry["config"], "golden")) == entry["run_id"]


def test_run_id_is_the_documented_hash() -> None:
    found = run_id(config(model__attention="se", optim__lr=1e-4, train__micro_batch_size=128))
    text = '{"identity":{"model.attention":"se","optim.lr":0.0001,"train.micro_batch_size":128},"schema":1}'
    assert found == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_key_added_later_at_its_default_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = KeyRule(key_class=KeyClass.IDENTITY, help="a key of a later version")
    later = make_dataclass(
        "LaterModel", [("drop", float, field(default=0.5, metadata={"rule": rule}))], bases=(config_module.ModelConfig,), frozen=True
    )
    old, new = RunConfig(), replace(RunConfig(), model=later())
    assert "model.drop" in [dotted for dotted, *_ in iter_keys(new)]
    assert run_id(new) == run_id(old)
    assert run_id(replace(RunConfig(), model=later(drop=0.1))) != run_id(old)


def test_schema_number_is_part_of_every_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_id(RunConfig())
    monkeypatch.setattr(config_module, "IDENTITY_SCHEMA", config_module.IDENTITY_SCHEMA + 1)
    assert run_id(RunConfig()) != before


@pytest.mark.parametrize("value", ["0.25", "2.5e-1", "25e-2", ".25"])
def test_spellings_of_a_number_are_one_experiment(tmp_path: Path, value: str) -> None:
    from seresnet.config_file import read_run_config

    path = tmp_path / "run.yaml"
    path.write_text(f"optim.lr: {value}")
    assert run_id(read_run_config(path).config) == run_id(config(optim__lr=0.25))


def test_one_and_one_point_zero_are_one_experiment() -> None:
    assert run_id(config(optim__lr=1)) == run_id(config(optim__lr=1.0)) != run_id(RunConfig())


@pytest.mark.parametrize("dotted", OTHER_VALUES)
def test_numeric_and_operational_keys_change_no_id(dotted: str) -> None:
    needs = {"train.ranks": {"train__micro_batch_size": 1}, "train.nodes": {"train__micro_batch_size": 512, "train__ranks": 2}}
    micro = needs.get(dotted, {})
    changed = config(**micro, **{dotted.replace(".", "__"): OTHER_VALUES[dotted]})
    assert changed != config(**micro)
    assert run_id(changed) == run_id(config(**micro))


def test_every_key_without_identity_is_tried_above() -> None:
    without = {dotted for dotted, rule, *_ in iter_keys(RunConfig()) if rule.key_class in (KeyClass.NUMERIC, KeyClass.OPERATIONAL)}
    assert without == set(OTHER_VALUES)


def test_unset_horizon_hashes_as_epochs() -> None:
    assert run_id(config(train__epochs=300)) == run_id(config(train__epochs=300, optim__schedule_epochs=300))
    assert run_id(config(train__epochs=300)) != run_id(RunConfig())
    assert run_id(config(optim__schedule_epochs=900)) == run_id(RunConfig())


def test_where_to_stop_within_a_horizon_changes_no_id() -> None:
    stopped = config(train__epochs=900, optim__schedule_epochs=1000)
    assert run_id(stopped) == run_id(config(train__epochs=1000))


def test_micro_batch_of_the_whole_batch_is_the_unset_one() -> None:
    assert run_id(config(train__micro_batch_size=1024)) == run_id(RunConfig())
    assert identity(config(train__global_batch_size=512)) == {"train.global_batch_size": 512}


def test_every_key_has_a_class_and_a_help_line() -> None:
    rules = {dotted: rule for dotted, rule, *_ in iter_keys(RunConfig())}
    assert all(isinstance(rule, KeyRule) and rule.help for rule in rules.values())
    assert len(rules) == sum(len(fields(section.type)) for section in fields(RunConfig))  # type: ignore[arg-type]


def test_resolved_values_follow_their_defaults() -> None:
    assert (schedule_epochs(RunConfig()), micro_batch_size(RunConfig())) == (900, 1024)
    assert schedule_epochs(config(optim__schedule_epochs=1000)) == 1000


@pytest.mark.parametrize(("batch", "micro", "sizes"), [(96, 8, (1, 2, 3, 4, 6, 12)), (100, None, (1,)), (7, 1, (1, 7))])
def test_fitting_world_sizes_divide_the_micro_batches(batch: int, micro: int | None, sizes: tuple[int, ...]) -> None:
    assert fitting_world_sizes(config(train__global_batch_size=batch, train__micro_batch_size=micro)) == sizes


def test_numeric_keys_are_those_that_are_pinned() -> None:
    operational = {"data.path", "data.dir", "train.data_on", "train.ranks", "train.nodes", "train.checkpoint_every_s"}
    assert set(numeric_keys(RunConfig())) == set(OTHER_VALUES) - operational


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("SE r=16", "se-r-16"),
        ("../../x", "x"),
        ("a/b;c", "a-b-c"),
        ("...", "run"),
        ("é", "run"),
        ("x" * 99, "x" * 60),
        ("lr=0.1", "lr-0.1"),
    ],
)
def test_slug_is_safe_in_a_path_and_a_shell(text: str, safe: str) -> None:
    assert slug(text) == safe


def test_a_config_for_older_code_has_no_key_that_it_does_not_know_unless_it_says_something() -> None:
    old = to_dict(RunConfig())
    del old["augment"]["noise_std"], old["model"]["drop_path"]
    found = to_dict_as_before(RunConfig(model=ModelConfig(drop_path=0.1)), old)
    assert "noise_std" not in found["augment"] and found["model"]["drop_path"] == 0.1
    assert to_dict_as_before(RunConfig(), to_dict(RunConfig())) == to_dict(RunConfig())
