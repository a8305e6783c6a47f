"""`python -m hpc.move`, killed anywhere or on a bad or full disk: one place is whole, and the same command ends it."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_sweep import FakeSweep
from moving import refusal, refuse_renames_of, snapshot

from hpc import move, tree_copy
from seresnet.errors import SubmissionError


@pytest.fixture
def away(tmp_path: Path) -> Path:
    (tmp_path / "away").mkdir()
    return tmp_path / "away"


# --- crashes and bad disks ---

pytest_fork = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has loaded much")


def steps() -> Iterator[tuple[Any, str]]:
    yield from ((os, "rename"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (shutil, "copystat"))


def killed_at(event: int, source: Path, target: Path) -> bool:
    """Move in a child that kills itself before its event-th step; False if it came to its end before."""
    child = os.fork()
    if not child:
        seen = 0

        def counted(real: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal seen
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for module, name in steps():
            setattr(module, name, counted(getattr(module, name)))
        try:
            move.move(source, target)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the move failed by itself"
    return os.WIFSIGNALED(status)


@pytest_fork
def test_killed_at_any_step_one_place_is_whole_and_the_same_command_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = FakeSweep(tmp_path / "pattern", seeds=1, epochs=1).finish_all()
    (first.folder.path / "trials").mkdir()
    before = snapshot(first.folder.path)
    event, reached, stride = 1, 0, 8
    while True:
        work = tmp_path / f"at-{event}"
        source, target = work / "demo", work / "away" / "demo"
        target.parent.mkdir(parents=True)
        shutil.copytree(first.folder.path, source)
        with monkeypatch.context() as patch:
            refuse_renames_of(source, patch)
            was_killed = killed_at(event, source, target)
            places = [place for place in (source, target) if place.exists() and snapshot_without_mark(place) == before]
            assert places, f"killed at step {event}: no place is whole"
            assert not source.exists() or source in places, f"killed at step {event}: half of the old one"
            assert not target.exists() or target in places, f"killed at step {event}: half of the new one"
            if was_killed and not (target.exists() and not source.exists() and not (target / ".moved.json").exists()):
                move.move(source, target)
        assert snapshot(target) == before and [path.name for path in work.iterdir()] == ["away"], f"killed at step {event}"
        assert [path.name for path in target.parent.iterdir()] == ["demo"], f"killed at step {event}"
        shutil.rmtree(work)
        if not was_killed:
            break
        reached, event = event, event + stride
    assert reached > 60, "steps were not counted"


@pytest_fork
@pytest.mark.parametrize("is_renamed", [False, True])
def test_a_copy_that_was_killed_is_removed_by_a_move_to_another_place(
    tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch, is_renamed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = FakeSweep(tmp_path, seeds=1, epochs=1).finish_all()
    before = snapshot(sweep.folder.path)
    with monkeypatch.context() as patch:
        refuse_renames_of(sweep.folder.path, patch)
        assert killed_at(12, sweep.folder.path, away / "first")
        (left,) = away.iterdir()
        assert ".first.moving-" in left.name
        if is_renamed:
            patch.undo()
        assert move.main([str(sweep.folder.path), str(away / "second")]) == 0
    assert f"removed {left}, the unfinished copy" in capsys.readouterr().out
    assert [path.name for path in away.iterdir()] == ["second"] and snapshot(away / "second") == before
    assert not (away / "second/.moving.lock").exists()


def test_a_note_that_names_what_is_no_copy_of_ours_removes_nothing(tmp_path: Path, away: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    (away / "precious").mkdir()
    (sweep.folder.path / ".moving.lock").write_text(str(away / "precious"))
    said = "\n".join(move.move(sweep.folder.path, away / "demo"))
    assert (away / "precious").is_dir() and f"{away / 'precious'}: may be what an earlier hpc.move has left" in said, said


def snapshot_without_mark(place: Path) -> dict[str, bytes]:
    return {name: text for name, text in snapshot(place).items() if name != ".moved.json"}


def test_a_file_that_reads_back_differently_stops_the_move(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()
    real = shutil.copystat

    def garble(source: Path, target: Path) -> None:
        real(source, target)
        if target.name == "result.json":
            target.write_bytes(target.read_bytes()[:-1] + b"x")

    before = snapshot(sweep.folder.path)
    monkeypatch.setattr(shutil, "copystat", garble)
    assert "bad disk" in refusal(sweep, away / "demo")
    assert snapshot(sweep.folder.path) == before and [*away.iterdir()] == [], "a draft was left"


def test_a_full_disk_is_one_line_and_leaves_no_draft(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()

    def full(path: Path, new: Path) -> None:
        raise OSError(28, "No space left on device", str(new))

    with monkeypatch.context() as patch:
        patch.setattr(tree_copy, "_copy_file", full)
        assert f"No space left on device. The sweep is whole in {sweep.folder.path}" in refusal(sweep, away / "demo")
    assert [*away.iterdir()] == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: os.terminal_size((1, 1)) and type("U", (), {"free": 10, "total": 99})())
    assert "GB free" in refusal(sweep, away / "demo")


def test_a_source_that_is_written_meanwhile_is_not_removed(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()
    real = tree_copy._copy_file

    def and_write(path: Path, new: Path) -> None:
        real(path, new)
        (sweep.folder.path / "late.txt").write_text("x")

    monkeypatch.setattr(tree_copy, "_copy_file", and_write)
    assert "was changed while it was copied" in refusal(sweep, away / "demo")


def test_after_a_crash_an_old_place_that_was_used_is_not_removed(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()
    with monkeypatch.context() as patch:
        patch.setattr(move, "_remove", lambda places: None)
        move.move(sweep.folder.path, away / "demo")
    (sweep.folder.path / "new.json").write_text("{}")
    with pytest.raises(SubmissionError, match="was used after it had been copied"):
        move.move(sweep.folder.path, away / "demo")
    (sweep.folder.path / "new.json").unlink()
    assert move.move(sweep.folder.path, away / "demo") and not sweep.folder.path.exists()


def test_an_old_place_that_cannot_be_removed_is_named_beside_the_new_one(
    tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()
    with monkeypatch.context() as patch:
        patch.setattr(move, "_remove", lambda places: os.rename("/nowhere", "/elsewhere"))
        with pytest.raises(SubmissionError, match=rf"whole in {sweep.folder.path} and in {away}/demo\. Correct that"):
            move.move(sweep.folder.path, away / "demo")
    assert move.move(sweep.folder.path, away / "demo") and not sweep.folder.path.exists()


def test_of_two_at_once_the_second_is_told_of_the_first(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep, said = FakeSweep(tmp_path).finish_all(), list[str]()
    real = move._remove

    def and_meanwhile(places: Any) -> None:
        for target in ("demo", "other"):
            with pytest.raises(SubmissionError) as caught:
                move.move(sweep.folder.path, away / target)
            said.append(str(caught.value))
        real(places)

    monkeypatch.setattr(move, "_remove", and_meanwhile)
    move.move(sweep.folder.path, away / "demo")
    assert all("or another hpc.move" in text for text in said) and [path.name for path in away.iterdir()] == ["demo"], said
