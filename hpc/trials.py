"""Trials of a sweep, seen from the launcher: which runs are tried (`--smoke`, `--calibrate`), the record of it, and sending it.

What happens in the task is hpc.trial_task's job, what a trial is seresnet.trial's. One invariant: everything that a trial writes lies
below the sweep's trials/; the sweep's own run folders, its plan and its table never hear of it.
"""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hpc.paths import SweepFolder, next_number
from hpc.shapes import TaskShape
from hpc.site import Site
from hpc.sweep import PlannedRun
from hpc.timings import shape_digest
from seresnet.config import TrainConfig, to_dict
from seresnet.durable import parse_json, write_json_durably
from seresnet.errors import ConfigError, SubmissionError
from seresnet.run_folder import RunFolder

Kind = Literal["smoke", "calibrate"]

SCHEMA = 1
STEPS = 20
#: Short enough for the partition that starts at once; a trial that is cut off goes on with the arms that are left.
WALLTIME_MIN = 30
PREFIX = "trial/"


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """One run that is tried, and on whose behalf."""

    run_id: str
    slug: str
    arms: tuple[str, ...]
    config: dict[str, dict[str, Any]]
    shape: str  # hpc.timings.shape_digest of the run itself
    note: str | None = None  # how the trial differs from the run itself

    @property
    def ranks(self) -> int:
        return int(self.config["train"]["ranks"])

    def folder(self, sweep: SweepFolder) -> RunFolder:
        """The scratch folder; not the run's own."""
        return RunFolder(path=sweep.trials / f"{self.slug}-{self.run_id}")


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What the task of a trial reads when it starts: trials/smoke-0001.json."""

    name: str  # "trial/smoke-0001"
    kind: Kind
    code: str
    runs: tuple[TrialRun, ...]
    steps: int = STEPS
    site: Mapping[str, Any] = field(default_factory=dict)

    def write(self, sweep: SweepFolder) -> None:
        sweep.trials.mkdir(parents=True, exist_ok=True)
        write_json_durably(_record(sweep, self.name), {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def read(cls, sweep: SweepFolder, name: str) -> "TrialTask":
        """Raises ConfigError if there is no such trial, or not one of this version."""
        path = _record(sweep, name)
        try:
            value = parse_json(path.read_text())
            if value.pop("schema") != SCHEMA:
                raise ValueError("another version wrote it")
            runs = tuple(TrialRun(**{**run, "arms": tuple(run["arms"])}) for run in value["runs"])
            return cls(**{**value, "runs": runs})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: no record of a trial: {error}. Launch with --smoke or --calibrate again.") from error

    @property
    def shape(self) -> TaskShape:
        """Of the widest run: one task tries all of them, one after another."""
        ranks = max(run.ranks for run in self.runs)
        gpus = max((run.ranks for run in self.runs if run.config["train"]["device"] == "cuda"), default=0)
        return TaskShape(ranks=ranks, gpus=gpus)


def outcomes_path(sweep: SweepFolder, name: str) -> Path:
    """Where the task writes what became of each run: run id -> {"passed", "reason", "shape", "report": its trial.json}."""
    path = _record(sweep, name)
    return path.with_name(f"{path.stem}.end.json")


def read_outcomes(sweep: SweepFolder, name: str) -> dict[str, dict[str, Any]]:
    """Empty while nothing has ended."""
    try:
        return dict(parse_json(outcomes_path(sweep, name).read_text()))
    except (OSError, ValueError):
        return {}


def failures(sweep: SweepFolder) -> list[str]:
    """Of the newest smoke test: a line for each run that did not pass; none where it passed, or has not got there."""
    told, outcomes = _newest_smoke(sweep)
    failed = [run for run in told if not outcomes.get(run.run_id, {"passed": True})["passed"]]
    return [f"{', '.join(run.arms)} ({run.slug}): {outcomes[run.run_id]['reason']}\n    log: {run.folder(sweep).log}" for run in failed]


def has_passed(sweep: SweepFolder) -> bool:
    """Whether every run of the newest smoke test has passed."""
    told, outcomes = _newest_smoke(sweep)
    return bool(told) and all(outcomes.get(run.run_id, {"passed": False})["passed"] for run in told)


def _newest_smoke(sweep: SweepFolder) -> tuple[tuple[TrialRun, ...], dict[str, dict[str, Any]]]:
    names = sorted(path.stem for path in sweep.trials.glob("smoke-*.json") if path.stem.removeprefix("smoke-").isdigit())
    # The record of another version is no reason to refuse a launch.
    with contextlib.suppress(ConfigError):
        if names:
            return TrialTask.read(sweep, f"{PREFIX}{names[-1]}").runs, read_outcomes(sweep, f"{PREFIX}{names[-1]}")
    return (), {}


# --- what the launcher calls ---


def choose(runs: Sequence[PlannedRun], kind: Kind) -> tuple[PlannedRun, ...]:
    """The runs to try among those that would be sent: one an arm for a smoke test, one a distinct shape to calibrate."""
    chosen: dict[str, PlannedRun] = {}
    for run in runs:
        keys = run.arms if kind == "smoke" else (shape_digest(to_dict(run.config)),)
        if not set(keys) <= chosen.keys():
            chosen.update(dict.fromkeys(keys, run))
    return tuple({run.run_id: run for run in chosen.values()}.values())


def prepare(sweep: SweepFolder, runs: Sequence[PlannedRun], site: Site, *, code: str, kind: Kind = "smoke") -> TrialTask:
    """Write the record of a new trial of these runs (see choose), which runs in the snapshot code/CODE."""
    assert runs, "a trial of nothing"
    numbers = [path.stem.removeprefix(f"{kind}-") for path in sweep.trials.glob(f"{kind}-*.json")]
    name = f"{PREFIX}{kind}-{next_number(numbers)}"
    told = TrialTask(name=name, kind=kind, code=code, runs=tuple(map(_on_one_node, runs)), site=site.to_dict())
    told.write(sweep)
    return told


def submit_smoke(sweep: SweepFolder, told: TrialTask, site: Site, *, job_name: str, visible: Sequence[Path] = ()) -> str:
    """Send the trial as an array of one task; returns its job id, on whose success (afterok:ID) the sweep's arrays may wait."""
    from hpc import slurm
    from hpc.worker import Worker

    return slurm.submit_array(
        Worker(str(sweep.path.resolve())),
        [told.name],
        folder=sweep.logs.absolute(),
        code_dir=sweep.code(told.code).absolute(),
        site=_short(site),
        shape=told.shape,
        job_name=job_name,
        visible=visible,
    )


