"""Collect's cache: what did not change is not read again, what changed is, and nobody can tell from the answer that there is a cache."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_sweep import FakeSweep, record
from test_collect_damage import answer, quick_clock

from hpc import collect_cache, gather, journal_columns, run_records
from hpc.collect_cache import code
from hpc.history import COLUMNS
from hpc.move import move
from hpc.paths import Submission, Submissions
from seresnet import journal
from seresnet.run_folder import TrainResult

__all__ = ["quick_clock"]


@pytest.fixture
def sweep(tmp_path: Path, quick_clock: None) -> FakeSweep:
    """Finished, collected, and with an attempt before the last one."""
    made = FakeSweep(tmp_path, seeds=2, epochs=4).finish_all()
    made.attempt("se", 1, "preempted", generation=1, hours=3)
    made.attempt("se", 1, "finished", generation=2, hours=1, job="7_0")
    collected(made.folder.path)
    return made


def collected(path: Path) -> gather.Gathered:
    time.sleep(0.03)
    return gather.gather([path])


def without(path: Path) -> gather.Gathered:
    return gather.gather([path], use_cache=False)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is parsed from now on."""
    seen: list[str] = []
    for owner, name in ((TrainResult, "read"), (run_records, "read"), (journal_columns, "read")):
        real = getattr(owner, name)
        kind = getattr(owner, "__name__", "").rpartition(".")[2]
        monkeypatch.setattr(owner, name, lambda *given, real=real, kind=kind, **named: (seen.append(kind), real(*given, **named))[1])
    return seen


def layers(sweep: FakeSweep) -> list[Path]:
    return sorted(sweep.folder.collect_cache.iterdir())


