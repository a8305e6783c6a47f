"""One run on two nodes, which are two supervisors on this machine: who does what, who hears of what, and what is left of a lost one."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc import ranks, requeue
from hpc.place import Place, check_nodes
from seresnet.config import RunConfig, to_dict
from seresnet.errors import ConfigError
from seresnet.run_folder import RunFolder, RunRecord
from tests.hpc.node_scene import Scene, is_gone, wait_until

Open = Callable[..., Scene]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Open]:
    opened: list[Scene] = []

    def _open(*acts: str, **more: Any) -> Scene:
        opened.append(Scene(tmp_path, *acts, **more))
        return opened[-1]

    yield _open
    for each in opened:
        each.close()


def _environment(scene: Scene, rank: int) -> dict[str, str]:
    lines = (scene.sweep.path / f"run0/environment-{rank}").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_every_rank_of_every_node_has_its_place(scene: Open) -> None:
    two = scene("finish", ranks=4).start()
    assert two.codes() == [0, 0], two.say()
    for rank in range(4):
        wanted = {"RANK": str(rank), "LOCAL_RANK": str(rank % 2), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "SERESNET_GENERATION": "1"}
        seen = _environment(two, rank)
        assert wanted.items() <= seen.items()
        assert seen["SERESNET_STORE"].rpartition(":")[2] == _environment(two, 0)["SERESNET_STORE"].rpartition(":")[2]
        assert ("SERESNET_STORE_FD" in seen) == (rank == 0) and "SERESNET_INIT_METHOD" not in seen
    assert two.endings() == ["finished"] and not list(two.sweep.logs.glob(".nodes-*"))


def test_the_runs_of_a_pack_follow_each_other_on_both_nodes(scene: Open) -> None:
    two = scene("finish", "exit 1; finish", "finish").start()
    assert two.codes() == [0, 0], two.say()
    assert [two.endings(f"run{index}") for index in range(3)] == [["finished"], ["crashed", "finished"], ["finished"]]


@pytest.mark.parametrize(("size", "place"), [(2, "rank 1 on node 1 (n2)"), (4, "rank 1 on node 0 (n1)")])
def test_a_killed_rank_takes_the_other_node_down_within_seconds_and_is_tried_again(scene: Open, size: int, place: str) -> None:
    two = scene("rank1:kill; finish", ranks=size).start()
    others = two.wait_until_serving(*(rank for rank in range(size) if rank != 1))
    took_s = wait_until(lambda: all(map(is_gone, others)), 10, "ranks of a dead rank's run are gone")
    assert took_s < ranks.BEREAVED_LIMIT_S + 2
    assert two.codes() == [0, 0], two.say()
    assert two.endings() == ["killed", "finished"]
    assert two.reasons()[0].startswith(f"{place}: rank 1 was ended by SIGKILL")


def test_a_node_records_how_its_ranks_ended(scene: Open) -> None:
    two = scene("rank1:exit 80; finish").start()
    assert two.codes() == [0, 0], two.say()
    text = (two.sweep.path / "run0/attempts/000001.node1.json").read_text()
    assert '"ending": "out_of_memory"' in text and '"culprit": 1' in text
    assert two.endings() == ["out_of_memory", "finished"]


def test_a_lost_supervisor_of_another_node_ends_the_task_and_its_ranks_at_once(scene: Open) -> None:
    two = scene("serve; finish").start()
    pids = two.wait_until_serving(0, 1)
    two.supervisors[1].kill()
    assert wait_until(lambda: all(map(is_gone, pids)), 10, "all ranks are gone") < 2
    assert two.codes() == [75, -9], two.say()
    assert two.endings() == ["stopped"] and "node 1 (n2) is lost" in two.reasons()[0]
    two.start(restarts=1)
    assert (two.codes(), two.endings()) == ([0, 0], ["stopped", "finished"])


def test_without_node_0_no_rank_is_left_and_the_next_start_goes_on(scene: Open) -> None:
    two = scene("serve; finish").start()
    pids = two.wait_until_serving(0, 1)
    two.supervisors[0].kill()
    assert wait_until(lambda: all(map(is_gone, pids)), 10, "all ranks are gone") < 2
    assert two.codes() == [-9, 75], two.say()
    two.start(restarts=1)
    assert two.codes() == [0, 0], two.say()
    assert two.endings() == ["node_failed", "finished"]


@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)])
def test_a_stop_request_to_any_node_stops_all_and_saves(scene: Open, told: tuple[int, ...]) -> None:
    two = scene("serve; finish", "finish").start()
    two.wait_until_serving(0, 1)
    for node in told:
        two.supervisors[node].send_signal(signal.SIGTERM)
    assert two.codes() == [75, 75], two.say()
    assert (two.endings(), two.endings("run1")) == (["stopped"], [])
    assert "state saved" in two.reasons()[0]
    two.start(restarts=1)
    assert (two.codes(), two.endings("run1")) == ([0, 0], ["finished"])


@pytest.mark.parametrize("told", [0, 1])
def test_a_stop_while_the_nodes_find_each_other_starts_nothing(scene: Open, told: int) -> None:
    two = scene("finish").start(told)
    two.wait_for(two.folder / f"node{told}.out")
    two.supervisors[told].send_signal(signal.SIGTERM)
    assert two.codes(10) == [75], two.say()
    assert not list(two.sweep.path.glob("run0/environment-*"))


def test_a_node_that_never_comes_is_waited_for_so_long_and_named(scene: Open) -> None:
    two = scene("finish").start(0, JOIN_LIMIT_S=1.0)
    assert two.codes(15) == [75], two.say()
    assert two.endings() == ["stopped"] and "node 1 did not come within 1 s" in two.reasons()[0]


def test_a_rank_that_does_not_stop_on_another_node_is_killed_in_time(scene: Open) -> None:
    two = scene("deaf").start()
    pids = two.wait_until_serving(0, 1)
    began = time.monotonic()
    two.supervisors[0].send_signal(signal.SIGTERM)
    assert two.codes() == [75, 75], two.say()
    assert time.monotonic() - began < ranks.STOP_LIMIT_S + 4
    assert all(map(is_gone, pids)) and two.endings() == ["stopped"]


def test_followers_leave_with_the_code_of_the_task(scene: Open) -> None:
    two = scene("exit 78").start()
    assert two.codes() == [78, 78], two.say()
    assert two.endings() == ["user_error"]


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"state": "RUNNING"}, ("node_failed", True)),
        ({"state": "RUNNING", "preempt_time": 50.0}, ("preempted", True)),
        ({"state": "COMPLETING"}, ("cancelled", False)),
        ({"state": "CANCELLED"}, ("cancelled", False)),
        ({"state": "RUNNING", "restarts": 1}, ("preempted", False)),
    ],
)
def test_a_lost_node_is_what_slurm_says_and_else_requeued(facts: dict[str, Any], verdict: tuple[str, bool]) -> None:
    found = requeue.judge(requeue.JobFacts(job_id="1", start_time=1.0, **facts), 0, 60.0, 60.0, "node 1 (n2) is lost")
    assert (found.ending, found.requeue) == verdict


def test_what_an_earlier_start_published_is_another_name() -> None:
    first = {"SLURM_JOB_ID": "5", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_STEP_ID": "0"}
    others = [{"SLURM_RESTART_COUNT": "1"}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "6"}, {"SLURM_CLUSTER_NAME": "b"}]
    keys = {Place.of({**first, **other}).key for other in [{}, *others]}
    assert len(keys) == 5, keys
    assert Place.of({}).nodes == 1 and Place.of({"SLURM_NNODES": "2", "SLURM_NODEID": "1"}).node == 0


def _record(**train: Any) -> RunRecord:
    config = to_dict(RunConfig())
    config["train"] |= train
    return RunRecord(run_id="r", slug="r", config=config)


def test_a_run_whose_nodes_are_not_those_of_its_job_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_nodes(folder, _record(ranks=4, nodes=2), Place(nodes=4))
    assert str(caught.value) == (
        f"{folder.run_yaml}: train.nodes: 2 (train.ranks: 4), but its job has 4 nodes. "
        "Submit it with --nodes=2 --ntasks-per-node=1, or set train.nodes=4."
    )


def test_on_one_node_all_ranks_run_there_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_nodes(RunFolder(path=tmp_path), _record(ranks=4, nodes=2), Place())
    assert "train.nodes=2, but there is one node here: all 4 ranks run on it" in caplog.text


def test_only_this_user_can_read_what_node_0_publishes(scene: Open) -> None:
    two = scene("finish").start(0)
    (path,) = [Path(two.sweep.logs) / name for name in _wait_for_names(two)]
    assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o600, os.getuid())


def _wait_for_names(two: Scene) -> list[str]:
    names: list[str] = []

    def look() -> bool:
        names[:] = [path.name for path in two.sweep.logs.glob(".nodes-*.json")]
        return bool(names)

    wait_until(look, 20, "published")
    return names
