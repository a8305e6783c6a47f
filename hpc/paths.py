"""Every name inside a sweep's folder, once, and the two records that tie a sweep together: plan.json and submission.json.

Nothing here decides anything and nothing here talks to a scheduler. Reading is strict: a record of another schema, with a key too
many or too few, is refused by name. One invariant: no absolute path outside `Submission.site`, so that an idle sweep can be moved.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpc.no_sweep import SET_ASIDE, what_it_is
from seresnet.durable import parse_json, write_durably
from seresnet.errors import ConfigError
from seresnet.run_folder import RunFolder

PLAN_SCHEMA = 1
SUBMISSION_SCHEMA = 1

WandbMode = Literal["auto", "online", "offline", "disabled"]


@dataclass(frozen=True)
class SweepFolder:
    """Paths inside one sweep's folder."""

    path: Path

    @property
    def sweep_yaml(self) -> Path:
        return self.path / "sweep.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def submission(self) -> Path:
        return self.path / "submission.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def launch_lock(self) -> Path:
        """Locked while a launcher reads, plans and writes; its content means nothing."""
        return self.path / ".launch.lock"

    @property
    def plan_text(self) -> Path:
        """The plan of the last launch as it was printed."""
        return self.path / "plan.txt"

    @property
    def hold(self) -> Path:
        """Why nothing of this sweep may start: present while it is held. See hpc.hold."""
        return self.path / "hold.json"

    @property
    def cleaned(self) -> Path:
        """When hpc.clean was here and what it kept; what it removed of a run is in that run's own cleaned.json."""
        return self.path / "cleaned.json"

    @property
    def collect_cache(self) -> Path:
        """What collect has read, so that it need not read it again; may be deleted at any time. See hpc.collect_cache."""
        return self.path / ".collect"

    @property
    def trials(self) -> Path:
        """What --smoke and --calibrate leave: scratch runs and what they measured. Never part of the table."""
        return self.path / "trials"

    def begun(self, cluster: str, job_id: str) -> Path:
        """Which run a job without a launcher began with; see hpc.single."""
        # Both come from the environment: no word of it may lead out of the logs. hpc/requeue.sh finds the file by the same names.
        name = f"begun-{cluster}-{job_id}".replace("/", "_").replace("\0", "_")
        return self.logs / f"{name[:200]}.json"

    @property
    def codes(self) -> Path:
        return self.path / "code"

    def code(self, number: str) -> Path:
        """The snapshot that a submission runs in, "0001" and up."""
        return self.codes / number

    def local_lock(self, submission_id: str) -> Path:
        """Locked for as long as the launcher lives that runs this submission on this machine."""
        return self.logs / f"local-{submission_id}.lock"

    def task_log(self, task: str) -> Path:
        """What a local task says outside the logs of its runs; SLURM tasks write beside it under their job's id."""
        return self.logs / f"local-{task.replace('/', '_')}.txt"

    def run_folder(self, run_id: str, plan: "Plan | None" = None) -> RunFolder:
        """The folder of a planned run. Reads plan.json unless it is given: pass it where there are many runs."""
        entry = (plan or Plan.read(self)).runs.get(run_id)
        if entry is None:
            raise ConfigError(f"{self.plan}: run {run_id} is not in this sweep.")
        return RunFolder(path=self.path / entry.folder)


