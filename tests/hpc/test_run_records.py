"""run.yaml read section by section equals run.yaml read whole, and what cannot be cut is read whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fake_sweep import FakeSweep

from hpc import run_records
from seresnet.errors import ConfigError
from seresnet.run_folder import RunFolder, RunHead, RunRecord


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return FakeSweep(tmp_path, seeds=1).of("se", 0)


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        replaced("pinned: null", "pinned:\n  data_digest: abc\n  world_size: 2"),
        replaced("marks: []", "marks:\n- another GPU"),
        replaced("schema: 1", "# by hand\nschema: 1"),
        replaced("seed: 0", "seed: !!str 0"),
        replaced("  train:\n", "  train: &here\n"),
        replaced("    seed: 0\n", "    seed: 0\n    seed: 1\n"),
        replaced("  data:\n", "  train:\n    seed: 7\n  data:\n"),
        replaced("seed: 0", 'seed: "0\n\n      0"'),
        replaced("    seed: 0\n", "    seed: 0\n    ? [1]\n    : 2\n"),
        lambda text: str(yaml.safe_dump(yaml.safe_load(text), default_flow_style=True)),
    ],
)
def test_a_record_is_the_one_that_the_whole_file_gives(folder: RunFolder, change: Callable[[str], str]) -> None:
    folder.run_yaml.write_text(change(folder.run_yaml.read_text()))
    for _ in range(2):
        try:
            whole: object = RunRecord.read(folder)
        except ConfigError as error:
            with pytest.raises(ConfigError) as found:
                run_records.read(folder)
            assert str(found.value) == str(error)
        else:
            assert run_records.read(folder) == whole


@pytest.mark.parametrize(
    "text", ["", "schema: 1\n", "schema: 99\nrun_id: a\n", "{", "schema: 1\nrun_id: a\nslug: b\nconfig: 3\npinned: null\n"]
)
def test_what_is_no_record_is_refused_as_it_always_was(folder: RunFolder, text: str) -> None:
    folder.run_yaml.write_text(text)
    try:
        whole = RunRecord.read(folder)
    except ConfigError as error:
        with pytest.raises(ConfigError) as found:
            run_records.read(folder)
        assert str(found.value) == str(error)
    else:
        assert run_records.read(folder) == whole


def test_sections_that_runs_have_in_common_are_one_object(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=2)
    first, second = (run_records.read(sweep.of("se", seed)) for seed in range(2))
    assert first.config["model"] is second.config["model"] and first.config["train"] != second.config["train"]


def test_the_head_of_a_record_is_the_head_of_its_file(folder: RunFolder) -> None:
    assert RunHead.of(run_records.read(folder)) == RunHead.read(folder)