def test_a_second_collect_reads_no_run_again_and_says_the_same(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answer(without(sweep.folder.path))
    seen = count_reads(monkeypatch)
    assert answer(collected(sweep.folder.path)) == expected
    assert seen == [] and len(layers(sweep)) == 1


def append_epoch(sweep: FakeSweep) -> None:
    journal.append(sweep.of("se", 1), record("se", 1, 4, 9, generation=1))


def replace_result(sweep: FakeSweep) -> None:
    sweep.finish("se", 1, last_test_top1_pct=12.5)


def edit_in_place(sweep: FakeSweep) -> None:
    path = sweep.of("se", 1).result
    path.write_text(path.read_text().replace('"parameters": 299906', '"parameters": 299907'))


def raise_epochs(sweep: FakeSweep) -> None:
    path = sweep.of("se", 1).run_yaml
    path.write_text(path.read_text().replace("epochs: 4", "epochs: 5"))


def end_otherwise(sweep: FakeSweep) -> None:
    sweep.attempt("se", 1, "crashed", "later", generation=3, hours=0.5)


def change_an_old_end(sweep: FakeSweep) -> None:
    sweep.attempt("se", 1, "timed_out", generation=1, hours=2)


def lose_an_end(sweep: FakeSweep) -> None:
    sweep.of("se", 1).end(1).unlink()
    sweep.beat("se", 1, generation=1)


def tear_an_end(sweep: FakeSweep) -> None:
    """Its run is finished all the same, and the file is named each time."""
    path = sweep.of("se", 1).end(2)
    path.write_bytes(path.read_bytes()[:-5])


def share_the_node(sweep: FakeSweep) -> None:
    for path in sweep.folder.path.glob("*/run.yaml"):
        path.write_text(path.read_text().replace("device: cpu", "device: cuda"))
    entry = Submission(id="0001", created=0, code="0001", mode="slurm", tasks=(), job_id="7", at_a_time=4, gpus=2, state="done")
    Submissions().with_entry(entry).write(sweep.folder)


def remove_the_folder(sweep: FakeSweep) -> None:
    shutil.rmtree(sweep.of("se", 1).path)


@pytest.mark.parametrize(
    "change",
    [
        append_epoch,
        replace_result,
        edit_in_place,
        raise_epochs,
        end_otherwise,
        change_an_old_end,
        lose_an_end,
        tear_an_end,
        share_the_node,
        remove_the_folder,
    ],
)
def test_a_change_is_seen(sweep: FakeSweep, change: Callable[[FakeSweep], None]) -> None:
    before = answer(collected(sweep.folder.path))
    change(sweep)
    expected = answer(without(sweep.folder.path))
    assert expected != before
    assert [answer(collected(sweep.folder.path)) for _ in range(2)] == [expected, expected]


def test_what_others_say_of_an_attempt_that_did_not_end_itself_is_seen(sweep: FakeSweep) -> None:
    """The batch script's word about attempt 1, and the last beat of attempt 2, whose end was inferred."""
    folder = sweep.of("se", 1)
    sweep.attempt("se", 1, "stopped", generation=1, hours=3, job="7_1")
    sweep.beat("se", 1, generation=2)
    folder.end(2).write_text('{"ending": "killed", "inferred": true}')
    before = collected(sweep.folder.path).rows[3].spans
    assert collected(sweep.folder.path).rows[3].spans == before
    sweep.folder.logs.mkdir()
    (sweep.folder.logs / "batch-slurm-7_1-0").write_text("preempted 75\n")
    sweep.beat("se", 1, generation=2)
    after = collected(sweep.folder.path).rows[3].spans
    assert (before[0].ending, after[0].ending) == ("stopped", "preempted")
    assert before[1].ended is not None and after[1].ended is not None and after[1].ended > before[1].ended


def test_only_the_changed_run_is_read_again(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_result(sweep)
    seen = count_reads(monkeypatch)
    collected(sweep.folder.path)
    assert sorted(seen) == ["TrainResult", "journal_columns", "run_records"]


def test_devices_follow_submission_json_without_reading_runs_again(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    share_the_node(sweep)
    collected(sweep.folder.path)
    before = {row.run_id: row.device_hours for row in collected(sweep.folder.path).rows}
    entry = Submissions.read(sweep.folder).submissions[0]
    seen = count_reads(monkeypatch)
    Submissions().with_entry(Submission(**{**vars(entry), "at_a_time": 2})).write(sweep.folder)
    rows = {row.run_id: row for row in collected(sweep.folder.path).rows}
    span = rows[sweep.ids["se", 1]].spans[1]
    assert (span.job, span.devices, seen) == ("7_0", 1.0, []) and before[sweep.ids["se", 1]] < rows[sweep.ids["se", 1]].device_hours


def test_whether_an_unfinished_run_lives_is_looked_at_each_time(tmp_path: Path, quick_clock: None) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.attempt("se", 0)
    states = []
    for _ in range(2):
        sweep.beat("se", 0)
        states.append(collected(sweep.folder.path).rows[1].state)
        sweep.of("se", 0).beat(1).unlink()
        states.append(collected(sweep.folder.path).rows[1].state)
    assert states == ["running", "lost", "running", "lost"]


def test_a_file_of_this_moment_is_not_kept(tmp_path: Path) -> None:
    """It may be changed once more within the same tick of the clock; without the quick clock of the other tests."""
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    gather.gather([sweep.folder.path])
    assert layers(sweep) == []


def test_a_renamed_sweep_keeps_its_cache_and_a_copied_or_moved_one_is_right(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, seen, root = answer(collected(sweep.folder.path)), count_reads(monkeypatch), sweep.folder.path.parent
    sweep.folder.path.rename(root / "renamed")
    assert answer(collected(root / "renamed")) == expected and seen == []
    shutil.copytree(root / "renamed", root / "copied")
    edited = root / "copied" / sweep.of("se", 1).path.name / "result.json"
    edited.write_text(edited.read_text().replace('"parameters": 299906', '"parameters": 299907'))
    assert answer(collected(root / "copied")) == answer(without(root / "copied")) != expected
    move(root / "copied", root / "moved")
    assert answer(collected(root / "moved")) == answer(without(root / "moved"))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"somebody else's" * 400),
        lambda path: flip(path, -60),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_torn_or_foreign_layer_is_not_used(sweep: FakeSweep, damage: Callable[[Path], object]) -> None:
    expected = answer(without(sweep.folder.path))
    (layer,) = layers(sweep)
    damage(layer)
    assert [answer(collected(sweep.folder.path)) for _ in range(2)] == [expected, expected]
    assert any(path != layer and path.is_file() for path in layers(sweep))


def test_a_layer_of_other_code_is_not_used_and_goes(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    (layer,) = layers(sweep)
    monkeypatch.setattr(collect_cache, "code", lambda: "other code")
    seen = count_reads(monkeypatch)
    collected(sweep.folder.path)
    assert len(seen) == 12 and layer not in layers(sweep) and len(layers(sweep)) == 1
    assert code() != "other code"


def test_a_flipped_bit_in_a_history_is_noticed_and_the_journal_read(sweep: FakeSweep) -> None:
    expected = answer(without(sweep.folder.path))
    (layer,) = layers(sweep)
    for place in range(20, 400, 7):
        flip(layer, place)
    assert answer(collected(sweep.folder.path)) == expected


def test_where_nothing_can_be_written_the_answer_is_the_same(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    sweep.folder.collect_cache.write_text("a file where the folder should be")
    assert answer(collected(sweep.folder.path)) == answer(without(sweep.folder.path))
    assert sweep.folder.collect_cache.read_text() == "a file where the folder should be"


def test_a_disk_that_fills_up_costs_the_cache_only(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(sweep.folder.collect_cache)
    expected = answer(without(sweep.folder.path))
    real, written = collect_cache.LayerWriter._write, []

    def refuse(self: collect_cache.LayerWriter, data: bytes) -> bool:
        written.append(len(data))
        return len(written) < 3 and real(self, data)

    monkeypatch.setattr(collect_cache.LayerWriter, "_write", refuse)
    assert answer(collected(sweep.folder.path)) == expected and layers(sweep) == []


def test_many_small_changes_are_merged_and_forgotten_runs_go(sweep: FakeSweep) -> None:
    for number in range(14):
        sweep.finish("se", 1, last_test_top1_pct=10.0 + number)
        assert collected(sweep.folder.path).rows[3].result.last_test_top1_pct == 10.0 + number  # type: ignore[union-attr]
        assert len(layers(sweep)) <= 9
    assert answer(collected(sweep.folder.path)) == answer(without(sweep.folder.path))
    size = sum(path.stat().st_size for path in layers(sweep))
    shutil.rmtree(sweep.folder.collect_cache)
    collected(sweep.folder.path)
    assert size < 5 * sum(path.stat().st_size for path in layers(sweep))


def test_what_is_out_of_date_is_not_kept_for_ever(sweep: FakeSweep) -> None:
    for number in range(6):
        for key in sweep.ids:
            sweep.finish(*key, last_test_top1_pct=20.0 + number)
        collected(sweep.folder.path)
    assert len(layers(sweep)) <= 2
    assert answer(collected(sweep.folder.path)) == answer(without(sweep.folder.path))


def test_racing_collects_are_all_right(sweep: FakeSweep) -> None:
    found: list[object] = []

    def look() -> None:
        for _ in range(3):
            found.append(answer(gather.gather([sweep.folder.path])))

    shutil.rmtree(sweep.folder.collect_cache)
    time.sleep(0.03)
    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [answer(without(sweep.folder.path))] * 12
    assert not [path for path in layers(sweep) if path.name.endswith(".tmp")]


def test_columns_come_back_bit_by_bit_whatever_they_hold(sweep: FakeSweep) -> None:
    folder = sweep.of("se", 1)
    values = [None, -0.0, 1e-310, 0.1, 16777217.0, 3.0e300]
    lines = [journal.append(folder, record("se", 1, epoch, 9)) for epoch in range(5, 11)]
    for epoch, value in zip(range(11, 11 + len(lines)), values, strict=True):
        entry = record("se", 1, epoch, 9)
        journal.append(folder, entry.__class__(**{**vars(entry), "val_loss": value, "tflops": value, "memory_peak_mib": 0.5}))
    for _ in range(2):
        assert answer(collected(sweep.folder.path)) == answer(without(sweep.folder.path))
    assert len(COLUMNS) == 21
