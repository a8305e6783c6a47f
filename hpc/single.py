"""One run as a sweep of one, for `python -m hpc.supervisor RUN.yaml` and sbatch/train.sh: the same folders, resume and requeue.

The sweep is runs/<name of the file>; started again with the same config it goes on where it was, with another config it adds a run.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

from hpc import locks
from hpc.paths import Plan, PlannedFolder, SweepFolder
from seresnet.config import RunConfig, run_id, slug, to_dict
from seresnet.config_file import read_run_config
from seresnet.errors import SubmissionError
from seresnet.run_folder import RunRecord


def sweep_of_one(path: Path, overrides: Sequence[str], runs_dir: Path = Path("runs")) -> tuple[SweepFolder, str]:
    """Write the run's folder and its place in the plan; returns the sweep and the task's name. Raises ConfigError."""
    config = read_run_config(path, overrides).config
    name = slug(path.stem)
    sweep = SweepFolder(runs_dir / name)
    with locks.holding(sweep.launch_lock, wait_s=60) as alone:
        if not alone:
            raise SubmissionError(f"{sweep.path}: a launcher has held {sweep.launch_lock.name} for a minute. Try again when it is done.")
        plan = Plan.read_or_none(sweep) or Plan(sweep=name, salt=token_hex(4), arms={}, runs={}, tasks={})
        plan = _with_run(plan, name, config)
        _write_record(sweep, plan, config)
        plan.write(sweep)
    return sweep, _task(run_id(config))


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
        record = replace(RunRecord.read(folder), config=to_dict(config))
    else:
        record = RunRecord(run_id=run_id(config), slug=plan.runs[run_id(config)].slug, config=to_dict(config))
    record.write(folder)
