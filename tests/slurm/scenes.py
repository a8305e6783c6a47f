"""Sweeps for the private cluster: real supervisor, real Slurm, and in place of training a program that keeps to its contract.

The stand-in lies in the sweep's code snapshot as seresnet/train.py, so that everything from sbatch to the rank's command line is
what a user gets, without the seconds that torch takes to import. What it does in each attempt is told by acts (rank_program.py).
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import Cluster, ClusterError

REPO = Path(__file__).resolve().parents[2]
STAND_IN = REPO / "tests" / "hpc" / "rank_program.py"

#: Runs as the ordinary user, in the snapshot.
_SUBMIT = """
import json, sys
from pathlib import Path
from hpc import code_snapshot, slurm
from hpc.paths import Plan, PlannedFolder, Submission, Submissions, SweepFolder, WandbSettings
from hpc.site import Site
from hpc.worker import Worker
from seresnet.config import RunConfig, to_dict
from seresnet.run_folder import RunFolder, RunRecord

told = json.loads(sys.argv[1])
sweep, code, site = SweepFolder(Path(told["sweep"])), Path(told["code"]), Site(name="test", gpu_request="none", **told["site"])
names = [name for pack in told["packs"] for name in pack]
tasks = {f"0001/{index}": tuple(pack) for index, pack in enumerate(told["packs"])}
config = to_dict(RunConfig())
for name, acts in zip(names, told["acts"], strict=True):
    folder = RunFolder(path=sweep.path / name)
    folder.create()
    (folder.path / "acts.txt").write_text(acts)
    RunRecord(run_id=name, slug=name, config={**config, "train": {**config["train"], **told["train"]}}).write(folder)
(code / code_snapshot.MARK).write_text(json.dumps({"digest": code_snapshot.code_digest(code)}))
runs = {name: PlannedFolder(slug=name, folder=name, arms=("a",)) for name in names}
Plan(sweep="sweep", salt="0", arms={"a": tuple(names)}, runs=runs, tasks=tasks, wandb=WandbSettings(mode="disabled")).write(sweep)
job = slurm.submit_array(
    Worker(str(sweep.path)), list(tasks), folder=sweep.logs, code_dir=code, site=site,
    shape=slurm.TaskShape(**told["train"], at_a_time=told["at_a_time"]), job_name="scene",
)
entry = Submission(
    id="0001", created=0.0, code="0001", mode="slurm", tasks=tuple(tasks), job_id=job, state="submitted", site=site.to_dict(),
    at_a_time=told["at_a_time"],
)
Submissions(submissions=(entry,)).write(sweep)
print(job)
"""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A submitted job and its folder. `run` is a pattern: by default the only run there is."""

    cluster: Cluster
    sweep: Path
    job_id: str
    is_array: bool = True

    def task(self, index: int = 0) -> str:
        return f"{self.job_id}_{index}" if self.is_array else self.job_id

    def wait_until_serving(self, run: str = "run*", generation: int = 1, rank: int = 0) -> int:
        """Wait until a rank is past its start and waits for a stop; its pid."""
        return int(wait_for(lambda: _read(self.sweep, f"{run}/serving-{generation}-{rank}"), f"{run} serves", self.say))

    def wait_until_over(self, *states: str, index: int = 0, timeout_s: float = 60.0) -> dict[str, str]:
        """Wait for a final state of a task; fails with the task's log."""
        try:
            return self.cluster.wait_for_state(self.task(index), *states, timeout_s=timeout_s)
        except ClusterError as error:
            raise AssertionError(f"{error}\n{self.say()}") from error

    def endings(self, run: str = "run*") -> list[str]:
        """The recorded ending of each attempt, `inferred` marked by a star."""
        return [str(end["ending"]) + ("*" if end.get("inferred") else "") for end in self.ends(run)]

    def ends(self, run: str = "run*") -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.sweep.glob(f"{run}/attempts/*.end.json"))]

    def attempts(self, run: str = "run*") -> int:
        return len([path for path in self.sweep.glob(f"{run}/attempts/*.json") if path.stem.isdigit()])

    def say(self) -> str:
        """Every log of the scene, for the text of a failure."""
        logs = [*self.sweep.glob("logs/*.out"), *self.sweep.glob("*/log.txt"), *self.sweep.glob("job.out")]
        return "\n".join(f"== {path}\n{path.read_text()[-3000:]}" for path in logs)


