"""Who has a task: jobs are ours by id and name, other clusters prove nothing, and a lost submission.json loses no queued job."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from launch_bench import Bench, finish

from hpc import locks, queues, slurm
from hpc.paths import Plan, Submissions
from seresnet.errors import ConfigError


def send_to(bench: Bench, monkeypatch: pytest.MonkeyPatch, cluster: str, here: str | None) -> None:
    """A launch whose submission went to `cluster`; from now on squeue answers, with an empty queue, for `here`."""
    bench.launch()
    (entry,) = Submissions.read(bench.sweep).submissions
    Submissions().with_entry(replace(entry, cluster=cluster)).write(bench.sweep)
    monkeypatch.setattr(queues, "this_cluster", lambda: here)
    bench.listed = {}


@pytest.mark.parametrize("here", ["beta", None])
def test_the_silence_of_another_cluster_proves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch, here: str | None) -> None:
    send_to(bench, monkeypatch, "alpha", here)
    _, text = bench.launch()
    assert len(bench.sent) == 1, "sent a second time"
    assert "submission 0001 went to cluster alpha, and squeue here answers for" in text


def test_the_silence_of_the_same_cluster_is_an_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    send_to(bench, monkeypatch, "Alpha", "alpha")
    bench.launch()
    assert len(bench.tasks_sent()) == 4


def test_a_job_of_our_id_with_another_name_is_somebody_elses(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    for index in range(4):
        bench.list_job(f"101_{index}", "RUNNING", "another-sweep-0001")
    bench.launch()
    assert len(bench.sent) == 2 and len(bench.tasks_sent()) == 4


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        (slurm.Reply(returncode=0, stdout="CLUSTER_X = 1\nClusterName             = alpha\nCommunication = x\n", stderr=""), "alpha"),
        (slurm.Reply(returncode=1, stdout="", stderr="Unable to contact slurm controller"), "from-env"),
        (slurm.Reply(returncode=None, stdout="", stderr="no scontrol"), "from-env"),
    ],
)
def test_the_clusters_name_is_slurms_own_word(monkeypatch: pytest.MonkeyPatch, reply: slurm.Reply, name: str) -> None:
    monkeypatch.setattr(slurm, "call", lambda *args, **options: reply)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "from-env")
    assert queues.this_cluster() == name


def forget(bench: Bench) -> Plan:
    """submission.json is torn, and its user does what the message says."""
    bench.launch()
    plan = Plan.read(bench.sweep)
    bench.sweep.submission.write_text('{"schema": 1, "subm')
    with pytest.raises(ConfigError, match=r"submission\.json: cannot be read: .* Move it away"):
        bench.launch()
    bench.sweep.submission.unlink()
    return plan


def test_queued_jobs_keep_their_runs_when_submission_json_is_lost(bench: Bench) -> None:
    before = forget(bench)
    assert bench.listed is not None
    del bench.listed["101_3"]
    bench.launch()
    assert bench.tasks_sent() == [("se-s1",)], "only this one is in no queue"
    after = Plan.read(bench.sweep)
    assert after.tasks == {**before.tasks, "0002/0": before.tasks["0001/3"]}


def nothing_is_listed(bench: Bench) -> None:
    bench.listed = {}


def squeue_fails(bench: Bench) -> None:
    bench.listed = None


@pytest.mark.parametrize(("happens", "sent"), [(nothing_is_listed, 2), (squeue_fails, 1)])
def test_jobs_of_a_lost_record_count_as_queued_only_while_squeue_is_silent(
    bench: Bench, happens: Callable[[Bench], None], sent: int
) -> None:
    forget(bench)
    happens(bench)
    bench.launch()
    assert len(bench.sent) == sent


def test_tasks_of_a_lost_local_launch_need_no_squeue(bench: Bench) -> None:
    plan = forget(bench)
    bench.listed = None
    bench.sweep.logs.mkdir()
    with locks.holding(bench.sweep.local_lock("0001")):
        assert set(queues.look(bench.sweep, plan, ()).tasks) == set(plan.tasks)
    queue = queues.look(bench.sweep, plan, ())
    assert (queue.tasks, queue.problem) == ({}, None)


def test_a_finished_sweep_asks_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = forget(bench)
    for slug in bench.slugs():
        finish(bench.run(slug))
    monkeypatch.setattr(slurm, "listed_jobs", lambda: pytest.fail("squeue was asked"))
    assert queues.look(bench.sweep, plan, ()).asked == frozenset(plan.tasks)
