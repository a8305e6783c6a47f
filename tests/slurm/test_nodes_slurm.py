"""One run on both nodes of a real Slurm: what srun starts, what an eviction, a cancel and a loss do to it, and real training."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster
from scenes import REPO, Scene, copy_code, submit, wait_for

from seresnet.run_folder import RunFolder, TrainResult

pytestmark = pytest.mark.slurm

#: Ranks and supervisors of a lost node; the load of the machine included.
SOON_S = 8.0


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _seconds_until(condition: Callable[[], bool], scene: Scene) -> float:
    began = time.monotonic()
    wait_for(lambda: "1" if condition() else "", "it held", scene.say)
    return time.monotonic() - began


def _supervisor_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _node_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(word for word in words if word.startswith(b"SLURMD_NODENAME=")).decode().partition("=")[2]


def test_a_task_of_two_nodes_finishes(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "finish", "finish", packs=[["run0", "run1"]], ranks=4, nodes=2)
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["NumNodes"]) == ("COMPLETED", "2"), scene.say()
    assert (scene.endings("run0"), scene.endings("run1")) == (["finished"], ["finished"])
    places = [dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line) for path in _environments(scene)]
    assert [(place["RANK"], place["LOCAL_RANK"], place["SLURM_NODEID"]) for place in places] == [
        ("0", "0", "0"), ("1", "1", "0"), ("2", "0", "1"), ("3", "1", "1"),
    ]  # fmt: skip


def _environments(scene: Scene) -> list[Path]:
    return sorted(scene.sweep.glob("run0/environment-*"))


@pytest.mark.parametrize("evicted", ["n1", "n2"])
def test_an_eviction_from_either_node_is_requeued_once_and_finishes(cluster: Cluster, user_path: Path, evicted: str) -> None:
    scene = submit(cluster, user_path, "serve; finish", ranks=2, nodes=2)
    for rank in (0, 1):
        scene.wait_until_serving(rank=rank)
    cluster.fill(evicted, seconds=4)
    facts = scene.wait_until_over("COMPLETED", "FAILED", timeout_s=90)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert scene.endings() == ["preempted", "finished"]
    assert "state saved" in scene.ends()[0]["reason"]


def test_a_rank_killed_on_the_other_node_takes_its_run_down_and_is_tried_again(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish", ranks=2, nodes=2)
    first, second = (scene.wait_until_serving(rank=rank) for rank in (0, 1))
    assert {_node_of(first), _node_of(second)} == {"n1", "n2"}
    os.kill(second, signal.SIGKILL)
    assert _seconds_until(lambda: _is_gone(first), scene) < SOON_S
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), scene.say()
    assert scene.endings() == ["killed", "finished"] and "rank 1 on node 1 (n2)" in scene.ends()[0]["reason"]


def test_a_lost_supervisor_of_the_other_node_is_requeued_as_a_lost_node(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish", ranks=2, nodes=2)
    first, second = (scene.wait_until_serving(rank=rank) for rank in (0, 1))
    os.kill(_supervisor_of(second), signal.SIGKILL)
    assert _seconds_until(lambda: _is_gone(first), scene) < SOON_S
    facts = scene.wait_until_over("COMPLETED", "FAILED", timeout_s=90)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert scene.endings() == ["node_failed", "finished"] and "node 1 (n2) is lost" in scene.ends()[0]["reason"]


def test_a_lost_supervisor_of_node_0_leaves_nothing_behind_and_the_batch_script_requeues(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish", ranks=2, nodes=2)
    first, second = (scene.wait_until_serving(rank=rank) for rank in (0, 1))
    other = _supervisor_of(second)
    os.kill(_supervisor_of(first), signal.SIGKILL)
    assert _seconds_until(lambda: _is_gone(second) and _is_gone(other), scene) < SOON_S
    facts = scene.wait_until_over("COMPLETED", timeout_s=90)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert scene.endings() == ["killed*", "finished"], scene.say()


def test_a_cancelled_task_of_two_nodes_never_comes_back(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish", ranks=2, nodes=2)
    for rank in (0, 1):
        scene.wait_until_serving(rank=rank)
    cluster.run_as_user(["scancel", scene.task()])
    scene.wait_until_over("CANCELLED")
    assert [ending.partition("_by")[0] for ending in scene.endings()] == ["cancelled"], scene.say()
    assert scene.ends()[0]["requeue"] is False


RUN = """
model: {{width: 4, blocks: [1, 1, 1]}}
data: {{name: digits, dir: {data}, train_images: 180, test_images: 40}}
augment: {{flip: false}}
optim: {{warmup_epochs: 1}}
train: {{epochs: 3, global_batch_size: 32, micro_batch_size: 16, device: cpu, amp: "off", ranks: 2, nodes: {nodes}}}
"""


def test_real_training_on_two_nodes_by_train_sh_has_the_bits_of_one_node(cluster: Cluster, user_path: Path) -> None:
    code, env = copy_code(cluster, user_path / "code"), {"PYTHON": sys.executable, "WANDB_MODE": "disabled"}
    shutil.copyfile(REPO / "seresnet" / "train.py", code / "seresnet" / "train.py")
    for name, nodes in (("two", 2), ("one", 1)):
        (code / f"{name}.yaml").write_text(RUN.format(data=user_path / "data", nodes=nodes))
    cluster.give_to_user(user_path)
    options = ["--parsable", "--gres=none", "--nodes=2", "--ntasks-per-node=1", "-c1", "-p", "low", "-t5", f"--output={code}/job.out"]
    job = cluster.run_as_user(["sbatch", *options, "sbatch/train.sh", "two.yaml"], cwd=code, env=env).stdout.strip()
    scene = Scene(cluster=cluster, sweep=code / "runs" / "two", job_id=job, is_array=False)
    facts = scene.wait_until_over("COMPLETED", "FAILED", timeout_s=150)
    assert (facts["JobState"], facts["NumNodes"]) == ("COMPLETED", "2"), f"{(code / 'job.out').read_text()[-3000:]}\n{scene.say()}"
    cluster.run_as_user([sys.executable, "-m", "hpc.supervisor", "one.yaml"], cwd=code, env=env)
    two, one = (_result(code / "runs" / name) for name in ("two", "one"))
    assert (two.world_size, two.state_digest) == (2, one.state_digest)


def _result(sweep: Path) -> TrainResult:
    (path,) = sweep.glob("*/result.json")
    result = TrainResult.read(RunFolder(path=path.parent))
    assert result is not None
    return result
