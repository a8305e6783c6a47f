"""A sweep is held by its user or by three runs that fail alike; a cancelled run is left alone by its task, and by no later one."""

from dataclasses import replace
from pathlib import Path

import pytest
from fake_sweep import FakeSweep

from hpc import hold, slurm
from hpc.paths import Submission, Submissions


@pytest.fixture
def sweep(tmp_path: Path) -> FakeSweep:
    return FakeSweep(tmp_path, seeds=3)


def fail(sweep: FakeSweep, arm: str, seed: int, reason: str, ending: str = "crashed", epochs_done: int = 0) -> str | None:
    return hold.note_failure(sweep.folder, sweep.plan, sweep.ids[arm, seed], ending, reason, epochs_done)


def test_three_runs_that_fail_alike_hold_the_rest_and_say_so(sweep: FakeSweep) -> None:
    said = [fail(sweep, "se", seed, f"FileNotFoundError: /data/{seed}/x.npz: line {seed}0") for seed in range(3)]
    assert said[:2] == [None, None]
    assert said[2] is not None and "se-seed0, se-seed1, se-seed2" in said[2] and "--release" in said[2], said[2]
    why = hold.why_held(sweep.folder)
    assert why is not None and "three failures alike" in why and "FileNotFoundError" in why


def test_one_run_that_fails_three_times_holds_nothing(sweep: FakeSweep) -> None:
    assert [fail(sweep, "se", 0, "same") for _ in range(3)] == [None] * 3
    assert hold.why_held(sweep.folder) is None


@pytest.mark.parametrize(
    ("reasons", "endings", "epochs"),
    [
        (("a", "b", "a"), ("crashed",) * 3, 0),
        (("a", "a", "a"), ("crashed", "hung", "crashed"), 0),
        (("a", "a", "a"), ("crashed",) * 3, 1),
        *[(("a", "a", "a"), (ending,) * 3, 0) for ending in ("preempted", "timed_out", "node_failed", "stopped", "cancelled")],
    ],
)
def test_what_is_not_alike_or_not_the_runs_fault_holds_nothing(
    sweep: FakeSweep, reasons: tuple[str, ...], endings: tuple[str, ...], epochs: int
) -> None:
    for seed, (reason, ending) in enumerate(zip(reasons, endings, strict=True)):
        assert fail(sweep, "se", seed, reason, ending, epochs) is None
    assert hold.why_held(sweep.folder) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CUDA out of memory. Tried to allocate 1.50 GiB", "CUDA out of memory. Tried to allocate 12.00 GiB"),
        ("/scratch/me/a.npz: no such file", "/scratch/you/b.npz: no such file"),
        ("run 3f9c12ab4455: bad shape (3, 32)", "run 00ffee001122: bad shape (4, 64)"),
        ("rank 0 exited with 1", "rank 3 exited with 1"),
    ],
)
def test_reasons_are_alike_but_for_numbers_paths_and_ids(one: str, other: str) -> None:
    assert hold.normalised(one) == hold.normalised(other)


def test_reasons_that_say_something_else_are_not_alike() -> None:
    assert hold.normalised("KeyError: 'lr'") != hold.normalised("KeyError: 'momentum'")


def test_the_third_failure_also_holds_the_arrays_that_are_queued(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm, "call", lambda *args, **_: asked.append(args) or slurm.Reply(returncode=0, stdout="", stderr=""))
    entry = Submission(id="0001", created=0, code="0001", mode="slurm", tasks=("0001/0",), job_id="41", state="submitted")
    old = replace(entry, id="0002", job_id="40", state="done")
    Submissions(submissions=(entry, old)).write(sweep.folder)
    for seed in range(3):
        fail(sweep, "se", seed, "same")
    assert asked == [("scontrol", "hold", "41")]


def test_release_forgets_the_failures_that_led_to_the_hold(sweep: FakeSweep) -> None:
    for seed in range(3):
        fail(sweep, "se", seed, "same")
    assert hold.release(sweep.folder) is not None
    assert hold.why_held(sweep.folder) is None
    assert fail(sweep, "baseline", 0, "same") is None
    assert hold.release(sweep.folder) is None


def test_a_hold_keeps_who_held_first(sweep: FakeSweep) -> None:
    assert hold.hold(sweep.folder, "user", "--hold") is True
    assert hold.hold(sweep.folder, "three failures alike", "x") is False
    assert "by user" in str(hold.why_held(sweep.folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null"])
def test_a_torn_record_holds_and_cancels_nothing(sweep: FakeSweep, text: str) -> None:
    for name in ("hold.json", "cancelled.json", "failures.json"):
        (sweep.folder.path / name).write_text(text)
    assert hold.why_held(sweep.folder) is None and hold.cancelled(sweep.folder) == {}
    assert fail(sweep, "se", 0, "same") is None


def test_a_folder_that_cannot_be_written_fails_no_run_a_second_time(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hold, "write_json_durably", full)
    assert "No space left" in str(fail(sweep, "se", 0, "same"))


def test_a_cancelled_run_is_left_alone_by_its_task_and_not_by_a_later_one(sweep: FakeSweep) -> None:
    run_id = sweep.ids["se", 0]
    task = next(name for name, ids in sweep.plan.tasks.items() if run_id in ids)
    hold.cancel(sweep.folder, {task: [run_id]})
    hold.cancel(sweep.folder, {"0001/9": ["other"]})
    assert hold.cancelled(sweep.folder) == {task: {run_id}, "0001/9": {"other"}}
    assert hold.cancelled_runs(sweep.folder, sweep.plan) == {run_id}
    again = replace(sweep.plan, tasks={**sweep.plan.tasks, "0002/0": (run_id,)})
    assert hold.cancelled_runs(sweep.folder, again) == set()
