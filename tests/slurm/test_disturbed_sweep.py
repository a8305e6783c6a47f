"""A real sweep, disturbed on a real Slurm, against its undisturbed local twin: the same bits."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

REPO = Path(__file__).resolve().parents[2]
SWEEP = """
name: disturbed
base:
  model: {width: 4, blocks: [1, 1, 1]}
  data: {name: digits, train_images: 1200, test_images: 200}
  augment: {autoaugment: none}
  optim: {warmup_epochs: 1}
  train: {device: cpu, amp: 'off', channels_last: false, epochs: 24, global_batch_size: 64, checkpoint_every_s: 0.5}
arms:
  evicted: {}
  cancelled: {model.attention: se}
  killed: {train.ranks: 2, train.micro_batch_size: 32}
site: {extends: slurm, partition: low, cpus_per_rank: 1, walltime_min: 10, gpu_request: none}
wandb: {mode: disabled}
"""
ARMS = ("evicted", "cancelled", "killed")


class Sweep:
    """A launched sweep, seen from outside."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.path = cluster, folder, folder / "runs" / "disturbed"

    def launch(self, *more: str, runs: str = "runs") -> str:
        command = [sys.executable, "-m", "hpc.launch", "--sweep", str(self.folder / "sweep.yaml"), "--runs-dir", str(self.folder / runs)]
        return self.cluster.run_as_user([*command, f"data.dir={self.folder}/data", *more], cwd=REPO, timeout_s=280).stdout

    def run(self, arm: str, runs: str = "runs") -> Path:
        return next((self.folder / runs / "disturbed").glob(f"{arm}-s0-*"))

    def task(self, arm: str) -> str:
        """The job id of the arm's newest task."""
        plan, submissions = (json.loads((self.path / name).read_text()) for name in ("plan.json", "submission.json"))
        (run_id,) = plan["arms"][arm]
        task = [name for name, run_ids in plan["tasks"].items() if run_id in run_ids][-1]
        job = {entry["id"]: entry["job_id"] for entry in submissions["submissions"]}[task.split("/")[0]]
        return f"{job}_{task.split('/')[1]}"

    def endings(self, arm: str) -> list[str]:
        return [json.loads(path.read_text())["ending"] for path in sorted(self.run(arm).glob("attempts/*.end.json"))]

    def wait(self, ready: Callable[[], object], what: str, timeout_s: float = 120) -> None:
        limit = time.monotonic() + timeout_s
        while not ready():
            logs = [*self.path.glob("logs/*.out"), *self.path.glob("*/log.txt")]
            assert time.monotonic() < limit, f"{what}: not within {timeout_s:.0f} s\n" + "\n".join(
                path.read_text()[-2000:] for path in logs
            )
            time.sleep(0.1)

    def digests(self, runs: str = "runs") -> dict[str, str]:
        return {arm: json.loads((self.run(arm, runs) / "result.json").read_text())["state_digest"] for arm in ARMS}


def _rank_pids(sweep: Sweep, arm: str) -> dict[str, int]:
    """RANK -> pid of the processes that train this run."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(sweep.run(arm)).encode() in (process / "cmdline").read_bytes():
                environ = dict(item.split("=", 1) for item in (process / "environ").read_text().split("\0") if "=" in item)
                found[environ["RANK"]] = int(process.name)
        except (OSError, KeyError):
            continue
    return found


@pytest.mark.timeout(600)
def test_evicted_killed_and_cancelled_runs_end_in_the_same_bits(cluster: Cluster, user_path: Path) -> None:
    sweep = Sweep(cluster, user_path)
    (user_path / "sweep.yaml").write_text(SWEEP)
    (user_path / "sweep.yaml").chmod(0o644)
    sweep.launch()
    sweep.wait(
        lambda: len(list(sweep.path.glob("*/ckpt/g0001-*"))) and all(list(sweep.run(arm).glob("ckpt/g*")) for arm in ARMS), "checkpoints"
    )

    cluster.run_as_user(["scancel", sweep.task("cancelled")])
    os.kill(_rank_pids(sweep, "killed")["1"], signal.SIGKILL)
    cluster.wait_for_state(sweep.task("cancelled"), "CANCELLED")
    cluster.fill(cluster.show_job(sweep.task("evicted"))["NodeList"], seconds=3)
    for arm in ("evicted", "killed"):
        sweep.wait(lambda arm=arm: cluster.show_job(sweep.task(arm)).get("JobState") in ("COMPLETED", "FAILED"), f"{arm} is over", 240)

    assert "preempted" in sweep.endings("evicted") and "killed" in sweep.endings("killed")
    assert sweep.endings("cancelled") == ["cancelled"], "a cancelled run came back by itself"
    sweep.launch()
    sweep.wait(lambda: (sweep.run("cancelled") / "result.json").exists(), "the cancelled run, launched again", 240)
    assert sweep.endings("cancelled")[0] == "cancelled"
    tasks = json.loads((sweep.path / "plan.json").read_text())["tasks"]
    assert [len(run_ids) for run_ids in tasks.values()] == [1, 1, 1, 1], "the second launch sent more than what was missing"

    sweep.launch("--local", runs="twin")
    assert sweep.digests() == sweep.digests("twin")
    queued = cluster.command("squeue", "--noheader")
    sweep.launch()
    assert cluster.command("squeue", "--noheader") == queued == "", "a finished sweep was submitted again"
