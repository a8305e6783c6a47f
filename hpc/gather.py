"""What sweep folders say: one row a run, also for runs that failed, are unfinished or were never started.

Reads files and nothing else: no scheduler, no network, no torch. A torn or foreign file is named and skipped, never guessed. One
invariant: the same files give the same rows in the same order, whatever order the file system lists them in.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.paths import Plan, SweepFolder
from seresnet import attempts, journal
from seresnet.errors import ConfigError, ToolkitError
from seresnet.exits import After, after_ending
from seresnet.journal import EpochRecord
from seresnet.record_types import conforms
from seresnet.run_folder import RunFolder, RunRecord, TrainResult, is_finished

#: The state that a run without its result is in, by what the ending of its newest attempt means.
_STATE_AFTER: dict[After, str] = {"finished": "unfinished", "interrupted": "unfinished", "cancelled": "cancelled", "failed": "failed"}

#: Every state, in the order in which tables count them.
STATES = ("finished", "failed", "diverged", "cancelled", "unfinished", "unreadable", "missing")

_RUN_FOLDER_NAME = re.compile(r".+-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run as its folder tells it. result is set only in state finished."""

    sweep: str
    arms: tuple[str, ...]
    run_id: str
    slug: str
    state: str  # one of STATES
    ending: str | None = None  # of the newest attempt
    reason: str = ""
    config: dict[str, dict[str, Any]] | None = None  # None where run.yaml cannot be read
    result: TrainResult | None = None
    history: tuple[EpochRecord, ...] = ()

    @property
    def seed(self) -> int | None:
        seed = self.setting("train", "seed")
        return seed if isinstance(seed, int) else None

    def setting(self, section: str, key: str) -> Any:
        """A config value, None where the config is unknown."""
        part = (self.config or {}).get(section)
        return part.get(key) if isinstance(part, dict) else None


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Every run of one or several sweeps; arms in the order of the YAML, as "sweep/arm" where there are several sweeps."""

    arms: tuple[str, ...]
    rows: tuple[RunRow, ...]
    skipped: tuple[str, ...]  # one line for each file that was not used, and why

    @property
    def finished(self) -> tuple[RunRow, ...]:
        return tuple(row for row in self.rows if row.state == "finished")

    def of_arm(self, arm: str) -> tuple[RunRow, ...]:
        return tuple(row for row in self.rows if arm in row.arms)


def gather(folders: Sequence[Path]) -> Gathered:
    """Read every run of these sweeps. Raises ConfigError only for a folder that is no sweep, or two sweeps of one name."""
    sweeps = [SweepFolder(path) for path in folders]
    plans = [Plan.read(sweep) for sweep in sweeps]
    _refuse_equal_names(sweeps, plans)
    arms: list[str] = []
    rows: list[RunRow] = []
    skipped: list[str] = []
    for sweep, plan in zip(sweeps, plans, strict=True):
        prefix = f"{plan.sweep}/" if len(sweeps) > 1 else ""
        notes = _Notes(prefix)
        arms += [prefix + arm for arm in plan.arms]
        rows += [_read_run(sweep, plan, run_id, prefix, notes) for run_id in plan.runs]
        _note_foreign_folders(sweep, plan, notes)
        skipped += notes.lines
    return Gathered(arms=tuple(arms), rows=tuple(rows), skipped=tuple(skipped))


class _Notes:
    """Lines about skipped files; names are relative to the sweep, so that a moved sweep gives the same bytes."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.lines: list[str] = []

    def skip(self, name: str, why: str) -> None:
        self.lines.append(f"{self.prefix}{name}: {why}")


def _refuse_equal_names(sweeps: Sequence[SweepFolder], plans: Sequence[Plan]) -> None:
    seen: dict[str, Path] = {}
    for sweep, plan in zip(sweeps, plans, strict=True):
        if plan.sweep in seen:
            raise ConfigError(f"{sweep.path}: sweep {plan.sweep!r} was given already, as {seen[plan.sweep]}. Give each sweep once.")
        seen[plan.sweep] = sweep.path


def _read_run(sweep: SweepFolder, plan: Plan, run_id: str, prefix: str, notes: _Notes) -> RunRow:
    entry = plan.runs[run_id]
    folder = RunFolder(path=sweep.path / entry.folder)
    record = _read_record(folder, run_id, notes)
    result = _read_result(folder, run_id, notes)
    state, ending, reason = _state(folder, record, result, notes)
    return RunRow(
        sweep=plan.sweep,
        arms=tuple(prefix + arm for arm in entry.arms),
        run_id=run_id,
        slug=entry.slug,
        state=state,
        ending=ending,
        reason=reason,
        config=record.config if record else None,
        result=result if state == "finished" else None,
        history=_read_history(folder, notes),
    )


