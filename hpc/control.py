"""Changing what is queued, by `python -m hpc.launch --sweep F` with --alter, --hold, --release, --cancel: nothing is launched.

The recipe alone: hpc.alter, hpc.hold, hpc.gpu_cap and hpc.slurm_control do the work. One invariant: a hold and a cancellation are durable
before Slurm is told, so that tasks keep to them even where Slurm is not reached; of --alter what Slurm took is written down after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hpc import alter, gpu_cap, hold, queues, relaunch, renewal, slurm_control
from hpc.gpu_cap import cap_gpus, parallel_of
from hpc.launch_session import Request, planning
from hpc.paths import Plan, Submissions, SweepFolder, sweep_in
from hpc.plan_view import count, make_console
from hpc.queued_arrays import QueuedArray, queued_arrays
from hpc.site import read_site
from hpc.states import MISSING, Queue, RunState, run_states
from hpc.sweep import read_sweep
from seresnet.errors import ConfigError, SubmissionError

__all__ = ["Changes", "cap_gpus", "change_queued", "parallel_of"]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What the command line asks to be changed."""

    alter: tuple[str, ...] = ()  # words such as site.walltime_min=240
    cancel: tuple[str, ...] = ()  # runs or arms by name, or "all"
    hold: bool = False
    release: bool = False


@dataclass(kw_only=True)
class _Session:
    """One look at the queue, and what is done with it."""

    sweep: SweepFolder
    plan: Plan
    record: Submissions
    queue: Queue
    arrays: tuple[QueuedArray, ...]
    console: Console

    def say(self, *lines: str) -> None:
        for line in lines:
            self.console.print(Text(line), soft_wrap=True)

    def states(self) -> tuple[RunState, ...]:
        return run_states(self.sweep, self.plan, self.queue)


def change_queued(request: Request, changes: Changes, console: Console | None = None) -> int:
    """Do it; 0, or 1 if Slurm refused something or there was nothing to change. Raises ToolkitError: then nothing was changed."""
    console = console or make_console()
    wishes = alter.read_wishes(changes.alter) if changes.alter else {}
    if changes.hold and changes.release:
        raise ConfigError("--hold and --release undo each other. Say one of them.")
    if request.dry_run:
        raise ConfigError("--dry-run shows what a launch would send; changes to the queue have no dry run. Leave it out.")
    sweep = find_sweep(request)
    with planning(sweep):
        session = _look(sweep, console)
        codes = []
        if changes.hold:
            codes.append(_hold(session))
        if changes.cancel:
            codes.append(_cancel(session, changes.cancel))
        if wishes:
            codes.append(_alter(session, wishes))
        if request.max_gpus:
            session.say(*gpu_cap.cap_arrays(session.arrays, request.max_gpus))
        if changes.release:
            codes.append(_release(session, request))
    return max(codes, default=0)


def find_sweep(request: Request) -> SweepFolder:
    """The folder of the sweep that a file describes; raises ConfigError if it has faults, was never launched, or is another."""
    spec = read_sweep(request.sweep_file, request.overrides)
    site = read_site(spec.site.asked, where=spec.site.where, origins=spec.site.origins)
    sweep = sweep_in(request.runs_dir or site.folder("runs_dir") or Path("runs"), spec.name)
    if not sweep.plan.exists():
        raise ConfigError(f"{sweep.path}: this sweep was never launched, so nothing of it is queued. If it lies elsewhere, say --runs-dir.")
    if not request.renamed:
        relaunch.check_source(Plan.read(sweep), relaunch.source_of(request.sweep_file, sweep), sweep, spec.own_text)
    return sweep


def _look(sweep: SweepFolder, console: Console) -> _Session:
    plan, record = Plan.read(sweep), Submissions.read(sweep)
    for orphan in queues.adopt_orphans(plan, record.submissions):
        record = record.with_entry(orphan)
    queue = queues.look(sweep, plan, record.submissions)
    if queue.problem is not None:
        raise SubmissionError(f"{sweep.path}: {queue.problem}, so nothing was changed. Try again when it answers.")
    arrays = queued_arrays(record.submissions, queue.tasks)
    return _Session(sweep=sweep, plan=plan, record=record, queue=queue, arrays=arrays, console=console)


# --- hold and release ---


def _hold(session: _Session) -> int:
    if not hold.hold(session.sweep, "user", "--hold"):
        session.say(f"{session.sweep.path.name} is {hold.why_held(session.sweep)}")
    refusals = [line for array in session.arrays for line in slurm_control.hold(array.job_id)]
    waiting, running = _counts(session.arrays)
    session.say(
        f"held: {count(waiting, 'task')} waiting; {count(running, 'running task')} may end, and what is requeued waits for --release"
    )
    return _refused(session, refusals)


