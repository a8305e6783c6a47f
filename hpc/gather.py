"""What sweep folders say: one row a run, also for runs that failed, are not finished or were never started.

Reads files and nothing else: no scheduler, no network, no torch; the words for states are hpc.states'. A torn or foreign file is named
and skipped, never guessed. One invariant: the same files give the same rows in the same order, whatever order the file system lists
them in (but for a run that is called running for as long as its beat is young).
"""

import contextlib
import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpc import run_records
from hpc.batch_word import known_end
from hpc.collect_cache import FinishedRun, SweepCache
from hpc.history import History
from hpc.hold import cancelled_runs
from hpc.no_sweep import foreign_runs, forked_from
from hpc.paths import Plan, Submission, Submissions, SweepFolder
from hpc.rows import Gathered as Gathered
from hpc.rows import RunRow as RunRow
from hpc.spans import Span, read_spans
from hpc.spent import by_job_id
from hpc.states import MISSING, State, decide, is_beating
from seresnet import attempts
from seresnet.claims import this_process
from seresnet.errors import ConfigError, ToolkitError
from seresnet.record_types import conforms
from seresnet.run_folder import RunFolder, RunHead, RunRecord, TrainResult

#: The ending of a failed run whose result.json or run.yaml is damaged; hpc.states says the same.
UNREADABLE = "unreadable"


