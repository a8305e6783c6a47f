"""examples/own_script on the real Slurm, as a person launches it: evicted, requeued, finished, with the numbers of a quiet run here."""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster

from seresnet import journal
from seresnet.run_folder import RunFolder, TrainResult

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

REPO = Path(__file__).resolve().parents[2]
SITE = [
    "site.extends=slurm",
    "site.partition=low",
    "site.gpu_request=none",
    "site.cpus_per_rank=1",
    "site.walltime_min=5",
    "site.signal_delay_s=30",
]


class Launched:
    """The example and our packages, in a folder of the ordinary user."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        for name in ("hpc", "seresnet", "configs", "examples"):
            shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        cluster.give_to_user(folder)

    def launch(self, runs_dir: str, *more: str) -> None:
        command = [sys.executable, "-m", "hpc.launch", "--sweep", "examples/own_script/own.yaml", "--runs-dir", runs_dir, "seeds=1", *more]
        done = self.cluster.run_as_user(command, cwd=self.folder, check=False, timeout_s=120, env={"WANDB_MODE": "disabled"})
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def run(self, runs_dir: str, arm: str) -> RunFolder:
        (found,) = (self.folder / runs_dir / "own-script").glob(f"{arm}-s0-*")
        return RunFolder(path=found)

    def until(self, look: Callable[[], object], what: str, limit_s: float = 90.0) -> None:
        deadline = time.monotonic() + limit_s
        while not look():
            said = [f"== {path}\n{path.read_text()[-2000:]}" for path in self.folder.glob("slurm/own-script/*/log.txt")]
            assert time.monotonic() < deadline, f"{what}: not within {limit_s:.0f} s\n" + "\n".join(said)
            time.sleep(0.2)


def endings(run: RunFolder) -> list[str]:
    return [json.loads(path.read_text())["ending"] for path in sorted(run.attempts.glob("*.end.json"))]


def test_a_script_is_evicted_comes_back_and_has_the_numbers_of_a_quiet_run(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path)
    launched.launch("here", "--local")
    launched.launch("slurm", *SITE, "program.args.pause_s=0.4")
    evicted, other = launched.run("slurm", "small-steps"), launched.run("slurm", "large-steps")
    launched.until(lambda: len(journal.read(evicted)) >= 3, "it trains")
    task = json.loads(evicted.claim(1).read_text())["owner"]["array_job_id"]
    cluster.fill(cluster.show_job(task)["NodeList"], seconds=3)
    launched.until(lambda: evicted.result.exists() and other.result.exists(), "both finished")
    launched.until(lambda: endings(evicted)[-1:] == ["finished"], "its end is written")
    assert endings(evicted) == ["preempted", "finished"], evicted.log.read_text()
    assert "goes on after epoch" in evicted.log.read_text()
    assert [record.epoch for record in journal.read(evicted)] == list(range(1, 21))
    for arm in ("small-steps", "large-steps"):
        quiet, found = TrainResult.read(launched.run("here", arm)), TrainResult.read(launched.run("slurm", arm))
        assert quiet is not None and found is not None
        assert (found.last_test_top1_pct, found.last_test_loss, found.train_loss) == (
            quiet.last_test_top1_pct,
            quiet.last_test_loss,
            quiet.train_loss,
        )
