"""What must not train although somebody may still have it: a held sweep, runs that were cancelled, and three runs that failed alike.

Small records in the sweep's folder, written under one lock by launchers and tasks, read by tasks, launch and status. What Slurm has to
be told besides is hpc.slurm_control's and hpc.control's. One invariant: a record that cannot be read holds nothing and cancels nothing.
"""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hpc import locks, slurm_control
from hpc.paths import Plan, Submissions, SweepFolder
from seresnet.durable import parse_json, write_json_durably
from seresnet.errors import ToolkitError, printable
from seresnet.exits import after_ending

#: So many runs that fail alike before their first epoch hold the rest.
ALIKE = 3
_LOCK_WAIT_S = 10.0

By = Literal["user", "three failures alike"]


# --- the hold ---


def why_held(sweep: SweepFolder) -> str | None:
    """Why nothing of this sweep may start, in one line; None: it may. Costs one look at a file that is rarely there."""
    record = _read(sweep.hold)
    if not record:
        return None
    try:
        since = time.strftime(" since %Y-%m-%d %H:%M", time.localtime(float(record["since"])))
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        since = ""  # written by hand, perhaps: what can be read of it says that it is held
    text = printable(f"held{since} by {record.get('by', 'somebody')}: {record.get('reason', 'no reason is written')}")
    return " ".join(text.split())


def hold(sweep: SweepFolder, by: By, reason: str) -> bool:
    """Write down that nothing may start; False if it was held before, whose record stays."""
    with _writing(sweep):
        return _hold(sweep, by, reason)


def _hold(sweep: SweepFolder, by: By, reason: str) -> bool:
    if _read(sweep.hold):
        return False
    write_json_durably(sweep.hold, {"since": round(time.time(), 3), "by": by, "reason": reason})
    return True


def release(sweep: SweepFolder) -> str | None:
    """Forget the hold and the failures that led to it; what it was, None if there was none."""
    with _writing(sweep):
        was = why_held(sweep)
        for path in (sweep.hold, _failures(sweep)):
            path.unlink(missing_ok=True)
        return was


# --- three failures alike ---


def note_failure(sweep: SweepFolder, plan: Plan, run_id: str, ending: str, reason: str | None, epochs_done: int) -> str | None:
    """Count a run that failed before its first epoch; hold the sweep when it is the third that failed alike, and return what to log.

    Alike: same ending and same reason, but for numbers, paths and ids. The same run counts once. What is no fault of the run
    (preemptions, time limits, lost nodes, scancel) never counts. Raises nothing: a full disk must not fail a run a second time.
    """
    if epochs_done > 0 or after_ending(ending) != "failed":
        return None
    try:
        with _writing(sweep):
            names = _count_failure(sweep, plan, run_id, f"{ending}: {normalised(reason or '')}")
            text = f"{len(names)} runs failed alike before their first epoch ({ending}: {(reason or 'no reason').splitlines()[0]}): "
            text += ", ".join(names)
            if len(names) < ALIKE or not _hold(sweep, "three failures alike", text):
                return None
        problems = _hold_queued(sweep)
    except (OSError, ToolkitError) as error:
        return f"could not count a failure: {error}"
    return "; ".join([f"{text}. The rest is held: correct that, then --release", *problems])


def _count_failure(sweep: SweepFolder, plan: Plan, run_id: str, likeness: str) -> list[str]:
    """The slugs of the runs that failed so until now."""
    record = _read(_failures(sweep))
    known = record.get(likeness)
    ids = list(dict.fromkeys([*map(str, known if isinstance(known, list) else ()), run_id]))
    write_json_durably(_failures(sweep), {**record, likeness: ids})
    return [plan.runs[name].slug if name in plan.runs else name for name in ids]


def _hold_queued(sweep: SweepFolder) -> list[str]:
    """Hold the arrays at Slurm, too; a node without scontrol cannot, and then each task finds the record at its start."""
    entries = [entry for entry in Submissions.read(sweep).submissions if entry.mode == "slurm" and entry.state != "done"]
    return [refusal for entry in entries if entry.job_id for refusal in slurm_control.hold(entry.job_id)]


def normalised(reason: str) -> str:
    """A reason without what differs between two runs that fail alike: paths, ids, numbers."""
    text = re.sub(r"(?:~|\.{0,2})/[^\s:;,'\")]+", "PATH", reason.strip())
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{6,}\b", "ID", text)
    text = re.sub(r"\b(run|seed|arm|task|job|rank|epoch|step)[ =:]+[^\s:;,]+", r"\1 ID", text)
    return re.sub(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", "N", text)


def _failures(sweep: SweepFolder) -> Path:
    return sweep.path / "failures.json"


# --- cancelled runs ---


def cancelled(sweep: SweepFolder) -> dict[str, frozenset[str]]:
    """Task -> the runs in it that a user has cancelled: the task leaves them alone.

    Bound to tasks and not to runs, so that a later task (--retry) trains them again without anything to undo.
    """
    return {str(task): frozenset(map(str, ids)) for task, ids in _read(_cancelled(sweep)).items() if isinstance(ids, list)}


def cancelled_runs(sweep: SweepFolder, plan: Plan) -> frozenset[str]:
    """The runs whose newest task leaves them alone because they were cancelled."""
    record = cancelled(sweep)
    newest = {run_id: task for task, run_ids in plan.tasks.items() for run_id in run_ids} if record else {}
    return frozenset(run_id for run_id, task in newest.items() if run_id in record.get(task, ()))


def cancel(sweep: SweepFolder, chosen: Mapping[str, Sequence[str]]) -> None:
    """Write down runs that their tasks shall leave alone; chosen: task -> run ids. Raises OSError."""
    with _writing(sweep):
        known = cancelled(sweep)
        merged = {task: sorted({*known.get(task, ()), *chosen.get(task, ())}) for task in (*known, *chosen)}
        write_json_durably(_cancelled(sweep), merged)


def _cancelled(sweep: SweepFolder) -> Path:
    return sweep.path / "cancelled.json"


# --- files ---


@contextlib.contextmanager
def _writing(sweep: SweepFolder) -> Iterator[None]:
    # Whoever has it longer than that is stuck, and a hold that comes late is worse than a failure that is counted twice.
    with locks.holding(sweep.path / ".hold.lock", wait_s=_LOCK_WAIT_S):
        yield


def _read(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
