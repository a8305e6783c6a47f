"""Whatever tier T1 rests on leaves a mark when it changes, and a run with a mark is T2 for every reader."""

from dataclasses import replace
from pathlib import Path

import pytest

from seresnet.config import RunConfig, TrainConfig, run_id, to_dict
from seresnet.errors import ConfigError, DataError
from seresnet.pinning import NUMERICS_SCHEMA, expected_id, pin, refuse_other_experiment, refuse_other_run
from seresnet.run_folder import Parent, RunFolder, RunHead, RunRecord

FACTS = {"data_digest": "d" * 16, "world_size": 2, "ranks_per_node": 2, "device": "cuda: NVIDIA H100", "version of torch": "2.14.1"}
PARENT = Parent(run_id="0" * 12, slug="p", step=6, checkpoint="g0001-s000000006-0123456789abcdef.safetensors", state_digest="ab" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    return folder


def started(folder: RunFolder, config: RunConfig) -> RunRecord:
    record = RunRecord(run_id=run_id(config), slug="x", config=to_dict(config))
    return pin(folder, record, config, 1, FACTS, write=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [("world_size", 4), ("ranks_per_node", 1), ("device", "cuda: NVIDIA A100"), ("version of torch", "2.15.0")],
)
def test_another_machine_world_or_version_is_marked_for_every_reader(folder: RunFolder, key: str, value: object) -> None:
    config = RunConfig()
    assert started(folder, config).marks == () and RunHead.read(folder).tier == "T1"
    again = pin(folder, RunRecord.read(folder), config, 2, {**FACTS, key: value}, write=True)
    assert again.marks == (f"{key}: {FACTS[key]} -> {value} at attempt 2",)
    assert RunHead.read(folder).tier == "T2" and RunRecord.read(folder) == again
    back = pin(folder, again, config, 3, FACTS, write=True)
    assert len(back.marks) == 2, "a run that went elsewhere and came back has no T1 behind it"


@pytest.mark.parametrize("before", [1, None])
def test_other_arithmetic_of_our_own_is_marked_and_runs_of_before_it_was_pinned_had_the_first(
    folder: RunFolder, before: int | None
) -> None:
    record = started(folder, RunConfig())
    assert record.pinned is not None and record.pinned["numerics"] == NUMERICS_SCHEMA > 1
    others = {key: value for key, value in record.pinned.items() if key != "numerics"}
    replace(record, pinned=others if before is None else {**others, "numerics": before}).write(folder)
    again = pin(folder, RunRecord.read(folder), RunConfig(), 2, FACTS, write=True)
    assert again.marks == (f"numerics: 1 -> {NUMERICS_SCHEMA} at attempt 2",) and RunHead.read(folder).tier == "T2"
    assert pin(folder, again, RunConfig(), 3, FACTS, write=True) == again, "once is enough"


def test_a_numeric_key_is_marked_and_other_data_refused(folder: RunFolder) -> None:
    record = started(folder, RunConfig())
    changed = pin(folder, record, RunConfig(train=TrainConfig(amp="off")), 2, FACTS, write=False)
    assert changed.marks == ("train.amp: bf16 -> off at attempt 2",)
    with pytest.raises(DataError, match="this run was started on data dddd"):
        pin(folder, record, RunConfig(), 2, {**FACTS, "data_digest": "e" * 16}, write=False)


def test_a_forks_id_depends_on_its_parents_state_and_is_checked(folder: RunFolder) -> None:
    config = RunConfig()
    fork = RunRecord(run_id=run_id(config, PARENT.state_digest), slug="x", config=to_dict(config), parent=PARENT)
    other = replace(fork, parent=replace(PARENT, state_digest="cd" * 32))
    assert len({run_id(config), expected_id(fork, config), expected_id(other, config)}) == 3
    refuse_other_experiment(folder, fork, config)
    with pytest.raises(ConfigError, match="--fork"):
        refuse_other_experiment(folder, replace(fork, parent=None), config)
    with pytest.raises(ConfigError, match="a fork of run 000000000000"):
        refuse_other_run(folder, fork, run_id(config))


def test_a_chain_of_parents_survives_run_yaml(folder: RunFolder) -> None:
    record = RunRecord(run_id="1" * 12, slug="x", config=to_dict(RunConfig()), parent=replace(PARENT, parent=PARENT))
    record.write(folder)
    assert RunRecord.read(folder) == record and RunHead.read(folder).epochs == 900
