"""One run as a sweep of one, for `python -m hpc.supervisor RUN.yaml` and sbatch/train.sh: the same folders, resume and requeue.

The sweep is runs/<name of the file>; started again with the same config it goes on where it was, with another config it adds a run.
A job that Slurm has restarted goes on with the run that it began, whatever the file says by now.
"""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from hpc import locks, own_program, slurm
from hpc.paths import Plan, PlannedFolder, SweepFolder
from seresnet import own_code
from seresnet.config import ARGS_OF, RunConfig, run_id, slug, split_target, to_dict
from seresnet.config_file import read_run_config
from seresnet.durable import parse_json, write_json_durably
from seresnet.errors import ConfigError, SubmissionError
from seresnet.pinning import refuse_other_run
from seresnet.run_folder import RunRecord

log = logging.getLogger("hpc.supervisor")


def sweep_of_one(
    path: Path, overrides: Sequence[str], runs_dir: Path = Path("runs"), environ: Mapping[str, str] = os.environ
) -> tuple[SweepFolder, str]:
    """Write the run's folder and its place in the plan; returns the sweep and the task's name. Raises ConfigError."""
    name = slug(path.stem)
    sweep = SweepFolder(runs_dir / name)
    record = _Begun.of(sweep, environ, shlex.join([str(path), *overrides]))
    if record is not None and slurm.restart_count(environ) and (begun := record.read()):
        log.warning("run=%s goes on as this job began it: %s is not read again", begun, path)
        return sweep, _task(begun)
    config = read_run_config(path, overrides).config
    sweep.path.mkdir(parents=True, exist_ok=True)
    with locks.holding(sweep.launch_lock, wait_s=60) as alone:
        if not alone:
            raise SubmissionError(f"{sweep.path}: a launcher has held {sweep.launch_lock.name} for a minute. Try again when it is done.")
        plan = Plan.read_or_none(sweep) or Plan(sweep=name, salt=token_hex(4), arms={}, runs={}, tasks={})
        plan = _with_run(plan, name, config)
        _write_record(sweep, plan, config)
        plan.write(sweep)
        if record is not None:
            record.write(run_id(config))
    return sweep, _task(run_id(config))


def name_code_root(path: Path, sweep: SweepFolder, task: str) -> None:
    """Where nobody says where somebody's own code lies: beside the run's file, if its program or a module that it names is there."""
    plan = Plan.read(sweep)
    config = RunRecord.read(sweep.run_folder(plan.tasks[task][0], plan)).config
    values = {f"{section}.{key}": value for section, keys in config.items() for key, value in keys.items()}
    modules = [split_target(values[key])[0] for key in ARGS_OF.values() if isinstance(values.get(key), str)]
    command = values.get(own_program.KEY)
    programs = [own_program.Program(command=tuple(command), origin=str(path))] if command else []
    folder = path.resolve().parent
    if own_code.code_root() is None and (own_code.holds(folder, modules) or own_program.lie_in(folder, programs)):
        own_code.name_root(folder)


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """Which run a job began with which command line: a script may train several, one after another."""

    path: Path
    command: str

    @classmethod
    def of(cls, sweep: SweepFolder, environ: Mapping[str, str], command: str) -> "_Begun | None":
        job_id = slurm.own_job_id(environ)
        if job_id is None:
            return None
        return cls(path=sweep.begun(environ.get("SLURM_CLUSTER_NAME", "slurm"), job_id), command=command)

    def read(self) -> str | None:
        found = self._all().get(self.command)
        return None if found is None else str(found)

    def write(self, own_id: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json_durably(self.path, {**self._all(), self.command: own_id})

    def _all(self) -> dict[str, Any]:
        try:
            value = parse_json(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path}: cannot be read: {error}. Submit the job anew.") from error
        return dict(value)


def _task(own_id: str) -> str:
    # Of no submission: launchers count theirs from "0001".
    return f"single/{own_id}"


def _with_run(plan: Plan, name: str, config: RunConfig) -> Plan:
    own_id = run_id(config)
    own_slug = slug(f"{name}-s{config.train.seed}")
    entry = plan.runs.get(own_id) or PlannedFolder(slug=own_slug, folder=f"{own_slug}-{own_id}", arms=(name,))
    arms = dict(plan.arms)
    for arm in entry.arms:
        arms[arm] = tuple(dict.fromkeys((*arms.get(arm, ()), own_id)))
    return replace(plan, arms=arms, runs={**plan.runs, own_id: entry}, tasks={**plan.tasks, _task(own_id): (own_id,)})


def _write_record(sweep: SweepFolder, plan: Plan, config: RunConfig) -> None:
    """run.yaml with this config; what the first start pinned stays."""
    folder = sweep.run_folder(run_id(config), plan)
    folder.create()
    if folder.run_yaml.exists():
        known = RunRecord.read(folder)
        refuse_other_run(folder, known, run_id(config))
        record = replace(known, config=to_dict(config))
    else:
        record = RunRecord(run_id=run_id(config), slug=plan.runs[run_id(config)].slug, config=to_dict(config))
    record.write(folder)
