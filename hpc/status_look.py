"""One look at a sweep for `hpc.status`: run files first, then one question to the scheduler, and what follows from both.

Only facts; how they are shown is hpc.status_view's and hpc.status_json's business. One invariant: what cannot be read becomes a note
or a failed run, and never an exception, except where there is no plan to look at.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hpc import hold, low_use, mirror_state, purge, queues
from hpc.canceller import may_be_cancelled, refine, who_cancelled
from hpc.forecast import likely_done
from hpc.mirror_state import MirrorState, MirrorView
from hpc.no_sweep import foreign_runs
from hpc.paths import Plan, Submission, Submissions, SweepFolder, submission_id
from hpc.progress_view import RunProgress, progress_of
from hpc.spent import by_job_id
from hpc.states import Queue, RunState, read_facts, run_states
from seresnet import claims
from seresnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Look:
    """A sweep at one moment. Only runs that belong to an arm."""

    sweep: SweepFolder
    plan: Plan
    submissions: tuple[Submission, ...]
    rows: tuple[RunProgress, ...]
    queue: Queue
    time: float
    held: str | None = None  # why nothing may start
    low_use: tuple[str, ...] = ()  # one line a task whose GPUs idle
    purge: tuple[str, ...] = ()  # what the site will remove soon, because nobody opens it
    notes: tuple[str, ...] = ()
    wandb: Mapping[str, MirrorView] = field(default_factory=dict)  # how runs stand with W&B, by run id, where anything was published
    done_time: float | None = None  # when what somebody has is likely done

    def submission(self, row: RunProgress) -> Submission | None:
        """The submission of the newest task that holds a run."""
        wanted = submission_id(row.run.task or "")
        return next((entry for entry in self.submissions if entry.id == wanted), None)


@dataclass
class Memory:
    """What a watch needs to know only once, or not at every look."""

    queue: Queue | None = None
    asked: float = float("-inf")  # by the monotonic clock
    cancellers: dict[str, int] = field(default_factory=dict)
    sought: set[str] = field(default_factory=set)  # jobs whose canceller was asked for
    took_s: float = 0.0  # the last look
    trend_epochs: int = 0  # how many epochs' accuracies rows carry
    purge: tuple[str, ...] = ()
    purge_looked: float = float("-inf")  # by the monotonic clock


def take(sweep: SweepFolder, memory: Memory | None = None, ask_every_s: float = 0.0) -> Look:
    """Look now. The scheduler is asked again only ask_every_s after the last time. Raises ConfigError where plan.json cannot be read."""
    memory = memory or Memory()
    plan = Plan.read(sweep)
    submissions, notes = _submissions(sweep)
    facts = read_facts(sweep, plan)
    if memory.queue is None or time.monotonic() - memory.asked >= ask_every_s:
        done = {run_id for run_id, known in facts.items() if known.is_finished}
        memory.queue = queues.look(sweep, plan, submissions, done)
        memory.asked = time.monotonic()
    queue = memory.queue
    states = [state for state in run_states(sweep, plan, queue, facts=facts) if state.arms]
    states = _with_cancellers(states, memory)
    by_job = by_job_id(submissions)
    rows = tuple(progress_of(state, by_job, memory.trend_epochs) for state in states)
    starts = {task: job.start for task, job in queue.jobs.items() if job.start is not None}
    pending = {task: start for task, start in starts.items() if queue.tasks.get(task) == "pending"}
    started = {task: start for task, start in starts.items() if task not in pending}
    if queue.problem:
        notes.append(f"{queue.problem}; runs that it may have are shown as queued")
    notes += _never_started(sweep, states, submissions, queue)
    notes += [f"{name}: {what}" for name, what in foreign_runs(sweep.path, plan)]
    if sweep.cleaned.exists():
        notes.append("hpc.clean was here: checkpoints are gone on purpose, `python -m seresnet.checkpoint verify` says which")
    now = time.time()
    return Look(
        sweep=sweep,
        plan=plan,
        submissions=submissions,
        rows=rows,
        queue=queue,
        time=now,
        held=hold.why_held(sweep),
        low_use=tuple(low_use.warnings(states, submissions, started, now)),
        purge=_purge(sweep, states, submissions, memory),
        notes=tuple(notes),
        wandb=_wandb(rows, now),
        done_time=likely_done(rows, _at_a_time(plan, submissions), pending, now),
    )


def _purge(
    sweep: SweepFolder, states: Sequence[RunState], submissions: Sequence[Submission], memory: Memory
) -> tuple[str, ...]:  # fmt: skip
    """What the site will remove soon; looked for once an hour."""
    if time.monotonic() - memory.purge_looked >= purge.LOOK_EVERY_S:
        memory.purge = tuple(purge.warnings(sweep, states, submissions, time.time()))
        memory.purge_looked = time.monotonic()
    return memory.purge


def _wandb(rows: Sequence[RunProgress], now: float) -> dict[str, MirrorView]:
    here = claims.this_process({})
    found = {row.run.run_id: (MirrorState.read(row.run.folder), row) for row in rows}
    return {run_id: mirror_state.view(state, row.epoch, row.epoch_s, here, now) for run_id, (state, row) in found.items() if state}


def _never_started(sweep: SweepFolder, states: Sequence[RunState], submissions: Sequence[Submission], queue: Queue) -> list[str]:
    """Why runs are new although they were sent: the smoke test failed, or their task ended before it could claim them."""
    if any(state.attempts for state in states):
        return []
    if sweep.trials.is_dir():
        from hpc import trials

        if failed := trials.failures(sweep):
            return [f"the last smoke test failed: {line}" for line in failed]
    sent = {task: entry.job_id for entry in submissions if entry.mode == "slurm" and entry.job_id for task in entry.tasks}
    gone = [state.task for state in states if state.state == "new" and state.task in sent and state.task in queue.asked]
    logs = [sweep.logs / f"{sent[task]}_{task.partition('/')[2]}_0_log.out" for task in dict.fromkeys(filter(None, gone))]
    written = [path for path in logs if path.exists()]
    return [f"{len(logs)} tasks ended before they began a run; the first says why: {written[0]}"] if written else []


def _submissions(sweep: SweepFolder) -> tuple[tuple[Submission, ...], list[str]]:
    try:
        return Submissions.read(sweep).submissions, []
    except ConfigError as error:
        return (), [str(error)]  # jobs are then found by their names


def _at_a_time(plan: Plan, submissions: tuple[Submission, ...]) -> Mapping[str, int]:
    entries = {entry.id: entry.at_a_time for entry in submissions}
    return {task: max(1, entries.get(submission_id(task) or "", 1)) for task in plan.tasks}


def _with_cancellers(states: list[RunState], memory: Memory) -> list[RunState]:
    """Who cancelled, where accounting knows: the supervisor only saw that somebody did."""
    jobs = {state.job for state in states if state.job and may_be_cancelled(state.ending, state.reason)}
    if new := jobs - memory.sought:
        memory.sought |= new
        memory.cancellers |= who_cancelled(sorted(new))
    return [_with_canceller(state, memory.cancellers) for state in states]


def _with_canceller(state: RunState, cancellers: Mapping[str, int]) -> RunState:
    if state.state not in ("cancelled", "stopped") or state.ending is None:
        return state
    ending, reason = refine(state.ending, state.reason, state.job, cancellers)
    if ending == "cancelled_by_site" and "GPU use" not in (reason or "") and (use := low_use.use_text(state)):
        reason = f"{reason}; {use}"
    return replace(state, ending=ending, reason=reason)