def _state(folder: RunFolder, record: RunRecord | None, result: TrainResult | None, notes: _Notes) -> tuple[str, str | None, str]:
    """(state, ending of the newest attempt, reason)."""
    if not folder.path.exists():
        return "missing", None, "its folder is gone"
    ending, reason = _newest_ending(folder, notes)
    for path, read in ((folder.result, result), (folder.run_yaml, record)):
        if read is None and path.exists():
            return "unreadable", ending, f"{path.name} is not used, see the skipped files"
    if result is not None:
        return _state_with_result(folder, record, result, ending, reason)
    if ending is None:
        return ("unfinished", None, reason) if reason else ("missing", None, "never started")
    if ending == "finished":
        return "unfinished", ending, "ended as finished, but there is no result.json"
    return state_after(ending), ending, reason or ending


def state_after(ending: str) -> str:
    """The state of a run without its result. Tables tell diverged from failed: it says something about the arm."""
    return "diverged" if ending == "diverged" else _STATE_AFTER[after_ending(ending)]


def _state_with_result(
    folder: RunFolder, record: RunRecord | None, result: TrainResult, ending: str | None, reason: str
) -> tuple[str, str | None, str]:
    if record is None:
        return "unreadable", ending, "there is a result.json but no run.yaml"
    if is_finished(folder, record.epochs):
        return "finished", ending, ""
    # train.epochs was raised after the run had finished
    state = state_after(ending) if ending else "unfinished"
    short = f"has a result of {result.epochs} epochs, run.yaml asks for {record.epochs}"
    return state, ending, short if state == "unfinished" else f"{reason or ending}; {short}"


def _newest_ending(folder: RunFolder, notes: _Notes) -> tuple[str | None, str]:
    """(ending, reason) of the attempt with the highest generation; (None, "") without any attempt."""
    generation = attempts.newest_generation(folder)
    if not generation:
        return None, ""
    path = folder.end(generation)
    if not path.exists():
        return None, f"attempt {generation} has not ended, or nobody could write how"
    end = attempts.read_end(folder, generation) if path.is_file() else None
    if end is None:
        notes.skip(_name(folder, path), "not an end record")
        return None, f"how attempt {generation} ended cannot be read"
    return end.ending, " ".join(str(end.reason or "").split())


def _read_record(folder: RunFolder, run_id: str, notes: _Notes) -> RunRecord | None:
    if not folder.run_yaml.exists():
        return None
    try:
        record = RunRecord.read(folder)
        if record.run_id != run_id:
            raise ValueError(f"belongs to run {record.run_id!r}, plan.json says {run_id!r}")
        train = record.config["train"]
        if not (conforms(train["seed"], int) and conforms(train["epochs"], int)):
            raise ValueError("train.seed or train.epochs is not a number")
        return record
    except (ToolkitError, OSError, ValueError, KeyError, TypeError) as error:
        notes.skip(_name(folder, folder.run_yaml), _short(error, folder))
        return None


def _read_result(folder: RunFolder, run_id: str, notes: _Notes) -> TrainResult | None:
    try:
        result = TrainResult.read(folder)
        if result is not None and result.run_id != run_id:
            raise ValueError(f"belongs to run {result.run_id!r}, plan.json says {run_id!r}")
        return result
    except (ToolkitError, OSError, ValueError) as error:
        notes.skip(_name(folder, folder.result), _short(error, folder))
        return None


def _read_history(folder: RunFolder, notes: _Notes) -> tuple[EpochRecord, ...]:
    paths = sorted(folder.metrics.glob("*.jsonl"))
    try:
        records = journal.read(folder) if paths else []
        for path in paths:
            _note_bad_lines(folder, path, notes)
    except (OSError, ValueError) as error:
        notes.skip(_name(folder, folder.metrics), f"not a journal: {_short(error, folder)}")
        return ()
    return tuple(records)


def _note_bad_lines(folder: RunFolder, path: Path, notes: _Notes) -> None:
    bad = sum(1 for line in path.read_bytes().splitlines() if line.strip() and journal.parse(line) is None)
    if bad:
        notes.skip(_name(folder, path), f"{bad} torn or foreign line{'s' if bad > 1 else ''}")


def _note_foreign_folders(sweep: SweepFolder, plan: Plan, notes: _Notes) -> None:
    planned = {entry.folder for entry in plan.runs.values()}
    for path in sorted(sweep.path.iterdir()):
        if path.name in planned or not path.is_dir():
            continue
        if _RUN_FOLDER_NAME.fullmatch(path.name) or (path / "run.yaml").exists():
            notes.skip(path.name, "a run that is not in plan.json")


def _name(folder: RunFolder, path: Path) -> str:
    return path.relative_to(folder.path.parent).as_posix()


def _short(error: Exception, folder: RunFolder | None = None) -> str:
    """The error as one line without this machine's paths."""
    text = " ".join(str(error).split()) or type(error).__name__
    if folder is not None:
        for path in (folder.run_yaml, folder.result, folder.metrics, folder.path):
            text = text.replace(f"{path}: ", "").replace(str(path), path.name)
    return text if not isinstance(error, KeyError) else f"key {text} is missing"
