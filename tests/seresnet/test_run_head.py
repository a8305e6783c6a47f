"""The few values of run.yaml that status reads by lines: the same as a parser finds, and none from a file that is not whole."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from seresnet.config import RunConfig, to_dict
from seresnet.run_folder import RunFolder, RunHead, RunRecord


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    return folder


def full_record(**train: object) -> RunRecord:
    config = to_dict(RunConfig())
    config["train"] |= train
    pinned = {"data_digest": "x" * 16, "world_size": 2, "train.threads": 1}
    return RunRecord(run_id="0123456789ab", slug="se-s1", config=config, pinned=pinned, marks=("a: b", "x" * 50 + " " + "y" * 50))


def test_the_head_found_by_lines_is_that_of_the_parsed_record(folder: RunFolder) -> None:
    for train in ({"epochs": 7, "ranks": 4, "threads": 3}, {"device": "cpu"}):
        for record in (full_record(**train), replace(full_record(**train), pinned=None, marks=())):
            record.write(folder)
            head = RunHead._scan(folder.run_yaml.read_text())
            assert head is not None and head == RunHead.of(RunRecord.read(folder)) == RunHead.read(folder)
            values = {key: record.config["train"][key] for key in ("epochs", "ranks", "threads", "device")}
            assert head == RunHead(**values, val_images=record.config["data"]["val_images"], tier="T2" if record.marks else "T1")


def test_a_record_cut_anywhere_never_gives_another_number_of_epochs(folder: RunFolder) -> None:
    full_record(epochs=900).write(folder)
    text = folder.run_yaml.read_text()
    whole = RunHead._scan(text)
    for place in range(len(text)):
        assert RunHead._scan(text[:place]) in (None, whole), text[:place][-40:]
    assert RunHead._scan(text[: text.index("marks:")]) is None


def test_a_record_laid_out_by_hand_is_parsed_as_yaml(folder: RunFolder) -> None:
    value = yaml.safe_load(_written(full_record(epochs=12), folder))
    folder.run_yaml.write_text(yaml.safe_dump(value, default_flow_style=True))
    assert RunHead._scan(folder.run_yaml.read_text()) is None and RunHead.read(folder).epochs == 12


def _written(record: RunRecord, folder: RunFolder) -> str:
    record.write(folder)
    return folder.run_yaml.read_text()