def _release(session: _Session, request: Request) -> int:
    was = hold.release(session.sweep)
    refusals = [line for array in session.arrays for line in slurm_control.release(array.job_id)]
    waiting, running = _counts(session.arrays)
    session.say(f"{'released' if was else 'was not held'}: {count(waiting, 'task')} waiting, {count(running, 'task')} running")
    missing = [state for state in session.states() if state.state in MISSING]
    if missing:
        session.say(f"a launch would send {count(len(missing), 'run')} that nobody has: {request.command()}")
    return _refused(session, refusals)


def _counts(arrays: Sequence[QueuedArray]) -> tuple[int, int]:
    return sum(len(array.pending) for array in arrays), sum(len(array.running) for array in arrays)


# --- alter ---


def _alter(session: _Session, wishes: alter.Wishes) -> int:
    if not session.arrays:
        session.say("nothing of this sweep is queued at SLURM, so nothing was altered. A launch takes site.key=value beside --sweep.")
        return 1
    session.say(*renewal.renew(session.sweep))  # what an earlier --alter left would else miss this one
    refusals: list[str] = []
    for alteration in alter.plan_alterations(session.arrays, wishes):
        outcome = alter.apply(session.sweep, session.plan, session.record, alteration, tuple(wishes))
        session.record = outcome.record
        session.say(*outcome.lines)
        refusals += outcome.refusals
    session.say("later launches take the sweep's own site: change it there, too")
    return _refused(session, refusals)


def _refused(session: _Session, refusals: Sequence[str]) -> int:
    session.say(*(f"refused: {line}" for line in refusals))
    return 1 if refusals else 0


# --- cancel ---


def _cancel(session: _Session, names: Sequence[str]) -> int:
    states = {state.run_id: state for state in session.states()}
    ids = [run_id for name in names for run_id in (session.plan.runs if name == "all" else session.plan.find_all(name))]
    over = {run_id for run_id, state in states.items() if state.state in ("failed", "cancelled") and state.task not in session.queue.tasks}
    over |= {run_id for run_id, state in states.items() if state.state == "finished" or state.task is None}
    chosen = {run_id: states[run_id] for run_id in ids if run_id not in over}
    if not chosen:
        session.say("nothing to cancel: finished, failed or cancelled already, or never sent")
        return 1
    _refuse_shared(session, chosen, states)
    tasks: dict[str, list[str]] = {}
    for run_id, state in chosen.items():
        tasks.setdefault(str(state.task), []).append(run_id)
    hold.cancel(session.sweep, tasks)
    refusals = [line for jobs in _jobs_to_cancel(session, states) for line in slurm_control.cancel(jobs)]
    session.say(f"cancelled {count(len(chosen), 'run')}: {', '.join(state.slug for state in chosen.values())}")
    session.say("a launch leaves them alone until --retry cancelled, or --retry RUN")
    local = {task for entry in session.record.submissions if entry.mode == "local" for task in entry.tasks}
    if any(task in local and task in session.queue.tasks for task in tasks):
        session.say("what trains on this machine goes on until Ctrl-C in its launcher")
    return _refused(session, refusals)


def _refuse_shared(session: _Session, chosen: dict[str, RunState], states: dict[str, RunState]) -> None:
    """A task is killed as a whole: a run that trains beside others goes alone only by ending them, too."""
    faults = []
    for run_id, state in chosen.items():
        if state.state != "running" or session.queue.tasks.get(str(state.task)) != "running":
            continue
        others = [other for other in _unfinished(session, str(state.task), states) if other not in chosen]
        if others:
            names = " ".join(f"--cancel {states[other].slug}" for other in (run_id, *others))
            faults.append(f"--cancel {state.slug}: its task {state.task} holds other unfinished runs, and ends as a whole. Say {names}.")
    if faults:
        raise ConfigError("\n".join(faults))


def _jobs_to_cancel(session: _Session, states: dict[str, RunState]) -> list[str]:
    """Listed tasks in which nothing is left to do, an array at a time; in the others the task itself leaves the runs out."""
    jobs = []
    for array in session.arrays:
        names = array.submission.tasks
        empty = [index for index in (*array.pending, *array.running) if not _unfinished(session, names[index], states)]
        jobs += [slurm_control.tasks_of(array.job_id, empty)] if empty else []
    return jobs


def _unfinished(session: _Session, task: str, states: dict[str, RunState]) -> list[str]:
    cancelled = hold.cancelled(session.sweep).get(task, frozenset())
    return [run_id for run_id in session.plan.tasks.get(task, ()) if run_id not in cancelled and states[run_id].state != "finished"]
