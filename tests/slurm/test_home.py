"""Launch, job, status and table with a HOME that nobody may write: real training, W&B's offline mirror and figures included."""

import shutil
import sys
from pathlib import Path

import pytest
from cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]

REPO = Path(__file__).resolve().parents[2]
SWEEP = """\
name: small
base:
  model: {width: 8, blocks: [1, 1, 1]}
  data: {name: digits, train_images: 256, test_images: 200}
  augment: {crop_padding: 2, flip: false, autoaugment: none, mix_prob: 0}
  optim: {warmup_epochs: 0}
  train: {epochs: 2, global_batch_size: 64, device: cpu, amp: off, channels_last: false}
site: {extends: slurm, partition: low, gpu_request: none, cpus_per_rank: 1, signal_delay_s: 30}
"""


def test_a_run_finishes_and_writes_nothing_below_a_home_that_is_read_only(cluster: Cluster, user_path: Path) -> None:
    for name in ("hpc", "seresnet", "configs"):
        shutil.copytree(REPO / name, user_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (user_path / "small.yaml").write_text(SWEEP)
    cluster.give_to_user(user_path)
    home = user_path / "home"
    home.mkdir(mode=0o555)  # root's, so that the user cannot change that either
    env = {"HOME": str(home), "WANDB_MODE": "offline", "HPC_DATA_DIR": str(user_path / "data"), "HPC_TABLE_AT_END": "on"}

    def run(*words: str) -> str:
        done = cluster.run_as_user([sys.executable, "-m", *words], cwd=user_path, env=env, check=False, timeout_s=200)
        logs = "\n".join(path.read_text()[-2000:] for path in user_path.glob("runs/*/*/log*"))
        assert done.returncode == 0, f"{words} exited {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{logs}"
        return str(done.stdout) + str(done.stderr)

    refused = cluster.run_as_user(["touch", str(home / "x")], check=False)
    assert refused.returncode != 0, "the user may write this HOME: the test shows nothing"
    run("hpc.launch", "--sweep", "small.yaml", "--wait")
    assert "1 finished" in run("hpc.status", "runs/small")
    by_job = user_path / "runs/small/table.md"
    assert by_job.read_text().startswith("Complete: 1 of 1 runs finished."), "the job leaves the table"
    assert (user_path / "runs/small/figures/accuracy.png").exists(), (user_path / "runs/small/logs/table.txt").read_text()
    run("hpc.collect", "runs/small")
    (folder,) = user_path.glob("runs/small/*/result.json")
    assert any((folder.parent / "wandb").glob("**/*.wandb")), "no mirror ran"
    assert "read-only" not in (said := (folder.parent / "log.txt").read_text()).lower() and "permission" not in said.lower(), said
    assert list(home.iterdir()) == []
