"""Names that sort and parse, records that survive a round trip or say what is wrong with them."""

import errno
import itertools
import json
import os
import stat
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from seresnet import durable
from seresnet.config import RunConfig, to_dict
from seresnet.durable import Files
from seresnet.errors import ConfigError
from seresnet.run_folder import CheckpointName, RunFolder, RunRecord, TrainResult, is_finished

DIGEST = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    return folder


def result() -> TrainResult:
    return TrainResult(
        run_id="0" * 12,
        slug="demo",
        epochs=2,
        step=20,
        parameters=5,
        state_digest="ab" * 32,
        data_digest="cd" * 32,
        data_name="digits",
        train_images=4,
        val_images=0,
        test_images=2,
        classes=["0", "1"],
        train_loss=None,
        last_val_top1_pct=None,
        last_test_top1_pct=90.5,
        last_test_loss=0.1,
        val_chosen_epoch=None,
        val_chosen_val_top1_pct=None,
        val_chosen_test_top1_pct=None,
        best_on_test_epoch=2,
        best_on_test_top1_pct=90.5,
        confusion=[[1, 0], [0, 1]],
        seconds=1.5,
        attempts=1,
        tier="T1",
        world_size=1,
        device="cpu: somebody's",
        amp="off",
        code_digest="ef" * 32,
        commit=None,
        versions={"torch": "2.14.1"},
    )


@pytest.mark.parametrize(
    ("generation", "step", "text"),
    [
        (3, 12_345, f"g0003-s000012345-{DIGEST}.safetensors"),
        (0, 0, f"g0000-s000000000-{DIGEST}.safetensors"),
        (12_345, 1_234_567_890, f"g12345-s1234567890-{DIGEST}.safetensors"),
    ],
)
def test_a_checkpoints_name_is_read_back(generation: int, step: int, text: str) -> None:
    name = CheckpointName(generation=generation, step=step, digest=DIGEST)
    assert str(name) == text and CheckpointName.parse(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"g3-s000012345-{DIGEST}.safetensors",
        f"g00003-s000012345-{DIGEST}.safetensors",
        f"g0003-s0000012345-{DIGEST}.safetensors",
        f"g0003-s000012345-{DIGEST.upper()}.safetensors",
        f"g0003-s000012345-{DIGEST}.safetensors.tmp",
        f".g0003-s000012345-{DIGEST}.safetensors.ab.tmp",
        f"g0003-s000012345-{DIGEST}.safetensors\n",
        f"g\u0660\u0660\u0660\u0663-s000012345-{DIGEST}.safetensors",
        "run.yaml",
    ],
)
def test_other_names_are_no_checkpoints(text: str) -> None:
    assert CheckpointName.parse(text) is None


def test_checkpoints_sort_by_generation_then_step_as_numbers() -> None:
    places = [(1, 5), (1, 40), (2, 3), (9_999, 1), (10_000, 0), (10_000, 1_000_000_000)]
    names = [CheckpointName(generation=g, step=s, digest=DIGEST) for g, s in places]
    assert min(names) == names[0] and max(names) == names[-1]
    assert all(earlier < later for earlier, later in itertools.pairwise(names))


def test_names_of_an_attempt_sort_by_its_generation(folder: RunFolder) -> None:
    assert [p.name for p in (folder.claim(3), folder.beat(3), folder.end(3), folder.rank_exit(3, 1), folder.journal(3))] == [
        "000003.json",
        "000003.beat",
        "000003.end.json",
        "000003.exit-1.json",
        "g0003.jsonl",
    ]


def test_creating_a_folder_twice_keeps_what_is_in_it(folder: RunFolder) -> None:
    folder.journal(1).write_text("line")
    folder.create()
    assert folder.journal(1).read_text() == "line"
    assert all(path.is_dir() for path in (folder.attempts, folder.checkpoints, folder.metrics))


def test_run_yaml_survives_a_round_trip_and_holds_no_path(folder: RunFolder) -> None:
    record = RunRecord(run_id="0" * 12, slug="demo", config=to_dict(RunConfig()), pinned={"world_size": 2, "amp": None}, marks=("moved",))
    record.write(folder)
    assert RunRecord.read(folder) == record
    assert str(folder.path) not in folder.run_yaml.read_text()
    assert yaml.safe_load(folder.run_yaml.read_text())["config"]["optim"]["lr"] == 0.1


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot be read"),
        (b"a: [", "cannot be read"),
        (b"\xff\xfe\xfa", "cannot be read"),
        (b"", "not a mapping of keys, but a NoneType"),
        (b"- 1", "not a mapping of keys, but a list"),
        (b"schema: 2", "schema is 2"),
        (b"schema: 1\nslug: a", "has no run_id, config"),
    ],
)
def test_a_bad_run_yaml_is_named_with_its_fault(folder: RunFolder, content: bytes | None, fault: str) -> None:
    if content is not None:
        folder.run_yaml.write_bytes(content)
    with pytest.raises(ConfigError, match=fault) as caught:
        RunRecord.read(folder)
    assert str(folder.run_yaml) in str(caught.value)


