"""How attempts end on a real Slurm: what was recorded, whether the job came back, and whether that was right."""

import os
import signal
import time
from pathlib import Path

import pytest
from cluster import Cluster
from scenes import Scene, submit, submit_single, wait_for

pytestmark = pytest.mark.slurm


def _node(scene: Scene, index: int = 0) -> str:
    return scene.cluster.show_job(scene.task(index))["NodeList"]


def assert_stays_away(scene: Scene, seconds: float = 9.0) -> None:
    """A requeued job is back within 6 s here: see that this one is not."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        facts = scene.cluster.show_job(scene.task())
        assert facts["Restarts"] == "0" and facts["JobState"] not in ("PENDING", "RUNNING"), f"it came back: {facts}\n{scene.say()}"
        time.sleep(0.5)


def test_an_array_finishes(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "finish", "finish", "finish", packs=[["run0", "run1"], ["run2"]])
    for index in (0, 1):
        assert scene.wait_until_over("COMPLETED", "FAILED", index=index)["JobState"] == "COMPLETED", scene.say()
    assert [scene.endings(run) for run in ("run0", "run1", "run2")] == [["finished"]] * 3
    assert not list(scene.sweep.glob("logs/*_result.pkl"))


@pytest.mark.parametrize("partition", ["low", "cancel"])
def test_an_evicted_run_is_requeued_and_finishes(cluster: Cluster, user_path: Path, partition: str) -> None:
    scene = submit(cluster, user_path, "serve; finish", partition=partition)
    scene.wait_until_serving()
    cluster.fill(_node(scene), seconds=4)
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert scene.endings() == ["preempted", "finished"]
    assert scene.ends()[0]["requeue"] is True


def test_an_eviction_without_any_grace_loses_no_run(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish", partition="abrupt")
    scene.wait_until_serving()
    cluster.fill(_node(scene), seconds=4)
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert scene.endings()[0] in ("preempted", "node_failed*", "stopped*") and scene.endings()[1:] == ["finished"]


def test_a_cancelled_run_never_comes_back_by_itself(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish")
    scene.wait_until_serving()
    cluster.run_as_user(["scancel", scene.task()])
    scene.wait_until_over("CANCELLED")
    assert scene.endings() == ["cancelled"], scene.say()
    assert scene.ends()[0]["requeue"] is False
    assert_stays_away(scene)


def test_a_job_cancelled_while_it_starts_never_comes_back(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish")
    cluster.wait_for_state(scene.task(), "RUNNING")
    cluster.run_as_user(["scancel", scene.task()])
    scene.wait_until_over("CANCELLED")
    assert_stays_away(scene)


def test_a_job_evicted_while_it_starts_is_requeued_and_trains_again(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; serve; finish")
    cluster.wait_for_state(scene.task(), "RUNNING")
    cluster.fill(_node(scene), seconds=2)
    wait_for(lambda: "1" if scene.cluster.show_job(scene.task()).get("Restarts") == "1" else "", "requeued", scene.say)
    before = scene.attempts()  # 0 or 1; a requeued job is held for some seconds, so the next attempt has not begun
    wait_for(lambda: "1" if scene.attempts() > before else "", "claimed again", scene.say)
    scene.wait_until_serving(generation=before + 1)
    facts = scene.cluster.show_job(scene.task())
    assert (facts["JobState"], facts["Restarts"]) == ("RUNNING", "1"), scene.say()
    cluster.run_as_user(["scancel", scene.task()])
    scene.wait_until_over("CANCELLED")
    assert scene.endings()[-1] == "cancelled", scene.say()


def test_a_rank_killed_with_9_is_tried_again_in_the_same_task(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish", ranks=2)
    os.kill(scene.wait_until_serving(rank=1), signal.SIGKILL)
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), scene.say()
    assert scene.endings() == ["killed", "finished"]


def test_a_user_error_fails_the_task_and_leaves_its_siblings_alone(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "exit 78", "finish", packs=[["run0", "run1"]])
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "78:0", "0"), scene.say()
    assert (scene.endings("run0"), scene.endings("run1")) == (["user_error"], ["finished"])


def test_a_bare_signal_stops_without_a_requeue(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish")
    scene.wait_until_serving()
    for name in ("TERM", "USR2", "TERM"):
        cluster.run_as_user(["scancel", f"--signal={name}", scene.task()], check=False)
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "75:0"), scene.say()
    assert scene.endings() == ["stopped"]
    assert_stays_away(scene, 3)


def test_a_lost_supervisor_is_inferred_and_its_ranks_are_gone(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish")
    rank = scene.wait_until_serving()
    cluster.run_as_user(["scontrol", "requeue", scene.task()])  # by hand: the step is killed within a second, nothing else is said
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert len(scene.endings()) == 2 and scene.endings()[1] == "finished"
    assert not Path(f"/proc/{rank}").exists()


@pytest.mark.slow
def test_the_time_limit_is_requeued_and_finishes(cluster: Cluster, user_path: Path) -> None:
    # The supervisor stops 45 s before the end by itself; Slurm's own signal may come before that.
    scene = submit(cluster, user_path, "serve; finish", walltime_min=1, signal_delay_s=10)
    scene.wait_until_serving()
    facts = scene.wait_until_over("COMPLETED", "FAILED", timeout_s=150)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert scene.endings() == ["timed_out", "finished"]
    assert scene.ends()[0]["requeue"] is True


# --- a job side without scontrol, and sbatch/train.sh ---


@pytest.mark.parametrize("partition", ["low", "cancel"])
def test_a_task_without_scontrol_comes_back_after_an_eviction(cluster: Cluster, user_path: Path, partition: str) -> None:
    scene = submit(cluster, user_path, "serve; finish", "finish", packs=[["run0"], ["run1"]], has_scontrol=False, partition=partition)
    scene.wait_until_serving("run0")
    cluster.fill(_node(scene), seconds=4)
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert (scene.endings("run0"), scene.endings("run1")) == (["stopped", "finished"], ["finished"])


def test_a_task_without_scontrol_that_is_cancelled_never_comes_back(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish", has_scontrol=False)
    scene.wait_until_serving()
    cluster.run_as_user(["scancel", scene.task()])
    scene.wait_until_over("CANCELLED")
    assert scene.endings() == ["stopped"], scene.say()
    assert_stays_away(scene)


def test_a_task_without_scontrol_is_not_requeued_for_a_bare_signal(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish", has_scontrol=False)
    scene.wait_until_serving()
    cluster.run_as_user(["scancel", "--signal=TERM", scene.task()], check=False)
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "75:0"), scene.say()
    assert_stays_away(scene, 3)


@pytest.mark.slow
def test_a_task_without_scontrol_comes_back_at_the_time_limit(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish", walltime_min=1, signal_delay_s=10, has_scontrol=False)
    scene.wait_until_serving()
    facts = scene.wait_until_over("COMPLETED", "FAILED", timeout_s=150)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert scene.endings() == ["stopped", "finished"]


@pytest.mark.parametrize("has_scontrol", [True, False])
def test_train_sh_comes_back_after_an_eviction(cluster: Cluster, user_path: Path, has_scontrol: bool) -> None:
    scene = submit_single(cluster, user_path, "serve; finish", has_scontrol=has_scontrol)
    scene.wait_until_serving()
    cluster.fill(_node(scene), seconds=4)
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert scene.endings() == ["preempted" if has_scontrol else "stopped", "finished"]


@pytest.mark.parametrize("has_scontrol", [True, False])
def test_train_sh_cancelled_never_comes_back(cluster: Cluster, user_path: Path, has_scontrol: bool) -> None:
    scene = submit_single(cluster, user_path, "serve; finish", has_scontrol=has_scontrol)
    scene.wait_until_serving()
    cluster.run_as_user(["scancel", scene.task()])
    scene.wait_until_over("CANCELLED")
    assert scene.endings() == ["cancelled" if has_scontrol else "stopped"], scene.say()
    assert_stays_away(scene)
