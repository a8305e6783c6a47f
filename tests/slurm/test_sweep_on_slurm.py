"""The whole path on the real Slurm with real training: launched, disturbed, launched again, finished, and the bits of a quiet sweep.

HPC_ACCEPTANCE=1 runs configs/cifar-small.yaml as it is (about 20 minutes on two cores); without it a few small epochs of the same.
"""

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster

from seresnet import journal
from seresnet.run_folder import RunFolder, TrainResult

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(3600)]

REPO = Path(__file__).resolve().parents[2]
FULL = os.environ.get("HPC_ACCEPTANCE") == "1"
SMALL = [
    "model.width=8",
    "data.train_images=768",
    "data.val_images=100",
    "data.test_images=200",
    "train.epochs=6",
    "train.checkpoint_every_s=0.5",
]
LIMIT_S = 1800 if FULL else 300


def data_overrides() -> list[str]:
    """The real CIFAR-10 where it is, else the digits: real images that ship inside a package."""
    archive = Path(os.environ.get("HPC_CIFAR10_JPEG", REPO.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"))
    if archive.exists():
        return [f"data.path={archive.resolve()}"]
    return ["data.name=digits", "augment.flip=false"]


class Sweep:
    """cifar-small in a folder of the ordinary user, launched through the command line as a person would."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        for name in ("hpc", "seresnet", "configs"):
            shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        cluster.give_to_user(folder)

    def launch(self, runs_dir: str, *more: str) -> str:
        overrides = [*data_overrides(), f"data.dir={self.folder / 'data'}", *([] if FULL else SMALL)]
        command = [sys.executable, "-m", "hpc.launch", "--sweep", "configs/cifar-small.yaml", "--runs-dir", runs_dir, *overrides, *more]
        done = self.cluster.run_as_user(command, cwd=self.folder, check=False, timeout_s=LIMIT_S, env={"WANDB_API_KEY": ""})
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return str(done.stdout)

    def launch_on_slurm(self, *more: str) -> str:
        site = ["site.extends=slurm", "site.partition=low", "site.gpu_request=none", "site.cpus_per_rank=2", "site.walltime_min=60"]
        return self.launch("disturbed", *site, *more)

    def runs(self, runs_dir: str) -> dict[str, Path]:
        return {path.parent.name: path.parent for path in sorted((self.folder / runs_dir / "cifar-small").glob("*/run.yaml"))}

    def jobs(self) -> list[str]:
        """Array job ids of the submissions, oldest first."""
        told = json.loads((self.folder / "disturbed" / "cifar-small" / "submission.json").read_text())
        return [entry["job_id"] for entry in told["submissions"]]

    def task_of(self, run: Path) -> str:
        """The array task (A_T) that runs it now, from its newest claim."""
        claim = max(path for path in run.glob("attempts/*.json") if path.stem.isdigit())
        return str(json.loads(claim.read_text())["owner"]["array_job_id"])

    def rank_pid(self, run: Path) -> int:
        """The pid of rank 0 from the last header in its log."""
        return int(re.findall(r" pid=(\d+) ", (run / "log.txt").read_text())[-1])

    def endings(self, run: Path) -> list[str]:
        return [json.loads(path.read_text())["ending"] for path in sorted(run.glob("attempts/*.end.json"))]

    def say(self) -> str:
        logs = [*self.folder.glob("disturbed/*/logs/*"), *self.folder.glob("disturbed/*/*/log.txt")]
        return "\n".join(
            f"== {path}\n{path.read_text()[-2500:]}" for path in logs if path.is_file() and path.suffix in (".out", ".err", ".txt")
        )


def wait_for(look: Callable[[], object], what: str, sweep: Sweep, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not look():
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:.0f} s\n{sweep.say()}"
        time.sleep(0.2)


def has_checkpoint(run: Path) -> bool:
    return any(run.glob("ckpt/*.safetensors"))


def evict_one(sweep: Sweep, run: Path) -> None:
    """A job of higher priority that needs half of the node on which the run is."""
    node = sweep.cluster.show_job(sweep.task_of(run))["NodeList"]
    args = ["sbatch", "--parsable", "-p", "high", "-w", node, "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 4"]
    sweep.cluster.run_as_user(args, cwd=sweep.folder)


def is_over(sweep: Sweep, job: str) -> bool:
    states = sweep.cluster.command("squeue", "--noheader", "--format=%T", "-j", job, check=False)
    return not states.strip()


def test_a_disturbed_sweep_ends_with_the_bits_of_a_quiet_one(cluster: Cluster, user_path: Path) -> None:
    sweep = Sweep(cluster, user_path)
    sweep.launch("undisturbed", "--local")
    quiet = {name: TrainResult.read(RunFolder(path=path)) for name, path in sweep.runs("undisturbed").items()}
    assert len(quiet) == 4 and all(quiet.values())

    said = sweep.launch_on_slurm()
    assert "4 runs" in said, said
    runs, (job,) = sweep.runs("disturbed"), sweep.jobs()
    assert list(runs) == list(quiet), "the same YAML gave other runs"
    for run in runs.values():
        wait_for(lambda: has_checkpoint(run), f"{run.name} has a checkpoint", sweep)  # noqa: B023

    # Scancel one, evict one of the others, kill a rank of a third.
    cancelled = next(iter(runs.values()))
    cancelled_task = sweep.task_of(cancelled)
    cluster.run_as_user(["scancel", cancelled_task])
    wait_for(lambda: sweep.endings(cancelled) == ["cancelled"], "the cancelled run says so", sweep)
    others = [run for run in runs.values() if run != cancelled and not (run / "result.json").exists()]
    assert len(others) == 3, f"runs finished before they could be disturbed: {others}"
    node = {run.name: cluster.show_job(sweep.task_of(run))["NodeList"] for run in others}
    crowded = [run for run in others if list(node.values()).count(node[run.name]) == 2]
    evict_one(sweep, crowded[0])
    killed = next(run for run in others if run not in crowded)
    os.kill(sweep.rank_pid(killed), signal.SIGKILL)
    wait_for(lambda: any("preempted" in sweep.endings(run) for run in crowded), "one run was evicted", sweep)
    wait_for(lambda: is_over(sweep, job), "the first array ends", sweep)

    # Not by scontrol, which forgets a job after five minutes.
    states = cluster.command("sacct", "-X", "--duplicates", "--noheader", "--format=State%20", "-j", cancelled_task).split("\n")
    assert [state.split()[0] for state in states if state.strip()] == ["CANCELLED"], f"it came back by itself: {states}"
    assert sweep.endings(cancelled) == ["cancelled"]
    assert sweep.endings(killed) == ["killed", "finished"], sweep.say()
    assert [sweep.endings(run) for run in crowded if "preempted" in sweep.endings(run)] == [["preempted", "finished"]], sweep.say()

    sweep.launch_on_slurm("--retry", "cancelled")
    assert len(sweep.jobs()) == 2, "asked for again, the cancelled run was not sent"
    wait_for(lambda: is_over(sweep, sweep.jobs()[1]), "the second array ends", sweep)
    for name, run in runs.items():
        found = TrainResult.read(RunFolder(path=run))
        assert found is not None and quiet[name] is not None, f"{name} has no result\n{sweep.say()}"
        assert found.state_digest == quiet[name].state_digest, f"{name}: other bits than the undisturbed run"
        assert found.confusion == quiet[name].confusion
        assert [record.epoch for record in journal.read(RunFolder(path=run))] == list(range(1, found.epochs + 1))
        digest, endings = found.state_digest[:16], sweep.endings(run)
        print(f"{name}: {endings}, test {found.last_test_top1_pct:.2f} %, state_digest {digest} as undisturbed")
        if FULL:
            assert found.last_test_top1_pct > 30, "ten classes: chance is 10 %"

    # Nothing is left; one result less, one run is sent.
    said = sweep.launch_on_slurm()
    assert len(sweep.jobs()) == 2 and "othing" in said, said
    (killed / "result.json").unlink()
    sweep.launch_on_slurm()
    told = json.loads((sweep.folder / "disturbed/cifar-small/submission.json").read_text())["submissions"]
    assert len(told) == 3 and len(told[2]["tasks"]) == 1, told
    wait_for(lambda: is_over(sweep, sweep.jobs()[2]), "the third array ends", sweep)
    again = TrainResult.read(RunFolder(path=killed))
    assert again is not None and again.state_digest == quiet[killed.name].state_digest


def test_a_typo_is_refused_before_sbatch(cluster: Cluster, user_path: Path) -> None:
    sweep = Sweep(cluster, user_path)
    bad = sweep.folder / "configs" / "typo.yaml"
    bad.write_text("name: typo\nbase:\n  optim: {lr: 0.1}\n  train:\n    epoch: 3\nseeds: 2\n")
    before = cluster.command("squeue", "--noheader").strip()
    done = cluster.run_as_user(
        [sys.executable, "-m", "hpc.launch", "--sweep", "configs/typo.yaml", "site.extends=slurm"], cwd=sweep.folder, check=False
    )
    assert done.returncode == 2, done
    assert "configs/typo.yaml:5: base.train.epoch" in done.stderr and "train.epochs" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and cluster.command("squeue", "--noheader").strip() == before
    assert not (sweep.folder / "runs").exists()
