"""A draft as a cluster takes it: chunks, a queue without room, a cap of GPUs, a smoke test before the arrays, refusals before sbatch."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launch_bench import SWEEP, Bench, attempt, finish

from hpc import control, hold, launch_arrays, trials
from hpc.draft import Batch
from hpc.limits import Limits, Room
from hpc.paths import Plan, Submissions
from hpc.shapes import TaskShape
from seresnet.errors import ConfigError, SubmissionError


def test_arrays_hold_every_task_once_and_in_order() -> None:
    batches = (
        Batch(shape=TaskShape(), packs=tuple((f"a{n}",) for n in range(5))),
        Batch(shape=TaskShape(ranks=2), packs=(("b0", "b1"), ("b2",))),
    )
    arrays = launch_arrays.cut(batches, lambda tasks: [min(2, tasks - first) for first in range(0, tasks, 2)])
    assert [len(array.packs) for array in arrays] == [2, 2, 1, 2]
    assert [pack for array in arrays for pack in array.packs] == [pack for batch in batches for pack in batch.packs]
    taken, left = launch_arrays.take(arrays, 3)
    assert ([len(array.packs) for array in taken], left) == ([2, 1], (("a3",), ("a4",), ("b0", "b1"), ("b2",)))


def test_tasks_over_max_array_size_are_arrays_of_their_own(bench: Bench) -> None:
    bench.limits = Limits(max_array_size=4)
    bench.launch("seeds=5")
    assert [len(entry["tasks"]) for entry in bench.sent] == [4, 4, 2]
    entries = Submissions.read(bench.sweep).submissions
    assert [(entry.id, entry.job_id) for entry in entries] == [("0001", "101"), ("0002", "102"), ("0003", "103")]
    assert bench.sent[1]["tasks"] == ["0002/0", "0002/1", "0002/2", "0002/3"]


def test_what_the_queue_has_no_room_for_is_said_and_sent_by_the_next_launch(bench: Bench) -> None:
    bench.limits = Limits(rooms=(Room(name="MaxSubmit of QOS normal", limit=3, queued=0),))
    code, text = bench.launch()
    assert code == 0
    assert (
        "sent 3 of 4 tasks: MaxSubmit of QOS normal is 3 and 0 are queued; launch again when some have ended, or leave --wait running\n"
    ) in text
    assert "note: 1 task more than this cluster takes now" in text
    for slug in ("baseline-s0", "baseline-s1", "se-s0"):
        finish(bench.run(slug))
    bench.launch()
    assert bench.tasks_sent() == [("se-s1",)]


def test_a_full_queue_sends_nothing_and_is_exit_1(bench: Bench) -> None:
    bench.limits = Limits(rooms=(Room(name="MaxSubmit of QOS normal", limit=3, queued=3),))
    code, text = bench.launch()
    assert (code, bench.sent) == (1, [])
    assert "sent 0 of 4 tasks: MaxSubmit of QOS normal is 3 and 3 are queued" in text


def test_with_wait_the_rest_is_sent_as_room_appears(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.limits = Limits(rooms=(Room(name="MaxSubmit of QOS normal", limit=3, queued=0),))
    now = lambda site: Limits(rooms=(Room(name="MaxSubmit of QOS normal", limit=3, queued=len(bench.listed or {})),))  # noqa: E731
    monkeypatch.setattr("hpc.limits.live_limits", now)
    monkeypatch.setattr("hpc.launch_watch._ASK_EVERY_S", 0.0)

    def sleep(seconds: float) -> None:
        for slug in [slug for task in bench.tasks_sent() for slug in task]:
            attempt(bench.run(slug), "finished")
            finish(bench.run(slug))
        bench.listed = {}

    monkeypatch.setattr("hpc.launch_watch.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    code, text = bench.launch(wait=True)
    assert [len(entry["tasks"]) for entry in bench.sent] == [3, 1]
    assert bench.tasks_sent() == [("se-s1",)]
    assert "the rest follows as they end" in text
    assert code == 0 and "4 of 4 runs finished" in text


# --- a cap of GPUs ---


@pytest.fixture
def capped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    caps: list[int] = []

    def cap(sweep: Any, plan: Any, submissions: Any, max_gpus: int) -> list[str]:
        caps.append(max_gpus)
        return [f"capped at {max_gpus}"]

    monkeypatch.setattr(control, "cap_gpus", cap)
    return caps


def test_max_gpus_caps_each_array_and_lets_them_follow_each_other(bench: Bench, capped: list[int]) -> None:
    bench.limits = Limits(max_array_size=2)
    _, text = bench.launch("train.device=cuda", max_gpus=2)
    assert [(entry["parallel"], entry["dependency"]) for entry in bench.sent] == [(2, None), (2, "afterany:101")]
    assert capped == [2] and "capped at 2" in text
    bench.launch("train.device=cuda", "seeds=3", max_gpus=1)
    assert bench.sent[2]["dependency"] == "afterany:101:102", "what is queued already counts"


def test_a_task_above_the_cap_is_refused_before_anything_is_written(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"--max-gpus 1: a task takes 2 GPUs and would never start\. Use 2 or more\."):
        bench.launch("train.device=cuda", "train.ranks=2", "train.micro_batch_size=64", max_gpus=1)
    assert not bench.sweep.path.exists()


def test_a_cap_says_nothing_of_tasks_without_gpus(bench: Bench, capped: list[int]) -> None:
    bench.launch(max_gpus=1)
    assert [(entry["parallel"], entry["dependency"]) for entry in bench.sent] == [(None, None)]


# --- refusals ---


def test_faults_of_the_cluster_are_told_all_at_once_and_nothing_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc.limits.faults", lambda limits, site, tasks: [f"first fault of {tasks[0][1]} tasks", "second fault"])
    for dry_run in (True, False):
        with pytest.raises(ConfigError) as caught:
            bench.launch("site.sbatch.array=0-5", dry_run=dry_run)
        assert str(caught.value).startswith("first fault of 4 tasks\nsecond fault\n")
        assert "--array is set by the toolkit" in str(caught.value)
    assert not bench.sweep.path.exists() and not bench.sent


def test_a_held_sweep_is_not_sent_before_it_is_released(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    hold.hold(bench.sweep, "user", "--hold")
    with pytest.raises(ConfigError, match=r"runs/demo: held since .* by user: --hold\. Nothing was sent\. Say --release first\."):
        bench.launch()
    hold.release(bench.sweep)
    assert bench.launch()[0] == 0


def test_a_dry_run_here_counts_the_gpus(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="a task needs 1 GPU, but this machine shows 0"):
        bench.launch("train.device=cuda", site="local", dry_run=True)


def test_after_a_refusal_no_array_of_the_launch_counts_as_queued(bench: Bench) -> None:
    bench.limits, bench.refusal = Limits(max_array_size=2), "sbatch refused (exit 1): Invalid account"
    with pytest.raises(SubmissionError):
        bench.launch()
    assert [entry.state for entry in Submissions.read(bench.sweep).submissions] == ["done", "done"]
    bench.refusal, bench.listed = None, None
    assert "4 to send" in bench.launch(dry_run=True)[1], "a silent squeue must not make them queued"


# --- smoke and mail ---


def test_the_arrays_wait_for_the_smoke_test(bench: Bench) -> None:
    _, text = bench.launch(smoke=True)
    smoke, array = bench.sent
    assert smoke["tasks"] == ["trial/smoke-0001"] and smoke["job_name"].endswith("-smoke-0001")
    assert array["dependency"] == "afterok:101"
    assert [entry.job_id for entry in Submissions.read(bench.sweep).submissions] == ["102"]
    assert "they wait for the smoke test, job 101" in text
    assert len(trials.TrialTask.read(bench.sweep, "trial/smoke-0001").runs) == 2, "one run an arm"


def test_a_refused_smoke_test_leaves_nothing_queued(bench: Bench) -> None:
    bench.refusal = "sbatch refused (exit 1): Invalid account"
    with pytest.raises(SubmissionError):
        bench.launch(smoke=True)
    bench.refusal, bench.listed = None, None
    assert "4 to send" in bench.launch(dry_run=True)[1]


def test_a_calibration_starts_no_run_of_the_sweep(bench: Bench) -> None:
    code, text = bench.launch(calibrate=True)
    assert (code, [entry["tasks"] for entry in bench.sent]) == (0, [["trial/calibrate-0001"]])
    assert not bench.sweep.plan.exists()
    assert "--dry-run" in text


def test_a_smoke_test_that_fails_here_trains_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "run_here", lambda sweep, told: 78)
    with pytest.raises(SubmissionError, match=r"smoke test of 2 runs.* failed \(exit 78\)\. Nothing was sent\."):
        bench.launch(site="local", smoke=True)
    assert not bench.sweep.plan.exists()


def test_mail_of_the_sweep_goes_into_the_site(bench: Bench) -> None:
    bench.file.write_text(SWEEP + "mail: me@example.org\n")
    bench.launch()
    assert bench.sent[0]["site"].mail == "me@example.org"


def test_the_plan_is_saved_as_it_was_printed_before_sbatch(bench: Bench) -> None:
    _, text = bench.launch()
    saved = bench.sweep.plan_text.read_text()
    assert "4 runs in 2 arms: 4 to send as 4 tasks (4 x 1 rank)." in saved
    assert saved in text or saved.split("\nstart")[0] in text
    assert Plan.read(bench.sweep).source == "../../demo.yaml"


def test_concurrent_packs_occupy_as_many_cores_and_gpus_as_they_use(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[Any] = []
    monkeypatch.setattr("hpc.local.run_local", lambda sweep, entry, found, *rest: tasks.extend(found) or False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    bench.file.write_text(SWEEP + "pack: {mode: concurrent, per_gpu: 3}\n")
    bench.launch("train.device=cuda", "train.threads=2", site="local")
    assert [(task.processes, task.cores, task.gpus) for task in tasks] == [(3, 6, 1), (1, 2, 1)]
    (entry,) = Submissions.read(bench.sweep).submissions
    assert (entry.at_a_time, entry.gpus, entry.nodes) == (3, 1, 1)


def test_a_launch_here_of_two_shapes_holds_a_lock_for_each(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpc import locks

    held: list[bool] = []
    monkeypatch.setattr(
        "hpc.local.run_local", lambda *args: held.extend(locks.is_held(bench.sweep.local_lock(n)) for n in ("0001", "0002"))
    )
    bench.file.write_text(SWEEP.replace("{model.attention: se}", "{model.attention: se, train.ranks: 2, train.micro_batch_size: 64}"))
    bench.launch(site="local")
    assert held == [True, True]
    assert [entry.state for entry in Submissions.read(bench.sweep).submissions] == ["done", "done"]
    assert Path(bench.sweep.plan_text).exists()