@dataclass(frozen=True, kw_only=True)
class PlannedFolder:
    """One run of a plan: how people call it, where it lies below the sweep, and the arms it belongs to."""

    slug: str
    folder: str
    arms: tuple[str, ...]
    dropped: bool = False  # no longer asked for, and --drop-removed was said: tasks leave it alone


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    """What the mirror is told: project None means the sweep's name."""

    mode: WandbMode = "auto"
    project: str | None = None
    entity: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """plan.json: which runs there are, which arms they belong to, and which task trains them. Orders are the YAML's."""

    sweep: str
    salt: str  # 8 hex digits, drawn at the first launch: tells two sweeps of one name apart in W&B
    arms: Mapping[str, tuple[str, ...]]  # arm -> run ids
    runs: Mapping[str, PlannedFolder]  # run id -> where
    tasks: Mapping[str, tuple[str, ...]]  # "<submission id>/<index>" -> run ids, of every submission so far
    wandb: WandbSettings = dataclasses.field(default_factory=WandbSettings)
    overrides: tuple[str, ...] = ()  # of the last launch: part of the command that goes on
    source: str | None = None  # the sweep's file, relative to the sweep's folder: another file with the same sweep name is refused

    def write(self, folder: SweepFolder) -> None:
        """Replace plan.json durably."""
        _write(folder.plan, {"schema": PLAN_SCHEMA, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, folder: SweepFolder) -> "Plan":
        """Raises ConfigError when there is no plan, or not one of this version."""
        if not folder.plan.exists():
            hint = what_it_is(folder.path) or "Is this the folder of a sweep? Launch it first."
            raise ConfigError(f"{folder.plan}: there is none. {hint}")
        value = _read(folder.plan, PLAN_SCHEMA, "Cancel what is queued, move it away and launch again: run folders keep what they have.")
        try:
            plan = cls(
                **{
                    **value,
                    "arms": {arm: tuple(ids) for arm, ids in value["arms"].items()},
                    "runs": {run_id: _planned_folder(entry) for run_id, entry in value["runs"].items()},
                    "tasks": {task: tuple(ids) for task, ids in value["tasks"].items()},
                    "wandb": WandbSettings(**value["wandb"]),
                    "overrides": tuple(value.get("overrides", ())),
                }
            )
            _check(plan)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise _damaged(folder.plan, error) from error
        return plan

    @classmethod
    def read_or_none(cls, folder: SweepFolder) -> "Plan | None":
        """None before the first launch."""
        return cls.read(folder) if folder.plan.exists() else None

    def find_all(self, name: str) -> tuple[str, ...]:
        """The runs of an arm by its name, else the one run that `find` finds; raises ConfigError."""
        if name in self.arms:
            return self.arms[name]
        try:
            return (self.find(name),)
        except ConfigError as error:
            raise ConfigError(f"{error} Arms: {', '.join(self.arms)}.") from error

    def find(self, name: str) -> str:
        """The run id that a user means by a run id, its beginning, a slug or a folder name; raises ConfigError."""
        found = [run_id for run_id, entry in self.runs.items() if name in (run_id, entry.slug, entry.folder)]
        # After an edit a run that is no longer asked for may have the slug of one that is.
        found = [run_id for run_id in found if self.runs[run_id].arms] or found
        found = found or [run_id for run_id in self.runs if len(name) >= 4 and run_id.startswith(name)]
        if len(found) == 1:
            return found[0]
        listed = found or list(self.runs)
        known = ", ".join(f"{self.runs[run_id].slug} ({run_id})" for run_id in listed[:20])
        problem = "is the name of several runs: give the id" if found else "is not a run of this sweep"
        raise ConfigError(f"{name} {problem}. Runs: {known}{', ...' if len(listed) > 20 else ''}.")


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One array handed to SLURM, or one local launch. Written as `intent` before sbatch is called."""

    id: str  # "0001" and up
    created: float  # unix time
    code: str  # number of the code snapshot
    mode: Literal["slurm", "local"]
    tasks: tuple[str, ...]
    job_id: str | None = None  # of the whole array; None before sbatch has answered, and in local mode
    state: Literal["intent", "submitted", "done"] = "intent"
    cluster: str | None = None
    site: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the site as it was resolved
    at_a_time: int = 1  # runs of a pack that train side by side; 1 = one after another
    nodes: int = 1  # of each task
    gpus: int = 0  # of each task, on each of its nodes


@dataclass(frozen=True, kw_only=True)
class Submissions:
    """submission.json: every submission of a sweep, oldest first. Read and replaced only under `launch_lock`."""

    submissions: tuple[Submission, ...] = ()
    planned: tuple[str, ...] = ()  # ids in plan.json's tasks, which outlives a submission.json that was moved away; not written

    def write(self, folder: SweepFolder) -> None:
        """Replace submission.json durably."""
        entries = [dataclasses.asdict(entry) for entry in self.submissions]
        _write(folder.submission, {"schema": SUBMISSION_SCHEMA, "submissions": entries})

    @classmethod
    def read(cls, folder: SweepFolder) -> "Submissions":
        """Without entries before the first submission; raises ConfigError for a record that is not of this version."""
        plan = Plan.read_or_none(folder)
        planned = tuple(dict.fromkeys(filter(None, map(submission_id, plan.tasks)))) if plan else ()
        if not folder.submission.exists():
            return cls(planned=planned)
        value = _read(folder.submission, SUBMISSION_SCHEMA, "Move it away: queued jobs are then found by their names.")
        try:
            entries = tuple(_submission(entry) for entry in value["submissions"])
        except (TypeError, KeyError, ValueError) as error:
            raise _damaged(folder.submission, error) from error
        return cls(submissions=entries, planned=planned)

    def get(self, submission_id: str) -> Submission | None:
        """The submission of this id, e.g. of the part of a task's name before the slash."""
        return next((entry for entry in self.submissions if entry.id == submission_id), None)

    def with_entry(self, entry: Submission) -> "Submissions":
        """A copy in which entry is new or replaces the one of its id."""
        if self.get(entry.id) is None:
            return dataclasses.replace(self, submissions=(*self.submissions, entry))
        return dataclasses.replace(self, submissions=tuple(entry if known.id == entry.id else known for known in self.submissions))

    def next_id(self) -> str:
        """The id of the next submission; ids are never used twice, or queued jobs would train other runs."""
        return next_number([*(entry.id for entry in self.submissions), *self.planned])


def sweep_in(runs_dir: Path, name: str) -> SweepFolder:
    """The folder of the sweep of this name: below runs_dir, or runs_dir itself where the sweep was moved to another name."""
    own = SweepFolder(runs_dir)
    if own.plan.exists() and Plan.read(own).sweep == name:
        return own
    return SweepFolder(runs_dir / name)


def set_aside_folders(folder: RunFolder) -> list[Path]:
    """Earlier trainings of a run that --rerun has set aside, oldest first; they lie beside its folder and belong to no table."""
    prefix = f"{folder.path.name}{SET_ASIDE}"
    numbered = [(path.name.removeprefix(prefix), path) for path in folder.path.parent.glob("*") if path.name.startswith(prefix)]
    return [path for number, path in sorted(numbered) if _is_number(number)]


def next_set_aside(folder: RunFolder) -> Path:
    """Where the next one goes: "se-s1-0123456789ab.set-aside-0001"."""
    prefix = f"{folder.path.name}{SET_ASIDE}"
    number = next_number([path.name.removeprefix(prefix) for path in set_aside_folders(folder)])
    return folder.path.with_name(f"{prefix}{number}")


def task_name(submission_id: str, index: int) -> str:
    """The name of a task in plan.json, and all that a worker is told: "0001/3"."""
    return f"{submission_id}/{index}"


def submission_id(task: str) -> str | None:
    """The submission that a task's name begins with; None for a task of no submission (hpc.single)."""
    prefix = task.partition("/")[0]
    return prefix if _is_number(prefix) else None


def next_number(names: Sequence[str]) -> str:
    """The four-digit number after the highest of names; others than numbers are ignored."""
    return f"{max((int(name) for name in names if _is_number(name)), default=0) + 1:04d}"


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _is_name(text: str) -> bool:
    """One part of a path that leads nowhere else, and that a terminal shows as it is."""
    return text not in ("", ".", "..") and "/" not in text and text.isprintable()


def _submission(entry: Mapping[str, Any]) -> Submission:
    submission = Submission(**{**entry, "tasks": tuple(entry["tasks"])})
    if not isinstance(submission.id, str) or not _is_number(submission.id):
        raise ValueError(f"id {submission.id!r} is not a number such as 0001")
    if not isinstance(submission.code, str) or not _is_name(submission.code):
        raise ValueError(f"code {submission.code!r} is not the number of a snapshot such as 0001")
    return submission


def _check(plan: Plan) -> None:
    """Raise ValueError for a record whose parts do not fit together; it was edited by hand, or torn."""
    texts = {"sweep": plan.sweep, "salt": plan.salt, "source": plan.source or ""}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{key} is {value!r}")
    if not _is_name(plan.sweep):  # folders are named after it
        raise ValueError(f"sweep {plan.sweep!r} is not a name")
    if not all(isinstance(text, str) for text in plan.overrides):
        raise ValueError(f"overrides are {plan.overrides!r}")
    for run_id, entry in plan.runs.items():
        if not isinstance(entry.folder, str) or not _is_name(entry.folder) or entry.folder.startswith("."):
            raise ValueError(f"run {run_id}: folder {entry.folder!r} is not the name of a folder beside this file")
        if not isinstance(entry.slug, str) or not _is_name(entry.slug):
            raise ValueError(f"run {run_id}: slug {entry.slug!r} is not a name")
        if unknown := [arm for arm in entry.arms if arm not in plan.arms]:
            raise ValueError(f"run {run_id}: is in arm {unknown[0]!r}, which is not in it")
    if steering := [arm for arm in plan.arms if not isinstance(arm, str) or not arm.isprintable()]:
        raise ValueError(f"arm {steering[0]!r} is not a name")
    for name, run_ids in (*plan.arms.items(), *plan.tasks.items()):
        if unknown := [run_id for run_id in run_ids if run_id not in plan.runs]:
            raise ValueError(f"{name} names run {unknown[0]!r}, which is not in it")


def _planned_folder(entry: Mapping[str, Any]) -> PlannedFolder:
    return PlannedFolder(**{**entry, "arms": tuple(entry["arms"])})


def _write(path: Path, value: Any) -> None:
    # Not write_json_durably: it sorts keys, and the order of arms and tasks is the user's.
    write_durably(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _read(path: Path, schema: int, hint: str) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}. {hint}") from error
    found = value.get("schema") if isinstance(value, dict) else type(value).__name__
    if found != schema:
        raise ConfigError(f"{path}: schema is {found!r}, this version reads {schema}. Use the code that wrote it.")
    del value["schema"]
    assert isinstance(value, dict)
    return value


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path}: not a record of this version: {error}. Use the code that wrote it.")