def copy_code(cluster: Cluster, folder: Path) -> Path:
    """The code as a snapshot that the ordinary user may read, with the stand-in where training is."""
    for package in ("hpc", "seresnet", "configs", "sbatch"):
        shutil.copytree(REPO / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(STAND_IN, folder / "seresnet" / "train.py")
    cluster.give_to_user(folder)
    return folder


def _python(folder: Path, has_scontrol: bool) -> str:
    """An interpreter of the job side; without scontrol it sees no client of Slurm, as in a container."""
    python = folder / "python"
    python.write_text(f'#!/bin/bash\n{"" if has_scontrol else "export PATH=/nonexistent"}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def submit(
    cluster: Cluster,
    folder: Path,
    *acts: str,
    packs: list[list[str]] | None = None,
    ranks: int = 1,
    nodes: int = 1,
    at_a_time: int = 1,
    has_scontrol: bool = True,
    **site: Any,
) -> Scene:
    """Submit runs run0, run1, ... with their acts; by default one task a run, 5 minutes on partition `low`."""
    sweep = folder / "sweep"
    sweep.mkdir()
    cluster.give_to_user(sweep)
    code = copy_code(cluster, sweep / "code" / "0001")
    names = [f"run{index}" for index in range(len(acts))]
    settings = {"partition": "low", "walltime_min": 5, "signal_delay_s": 30, "cpus_per_rank": 1, **site}
    settings |= {} if has_scontrol else {"python": _python(sweep, has_scontrol)}
    told = {
        "sweep": str(sweep),
        "code": str(code),
        "acts": acts,
        "packs": packs or [[name] for name in names],
        "train": {"ranks": ranks, "nodes": nodes},
        "at_a_time": at_a_time,
        "site": settings,
    }
    done = cluster.run_as_user([sys.executable, "-c", _SUBMIT, json.dumps(told)], cwd=code)
    return Scene(cluster=cluster, sweep=sweep, job_id=done.stdout.strip())


def submit_single(cluster: Cluster, folder: Path, acts: str, *, has_scontrol: bool = True, options: Sequence[str] = ()) -> Scene:
    """Submit sbatch/train.sh with one run. options: of sbatch."""
    code = copy_code(cluster, folder / "code")
    (code / "run.yaml").write_text("train: {device: cpu, epochs: 20}\n")
    python = _python(code, has_scontrol)
    (code / "runs" / "run").mkdir(parents=True)
    cluster.give_to_user(code)
    sweep = code / "runs" / "run"
    args = ["sbatch", "--parsable", "--gres=none", "-c1", "-p", "low", "-t5", f"--output={sweep}/job.out", *options]
    done = cluster.run_as_user(
        [*args, "sbatch/train.sh", "run.yaml"], cwd=code, env={"PYTHON": python, "RANK_ACTS": acts, "WANDB_MODE": "disabled"}
    )
    return Scene(cluster=cluster, sweep=sweep, job_id=done.stdout.strip(), is_array=False)


def gate(folder: Path) -> str:
    """A line of shell that stops there until the test opens it, in every attempt before that."""
    return f"touch {folder}/at-gate; until [ -e {folder}/gate ]; do sleep 0.1; done"


def python_behind_gate(folder: Path) -> str:
    """An interpreter that starts when the gate is open: what comes before Python's first handler."""
    python = folder / "gated-python"
    python.write_text(f'#!/bin/bash\n{gate(folder)}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def wait_until_at_gate(scene: Scene) -> None:
    wait_for(lambda: "1" if (scene.sweep.parent / "at-gate").exists() else "", "at the gate", scene.say)


def open_gate(scene: Scene) -> None:
    (scene.sweep.parent / "gate").touch()


def assert_stays_away(scene: Scene, seconds: float = 9.0) -> None:
    """A requeued job is back within 6 s here: see that this one is not."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        facts = scene.cluster.show_job(scene.task())
        assert facts["Restarts"] == "0" and facts["JobState"] not in ("PENDING", "RUNNING"), f"it came back: {facts}\n{scene.say()}"
        time.sleep(0.5)


def wait_for(look: Callable[[], str], what: str, say: Callable[[], str], timeout_s: float = 40.0) -> str:
    """Poll until look() returns something; fails with what say() says."""
    limit = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < limit, f"{what}: not within {timeout_s:.0f} s\n{say()}"
        time.sleep(0.1)
    return found


def _read(folder: Path, pattern: str) -> str:
    return "".join(path.read_text() for path in folder.glob(pattern))
