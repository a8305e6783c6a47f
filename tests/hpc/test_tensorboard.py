"""`hpc.collect --tensorboard`: what TensorBoard's own reader finds is the record, once, however often it was exported."""

import sys
from pathlib import Path

import pytest
from fake_sweep import FakeSweep, record

from hpc import collect

pytest.importorskip("tensorboard")


@pytest.fixture
def sweep(tmp_path: Path) -> FakeSweep:
    return FakeSweep(tmp_path / "runs", seeds=1).finish_all()


def export(sweep: FakeSweep, to: Path) -> Path:
    assert collect.main([str(sweep.folder.path), "--no-figures", "--tensorboard", str(to)]) == 0
    return to / "demo" / sweep.plan.runs[sweep.ids["se", 0]].slug


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_the_epochs_of_the_record(sweep: FakeSweep, tmp_path: Path) -> None:
    found = read(export(sweep, tmp_path / "events"))
    records = [record("se", 0, epoch, 6) for epoch in range(1, 7)]
    assert found["top1_pct/test"] == [(entry.epoch, pytest.approx(entry.test_top1_pct)) for entry in records]
    assert found["loss/val"] == [(entry.epoch, pytest.approx(entry.val_loss)) for entry in records]
    assert "speed/tflops" not in found, "what was not measured has no point"


def test_exported_twice_it_is_the_same_and_after_more_epochs_not_doubled(sweep: FakeSweep, tmp_path: Path) -> None:
    folder = export(sweep, tmp_path / "events")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    export(sweep, tmp_path / "events")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    sweep.train("se", 0, range(7, 9), generation=2)
    assert [step for step, _ in read(export(sweep, tmp_path / "events"))["top1_pct/test"]] == [*range(1, 9)]


def test_a_run_that_was_never_started_has_no_events(sweep: FakeSweep, tmp_path: Path) -> None:
    for path in sweep.of("baseline", 0).metrics.iterdir():
        path.unlink()
    assert [path.name for path in export(sweep, tmp_path / "events").parent.iterdir()] == [sweep.plan.runs[sweep.ids["se", 0]].slug]


def test_without_the_package_it_is_one_line(
    sweep: FakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert collect.main([str(sweep.folder.path), "--no-figures", "--tensorboard", str(tmp_path / "events")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is not installed here" in said and "pip install 'tensorboard" in said, said


def test_it_needs_no_torch(sweep: FakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert export(sweep, tmp_path / "events").is_dir()