def run_here(sweep: SweepFolder, told: TrialTask) -> int:
    """Run the trial as a child of this process, in the snapshot; prints a line an arm. Returns its exit code, 75 if it was stopped."""
    from hpc import local

    command = [sys.executable, "-m", "hpc.trial_task", "--sweep", str(sweep.path.resolve()), "--task", told.name]
    environ = {name: value for name, value in os.environ.items() if not local.NOT_FOR_CHILDREN.match(name)}
    try:
        child = subprocess.Popen(command, cwd=sweep.code(told.code), env=environ, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise SubmissionError(f"{shlex.join(command)}: {error.strerror or error}. Nothing was tried.") from error
    while True:
        # Ctrl-C reaches the child by itself, and it stops its ranks.
        with contextlib.suppress(KeyboardInterrupt):
            return child.wait()


def about(told: TrialTask) -> str:
    """For example "smoke test of 3 runs, 20 steps each, one after another (trial/smoke-0001)"."""
    what = "smoke test" if told.kind == "smoke" else "timing"
    runs = f"{len(told.runs)} run{'s' if len(told.runs) > 1 else ''}"
    return f"{what} of {runs}, {told.steps} steps each, one after another ({told.name})"


def _short(site: Site) -> Site:
    return replace(site, walltime_min=min(site.walltime_min, WALLTIME_MIN), array_parallelism=None)


def _on_one_node(run: PlannedRun) -> TrialRun:
    """A trial is one task on one node: of a run over several nodes it tries one node's share, and says so."""
    config, note = to_dict(run.config), None
    train: TrainConfig = run.config.train
    if train.nodes > 1:
        ranks = train.ranks // train.nodes
        config["train"] |= {"nodes": 1, "ranks": ranks}
        note = f"on 1 of {train.nodes} nodes, with {ranks} of {train.ranks} ranks"
    shape = shape_digest(to_dict(run.config))
    return TrialRun(run_id=run.run_id, slug=run.slug, arms=run.arms, config=config, shape=shape, note=note)


def _record(sweep: SweepFolder, name: str) -> Path:
    return sweep.trials / f"{name.removeprefix(PREFIX)}.json"
