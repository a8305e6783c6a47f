"""`hpc.launch --reproduce`: a real run of digits trained again gives the same bits; where something else comes out, it is said what."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import ranks as ring

from hpc import code_snapshot, launch, reproduce
from seresnet.durable import json_bytes
from seresnet.errors import ConfigError
from seresnet.run_folder import Parent, RunFolder, RunRecord, TrainResult


@pytest.fixture(scope="module")
def trained(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run in a sweep's folder, beside the snapshot of the code that trained it."""
    sweep = tmp_path_factory.mktemp("runs") / "demo"
    sweep.mkdir()
    (sweep / "plan.json").write_text("{}")
    code_snapshot.snapshot_code(sweep / "code")
    folder = sweep / "tiny-s0-0123456789ab"
    ring.finish(ring.tiny_config(sweep, digits_dir, 1, epochs=2), folder, 1)
    return RunFolder(path=folder)


@pytest.fixture(scope="module")
def again(trained: RunFolder) -> tuple[int, RunFolder]:
    code = launch.main(["--reproduce", str(trained.path)])
    (folder,) = (trained.path.parent.parent / "reproduced").iterdir()
    return code, RunFolder(path=folder)


def snapshot(folder: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_a_run_comes_out_with_the_same_bits_in_a_folder_of_its_own(trained: RunFolder, again: tuple[int, RunFolder]) -> None:
    code, folder = again
    old, new = TrainResult.read(trained), TrainResult.read(folder)
    assert old is not None and new is not None and (code, new.state_digest) == (0, old.state_digest)
    record = RunRecord.read(folder)
    assert record.marks == () and record.run_id == old.run_id, record.marks
    assert "code=0" in folder.log.read_text() and folder.path.name == "tiny-s0-0123456789ab-0001"


def changed(trained: RunFolder, place: Path, **facts: object) -> RunFolder:
    """A copy of the run in a sweep of its own whose result says something else."""
    shutil.copytree(trained.path.parent, place / "demo")
    folder = RunFolder(path=place / "demo" / trained.path.name)
    value = json.loads(folder.result.read_text())
    folder.result.write_bytes(json_bytes({**value, **facts}))
    return folder


def stand_in(again: tuple[int, RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    """Training has come out once: it comes out so again."""

    def train(original: reproduce.Original, folder: RunFolder) -> bool:
        shutil.copytree(again[1].path, folder.path, dirs_exist_ok=True)
        return True

    monkeypatch.setattr(reproduce, "_train", train)


def test_what_differs_in_the_environment_is_said_first_and_last(
    trained: RunFolder, again: tuple[int, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(again, monkeypatch)
    versions = json.loads(trained.result.read_text())["versions"]
    folder = changed(trained, tmp_path, versions={**versions, "torch": "1.0.0"}, device="cpu: Z80", commit="0" * 40)
    assert launch.main(["--reproduce", str(folder.path)]) == 0
    said = capsys.readouterr().out
    before, _, after = said.partition("SAME BITS")
    for line in (f"torch: 1.0.0 -> {versions['torch']}", "device: cpu: Z80 -> ", f"commit: {'0' * 40} -> "):
        assert f"  {line}" in before and f"  environment: {line}" in after, said


def test_other_bits_are_said_with_the_numbers_and_the_first_epoch(
    trained: RunFolder, again: tuple[int, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(again, monkeypatch)
    folder = changed(trained, tmp_path, state_digest="f" * 64, last_test_top1_pct=12.5)
    journal = folder.journal(1)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key != "crc32"} for line in lines]
    kept[1]["train_loss"] = 9.0
    journal.write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert launch.main(["--reproduce", str(folder.path)]) == 1
    said = capsys.readouterr().out
    assert "DIFFERS:\n  state_digest: ffffffffffffffff -> " in said
    assert "  the first epoch that differs: 2\n" in said and "  last_test_top1_pct: 12.5 -> " in said


def test_other_data_are_refused_before_anything_is_trained(trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed(trained, tmp_path, data_digest="0" * 64)
    assert launch.main(["--reproduce", str(folder.path)]) == 2
    assert "was trained on 0000000000000000" in capsys.readouterr().err and not (tmp_path / "reproduced").exists()


def test_an_unfinished_run_and_a_fork_are_refused(trained: RunFolder, tmp_path: Path) -> None:
    folder = changed(trained, tmp_path)
    record = RunRecord.read(folder)
    parent = Parent(run_id="a", slug="b", step=1, checkpoint="c", state_digest="d")
    replace(record, parent=parent).write(folder)
    with pytest.raises(ConfigError, match="a fork of run a"):
        reproduce.reproduce(folder.path)
    folder.result.unlink()
    with pytest.raises(ConfigError, match="nothing to compare with"):
        reproduce.reproduce(folder.path)
    with pytest.raises(ConfigError, match="there is no such run"):
        reproduce.reproduce(tmp_path / "demo" / "nobody")


def test_an_interrupted_reproduction_is_gone_on_with_and_a_finished_one_is_not(trained: RunFolder, tmp_path: Path) -> None:
    original = reproduce._original(trained.path)
    first = reproduce._prepare(original, tmp_path)
    assert reproduce._prepare(original, tmp_path) == first
    shutil.copy(trained.result, first.result)
    assert reproduce._prepare(original, tmp_path).path.name == "tiny-s0-0123456789ab-0002"