def test_a_result_survives_a_round_trip(folder: RunFolder) -> None:
    assert TrainResult.read(folder) is None
    result().write(folder)
    assert TrainResult.read(folder) == result()
    assert json.loads(folder.result.read_text()) == asdict(result())


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize(("epochs", "attempts", "stays"), [(2, 1, False), (2, 2, True), (2, 3, True), (3, 1, True), (1, 3, False)])
def test_of_results_the_one_of_more_epochs_or_a_newer_attempt_stays(
    folder: RunFolder, epochs: int, attempts: int, stays: bool, has_links: bool
) -> None:
    known, new = replace(result(), epochs=epochs, attempts=attempts), replace(result(), epochs=2, attempts=2)
    files = Files() if has_links else NoLinks()
    known.write(folder, files)
    new.write(folder, files)
    assert TrainResult.read(folder) == (known if stays else new)
    assert not list(folder.path.glob(".*")), "a temp file was left"


class NoLinks(Files):
    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 1}', b'{"schema": 2}', b"\xff\xfe\xfa"])
def test_a_bad_result_is_an_error_and_not_an_unfinished_run(folder: RunFolder, content: bytes) -> None:
    folder.result.write_bytes(content)
    with pytest.raises(ConfigError, match=str(folder.result)):
        TrainResult.read(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": "2"},
        {"epochs": None},
        {"last_test_top1_pct": float("nan")},
        {"best_on_test_top1_pct": 101},
        {"confusion": [[1]]},
        {"seconds": 10**400},
        {"multiply_adds": True},
        {"averaged": None},
    ],
)
def test_a_result_with_values_that_nobody_writes_is_an_error(folder: RunFolder, change: dict[str, object]) -> None:
    folder.result.write_text(json.dumps(asdict(result()) | change))
    with pytest.raises(ConfigError, match=r"result\.json: not a result of this version: .*Move it away"):
        is_finished(folder, 2)


class Recorder(Files):
    """The disk, writing down every call; unplugged at the n-th."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.fails_at, self.calls = fails_at, []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails_at:
            raise OSError(5, "unplugged")

    def sync(self, file: object) -> None:
        self._call("sync")
        assert os.fstat(file.fileno()).st_size == 3, "fsync before the buffer was flushed"
        super().sync(file)

    def rename(self, source: Path, target: Path) -> None:
        self._call("rename")
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._call("sync_folder")
        super().sync_folder(folder)


def test_a_durable_write_syncs_the_file_renames_it_and_syncs_the_folder(tmp_path: Path) -> None:
    files = Recorder()
    durable.write_durably(tmp_path / "a", b"new", files)
    assert files.calls == ["sync", "rename", "sync_folder"] and (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("call", ["sync", "rename"])
def test_a_failed_durable_write_leaves_the_old_file_and_no_temp(tmp_path: Path, call: str) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="unplugged"):
        durable.write_durably(tmp_path / "a", b"new", Recorder(fails_at=call))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_files_get_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        durable.write_durably(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_run_yaml_is_what_yaml_writes_and_reads(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    path = "/a/" + "long path with spaces/" * 8
    config = {
        "model": {"blocks": [4, 4, 3], "width": 1, "se": True, "lr": 1.0, "name": "yes"},
        "data": {"path": path, "dir": None},
        "none": {},
    }
    record = RunRecord(run_id="0" * 12, slug="x", config=config, pinned={"a": 1, "b": [1, 2]}, marks=("a: b", "- c"))
    record.write(folder)
    whole = yaml.safe_load(folder.run_yaml.read_text())
    assert whole == {
        "schema": 1,
        "run_id": "0" * 12,
        "slug": "x",
        "config": config,
        "pinned": {"a": 1, "b": [1, 2]},
        "marks": ["a: b", "- c"],
    }
    assert list(whole["config"]["model"].items()) == list(config["model"].items())
    assert [type(value) for value in whole["config"]["model"].values()] == [list, int, bool, float, str]