def gather(folders: Sequence[Path], use_cache: bool = True) -> Gathered:
    """Read every run of these sweeps. Raises ConfigError only for a folder that is no sweep, or two sweeps of one name.

    Several sweeps: a run that is finished in more than one of them with the same bits is one row, in the arms of all. use_cache: read and
    write .collect/ in each sweep's folder (hpc.collect_cache), where it can be written; the answer is the same.
    """
    with _collector_off():
        return _gather(folders, use_cache)


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """Python's collector of cycles walks through all objects again and again while 10,000 rows come to be, none of which is garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _gather(folders: Sequence[Path], use_cache: bool) -> Gathered:
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
        by_job = _jobs_of(sweep, notes)
        cache = SweepCache(sweep, by_job, use_cache)
        cancelled = cancelled_runs(sweep, plan)
        rows += [_read_run(sweep, plan, run_id, prefix, cancelled, by_job, cache, notes) for run_id in plan.runs]
        cache.close(plan.runs)
        _note_foreign_folders(sweep, plan, notes)
        skipped += notes.lines
    rows, doubled = _each_once(rows)
    return Gathered(arms=tuple(arms), rows=tuple(rows), skipped=(*skipped, *doubled))


def _each_once(rows: Sequence[RunRow]) -> tuple[list[RunRow], list[str]]:
    """(rows in which equal finished runs of several sweeps are one, in all their arms; a line for each id with different bits)."""
    found: dict[tuple[str, object], RunRow] = {}
    for place, row in enumerate(rows):
        key = (row.run_id, row.result.state_digest if row.result else place)
        known = found.get(key)
        found[key] = row if known is None else _joined(known, row)
    finished: dict[str, list[RunRow]] = {}
    for row in found.values():
        if row.result is not None:
            finished.setdefault(row.run_id, []).append(row)
    lines = [
        f"{same[0].slug} ({run_id}): finished in {', '.join(row.sweep for row in same)} with different bits: each counts in its own sweep"
        for run_id, same in finished.items()
        if len(same) > 1
    ]
    return list(found.values()), lines


def _joined(known: RunRow, row: RunRow) -> RunRow:
    """One run for the means; what it cost, each sweep paid for itself."""
    elsewhere = (*known.spans_elsewhere, *((arm, row.spans) for arm in row.arms))
    return replace(known, arms=(*known.arms, *row.arms), spans_elsewhere=elsewhere)


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


def _jobs_of(sweep: SweepFolder, notes: _Notes) -> Mapping[str, Submission]:
    try:
        return by_job_id(Submissions.read(sweep).submissions)
    except (ToolkitError, OSError) as error:
        notes.skip(sweep.submission.name, " ".join(str(error).replace(f"{sweep.submission}: ", "").split()))
        return {}


def _read_run(
    sweep: SweepFolder,
    plan: Plan,
    run_id: str,
    prefix: str,
    cancelled: Collection[str],
    by_job: Mapping[str, Submission],
    cache: SweepCache,
    notes: _Notes,
) -> RunRow:
    entry = plan.runs[run_id]
    folder = RunFolder(path=sweep.path / entry.folder)
    finished = cache.finished(run_id, folder)
    facts = _of_finished(finished) if finished else _read_facts(folder, run_id, run_id in cancelled, by_job, cache, notes)
    arms = tuple(prefix + arm for arm in entry.arms)
    history = _read_history(folder, run_id, cache, notes)
    return RunRow(sweep=plan.sweep, arms=arms, run_id=run_id, slug=entry.slug, history=history, **facts)


def _of_finished(run: FinishedRun) -> dict[str, Any]:
    """What a row says of a run beside its place in the plan and its history."""
    return {
        "state": "finished",
        "ending": run.ending,
        "reason": "",
        "config": run.config,
        "result": run.result,
        "spans": run.spans,
        "epochs_planned": run.head.epochs,
    }


def _read_facts(
    folder: RunFolder, run_id: str, is_cancelled: bool, by_job: Mapping[str, Submission], cache: SweepCache, notes: _Notes
) -> dict[str, Any]:
    """The same, read afresh; kept if the run is finished and nothing had to be skipped."""
    look, noted = cache.look(folder), len(notes.lines)
    record = _read_record(folder, run_id, notes)
    result = _read_result(folder, run_id, notes)
    state, ending, reason = _state(folder, record, result, is_cancelled, notes)
    spans = _read_spans(folder, record, by_job)
    if state == "finished" and record and result:
        run = FinishedRun(config=record.config, head=RunHead.of(record), result=result, ending=ending, spans=spans)
        if look and len(notes.lines) == noted:
            cache.keep(run_id, folder, look, run)
        return _of_finished(run)
    config, epochs = (record.config, record.epochs) if record else (None, None)
    return {"state": state, "ending": ending, "reason": reason, "config": config, "spans": spans, "epochs_planned": epochs}


def _read_spans(folder: RunFolder, record: RunRecord | None, by_job: Mapping[str, Submission]) -> tuple[Span, ...]:
    try:
        return read_spans(folder, RunHead.of(record) if record else RunHead.read(folder), by_job)
    except (ToolkitError, OSError):
        return ()  # named already, as its run.yaml or its attempts


def _state(
    folder: RunFolder, record: RunRecord | None, result: TrainResult | None, is_cancelled: bool, notes: _Notes
) -> tuple[State, str | None, str]:
    """(state, ending of the newest attempt, reason). No scheduler is asked: what is queued counts as new, stopped or lost."""
    if not folder.path.exists():
        return "new", None, "its folder is gone"
    attempt = _newest_attempt(folder, notes)
    fault = _fault(folder, record, result)
    is_done = fault is None and result is not None and record is not None and result.epochs >= record.epochs
    state = decide(
        has_result=is_done,
        has_short_result=result is not None and not is_done,
        is_unreadable=fault is not None,
        attempts=attempt.generation,
        ending=attempt.ending,
        is_beating=attempt.is_beating,
        listed=None,
    )
    if state in MISSING and is_cancelled:
        return "cancelled", "cancelled", "by the user (--cancel)"
    if state == "failed" and fault is not None:
        return state, UNREADABLE, fault
    short = f"has a result of {result.epochs} epochs, run.yaml asks for {record.epochs}" if result and record and not is_done else ""
    return state, attempt.ending, _reason(state, attempt, short)


def _fault(folder: RunFolder, record: RunRecord | None, result: TrainResult | None) -> str | None:
    """Why nobody can tell whether the run is finished."""
    for path, read in ((folder.result, result), (folder.run_yaml, record)):
        if read is None and path.exists():
            return f"{path.name} is not used, see the skipped files"
    return "there is a result.json but no run.yaml" if result is not None and record is None else None


def _reason(state: State, attempt: "_Attempt", short: str) -> str:
    said = attempt.reason or attempt.ending or ""
    if state in ("finished", "running"):
        return ""
    if state == "extend":
        return short
    if state == "new":
        return "never started"
    if state == "stopped" and attempt.ending == "finished":
        return "ended as finished, but there is no result.json"
    return f"{said}; {short}" if short else said


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """The attempt with the highest generation; generation 0: there is none."""

    generation: int = 0
    ending: str | None = None
    reason: str = ""
    is_beating: bool = False


def _newest_attempt(folder: RunFolder, notes: _Notes) -> _Attempt:
    generation = _newest_generation(folder, notes)
    if not generation:
        return _Attempt()
    path = folder.end(generation)
    end = None
    with contextlib.suppress(OSError):
        end = known_end(folder, attempts.read_claim(folder, generation))
    if end is None and not path.exists():
        reason = f"attempt {generation} has not ended, or nobody could write how"
        return _Attempt(generation=generation, reason=reason, is_beating=_lives(folder, generation, notes))
    if end is None:
        notes.skip(_name(folder, path), "not an end record")
        return _Attempt(generation=generation, reason=f"how attempt {generation} ended cannot be read")
    return _Attempt(generation=generation, ending=end.ending, reason=" ".join(str(end.reason or "").split()))


def _newest_generation(folder: RunFolder, notes: _Notes) -> int:
    try:
        return attempts.newest_generation(folder)
    except OSError as error:
        notes.skip(_name(folder, folder.attempts), f"not a folder of attempts: {error.strerror}")
        return 0


def _lives(folder: RunFolder, generation: int, notes: _Notes) -> bool:
    path = folder.claim(generation)
    if path.is_file():
        return is_beating(folder, attempts.read_claim(folder, generation), this_process())
    notes.skip(_name(folder, path), "not a claim")
    return False


def _read_record(folder: RunFolder, run_id: str, notes: _Notes) -> RunRecord | None:
    if not folder.run_yaml.exists():
        return None
    try:
        record = run_records.read(folder)
        if record.run_id != run_id:
            raise ValueError(f"belongs to run {record.run_id!r}, plan.json says {run_id!r}{forked_from(folder)}")
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


def _read_history(folder: RunFolder, run_id: str, cache: SweepCache, notes: _Notes) -> History:
    try:
        history, bad = cache.history(run_id, folder)
    except (OSError, ValueError) as error:
        notes.skip(_name(folder, folder.metrics), f"not a journal: {_short(error, folder)}")
        return History()
    for name, lines in sorted(bad.items()):
        notes.skip(_name(folder, folder.metrics / name), f"{lines} torn or foreign line{'s' if lines > 1 else ''}")
    return history


def _note_foreign_folders(sweep: SweepFolder, plan: Plan, notes: _Notes) -> None:
    for name, what in foreign_runs(sweep.path, plan):
        notes.skip(name, what)


def _name(folder: RunFolder, path: Path) -> str:
    return path.relative_to(folder.path.parent).as_posix()


def _short(error: Exception, folder: RunFolder | None = None) -> str:
    """The error as one line without this machine's paths."""
    text = " ".join(str(error).split()) or type(error).__name__
    if folder is not None:
        for path in (folder.run_yaml, folder.result, folder.metrics, folder.path):
            text = text.replace(f"{path}: ", "").replace(str(path), path.name)
    return text if not isinstance(error, KeyError) else f"key {text} is missing"
