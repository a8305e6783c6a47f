"""Changing what is queued, on a real Slurm and as an ordinary user: alter, hold, release, cancel, the GPU cap; and the one mail."""

import json
import re
import time
from pathlib import Path

import pytest
from cluster import Cluster
from launched import SWEEP, Launched
from scenes import wait_for

pytestmark = pytest.mark.slurm

#: 8 CPUs and 4 GPUs there are: tasks of 4 CPUs run two at a time.
WIDE = SWEEP.replace("cpus_per_rank: 1", "cpus_per_rank: 4")


def by_state(launched: Launched) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for task, (state, _, _) in launched.listed().items():
        found.setdefault(state, []).append(task)
    return found


def test_altering_reaches_what_waits_and_lists_what_slurm_refuses(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path, seeds=5, acts="serve", text=WIDE)
    launched.run()
    launched.wait_until_serving(2)
    said = launched.run("--alter", "site.walltime_min=7", "site.comment=hello")
    assert "TimeLimit=7 Comment=hello for 3 tasks that wait; 2 tasks that run at the next requeue" in said, said
    limits = {state: {launched.listed()[task][2] for task in tasks} for state, tasks in by_state(launched).items()}
    assert limits == {"PENDING": {"7:00"}, "RUNNING": {"5:00"}}
    assert launched.submissions()[0]["site"]["walltime_min"] == 7

    said = launched.run("--alter", "site.exclude=nosuch", code=1)
    assert re.search(rf"refused: {launched.job}_\d+.*Invalid node name", said), said
    assert launched.submissions()[0]["site"]["exclude"] is None, "a refused value was written down"
    said = launched.run("--alter", "site.walltime_min=2", code=2)
    assert "leaves no time to train" in said


def test_a_running_task_gets_the_new_limit_when_it_is_evicted(cluster: Cluster, user_path: Path) -> None:
    """By its sibling, which goes on: no task can alter itself (ADR 11)."""
    launched = Launched(cluster, user_path, seeds=2, acts="serve; finish", text=WIDE)
    launched.run()
    launched.wait_until_serving(2)
    launched.run("--alter", "site.walltime_min=9")
    evicted = next(task for task in launched.listed())
    cluster.fill(cluster.show_job(evicted)["NodeList"], seconds=50)
    cluster.wait_for_job(evicted, lambda facts: facts.get("TimeLimit") == "00:09:00", "has the new limit", 90)
    assert cluster.show_job(evicted)["JobState"] == "PENDING", "a task that runs was asked"
    left = json.loads((launched.sweep / "altered.json").read_text())
    assert [len(entry["tasks"]) for entry in left.values()] == [1], f"the sibling still runs with old values: {left}"


def test_a_hold_keeps_waiting_and_requeued_tasks_from_starting_until_release(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path, seeds=3, acts="serve; finish", text=WIDE)
    launched.run()
    launched.wait_until_serving(2)
    said = launched.run("--hold")
    assert "held: 1 task waiting; 2 running tasks may end" in said, said
    for task in by_state(launched)["RUNNING"]:
        cluster.command("scontrol", "requeue", task)
    launched.wait_until(lambda: list(by_state(launched)) == ["PENDING"], "all wait")
    time.sleep(8)  # a requeued job is back within 6 s here
    assert {entry[:2] for entry in launched.listed().values()} == {("PENDING", "JobHeldUser")}
    said = launched.run("--release")
    assert "released: 3 tasks waiting" in said, said
    launched.wait_until(lambda: launched.finished() == 2, "the requeued ones finish")


def test_a_cancelled_run_goes_and_stays_away_and_the_others_train(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path, seeds=4, acts="serve; finish", text=WIDE)
    launched.run()
    launched.wait_until_serving(2)
    running, waiting = (sorted(by_state(launched)[state]) for state in ("RUNNING", "PENDING"))
    slugs = [f"baseline-s{task.rpartition('_')[2]}" for task in (running[0], waiting[0])]
    said = launched.run("--cancel", slugs[0], "--cancel", slugs[1])
    assert "cancelled 2 runs" in said, said
    launched.wait_until(lambda: not {running[0], waiting[0]} & launched.listed().keys(), "both left the queue")
    said = launched.run(code=1)
    assert len(launched.submissions()) == 1, f"a plain launch sent a cancelled run: {said}"
    launched.run("--retry", "cancelled")
    assert len(launched.submissions()[-1]["tasks"]) == 2


def test_a_run_that_trains_beside_others_is_not_cancelled_alone(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path, seeds=3, acts="serve; finish", more="pack: {runs_per_task: 3}\n")
    launched.run()
    launched.wait_until_serving(1)
    said = launched.run("--cancel", "baseline-s0", code=2)
    assert "--cancel baseline-s0 --cancel baseline-s1 --cancel baseline-s2" in said, said
    # One that its task has not begun is left out by the task itself.
    launched.run("--cancel", "baseline-s1")
    assert [state for state, _, _ in launched.listed().values()] == ["RUNNING"]
    launched.run("--cancel", "all")
    launched.wait_until(lambda: not launched.listed(), "the task ends")
    assert not list(launched.sweep.glob("baseline-s1-*/attempts/*")), "a cancelled run was started"


def test_the_cap_counts_gpus_over_all_arrays(cluster: Cluster, user_path: Path) -> None:
    gpus = SWEEP.replace("gpu_request: none", "gpu_request: gres").replace("device: cpu", "device: cuda")
    launched = Launched(cluster, user_path, seeds=6, acts="serve", text=gpus)
    launched.run("--max-gpus", "2")
    launched.wait_until_serving(2)
    assert {state: len(tasks) for state, tasks in by_state(launched).items()} == {"RUNNING": 2, "PENDING": 4}
    launched.run("--max-gpus", "3")
    launched.wait_until(lambda: len(by_state(launched)["RUNNING"]) == 3, "a third starts")
    launched.run("--max-gpus", "1")
    assert cluster.show_job(launched.job)["ArrayTaskThrottle"] == "1"


def test_an_array_sends_one_mail_when_it_has_ended(cluster: Cluster, user_path: Path) -> None:
    sent = cluster.path / "mail.txt"
    sent.unlink(missing_ok=True)
    launched = Launched(cluster, user_path, seeds=2, acts="serve; finish", more="  mail: me@example.org\n")
    launched.run()
    launched.wait_until_serving(2)
    cluster.command("scontrol", "requeue", next(iter(launched.listed())))
    wait_for(lambda: "1" if len(launched.listed()) == 2 and launched.finished() == 0 else "", "requeued", launched.say)
    launched.wait_until(lambda: launched.finished() >= 1, "one finishes after its requeue")
    cluster.command("scancel", launched.job)
    launched.wait_until(lambda: not launched.listed(), "the array ends")
    wait_for(lambda: sent.read_text() if sent.exists() else "", "a mail is sent", launched.say)
    assert len(sent.read_text().splitlines()) == 1, sent.read_text()
