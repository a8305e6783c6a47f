"""What has become of each run of a sweep: read from the run folders first, then from one look at whoever runs its tasks.

Shared by launch (what is missing?), status (what is going on?) and collect (what is in the table?), so that all use one table of
words. Deciding is a pure function of the facts of one run; nothing is written here. One invariant: a run is never called missing
while a scheduler or a launcher may still have it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hpc.batch_word import known_end
from hpc.hold import cancelled_runs
from hpc.paths import Plan, SweepFolder
from seresnet import claims, replay
from seresnet.attempts import Claim, End, Owner
from seresnet.errors import ConfigError, printable
from seresnet.exits import after_ending
from seresnet.run_folder import RunFolder, RunHead, TrainResult

if TYPE_CHECKING:
    from hpc.slurm import ListedJob

State = Literal["finished", "running", "queued", "waiting", "preempted", "failed", "cancelled", "stopped", "lost", "extend", "new"]

#: Every state, in the order in which tables count them, and what it means.
STATES: dict[State, str] = {
    "finished": "its result is there, with as many epochs as are asked for",
    "running": "a process trains it now",
    "waiting": "its task runs, and has another run of its pack in hand or starts right now",
    "preempted": "interrupted, and queued again: it goes on by itself",
    "queued": "in the scheduler's queue",
    "failed": "a person must look; --retry failed sends it again",
    "cancelled": "by its user or the site; --retry cancelled sends it again",
    "stopped": "interrupted, and nobody has it: the next launch sends it",
    "lost": "its process is gone and said nothing: the next launch sends it",
    "extend": "finished, and more epochs are asked for now: the next launch sends it",
    "new": "never started: the next launch sends it",
}
#: States that a plain relaunch submits; `failed` and `cancelled` need --retry.
MISSING: tuple[State, ...] = ("new", "lost", "stopped", "extend")
#: States in which somebody has the run.
OWNED: tuple[State, ...] = ("running", "queued", "waiting", "preempted")


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What schedulers and local launchers say of the tasks of a sweep."""

    tasks: Mapping[str, Literal["pending", "running"]] = field(default_factory=dict)  # those that are still listed
    asked: frozenset[str] = frozenset()  # tasks that somebody was asked about and answered
    problem: str | None = None  # why nobody answered about the others
    jobs: Mapping[str, "ListedJob"] = field(default_factory=dict)  # of the listed tasks that a scheduler has


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the files of one run say; read once, judged as often as the queue is asked."""

    folder: RunFolder
    claim: Claim | None
    end: End | None  # of that claim
    is_beating: bool
    is_finished: bool
    has_short_result: bool
    fault: str | None = None  # why nobody can tell whether it is finished
    note: str | None = None  # what its replays have to say


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run, its state in one word, and what is known about its last attempt."""

    run_id: str
    slug: str
    folder: RunFolder
    arms: tuple[str, ...]
    state: State
    ending: str | None = None  # of the last attempt, in the words of seresnet.exits; "unreadable" where result.json or run.yaml is damaged
    reason: str | None = None
    attempts: int = 0
    node: str | None = None
    task: str | None = None  # the newest task that holds it
    job: str | None = None  # of the last attempt, "123_4" as users know it
    claim: Claim | None = None  # of the last attempt, and how it ended
    end: End | None = None
    note: str | None = None  # of a divergence that is being replayed, or that was the hardware's


def label(state: str, ending: str | None) -> str:
    """The state as tables show it: of a failed run the class belongs to it, of a cancelled one whether it was the site."""
    if state == "cancelled" and ending == "cancelled_by_site":
        return "cancelled by site"
    return f"failed: {ending}" if state == "failed" and ending else state


def run_states(
    sweep: SweepFolder,
    plan: Plan,
    queue: Queue,
    epochs: Mapping[str, int] | None = None,
    facts: Mapping[str, Facts] | None = None,
) -> tuple[RunState, ...]:
    """Every run of the plan, in its order. epochs: run id -> epochs asked for, by default run.yaml's. facts: what was read already.

    A launch must not pass facts that are older than the queue: a run that ended in between would count as missing.
    """
    known = read_facts(sweep, plan, epochs) if facts is None else facts
    newest_task = {run_id: task for task, run_ids in plan.tasks.items() for run_id in run_ids}
    cancelled = cancelled_runs(sweep, plan)
    return tuple(state_of(plan, run_id, known[run_id], newest_task.get(run_id), queue, run_id in cancelled) for run_id in plan.runs)


def read_facts(
    sweep: SweepFolder, plan: Plan, epochs: Mapping[str, int] | None = None, run_ids: Sequence[str] | None = None
) -> dict[str, Facts]:
    """The facts of runs (by default of every run) by their ids. Raises nothing for what their files hold."""
    here, wanted = claims.this_process(), epochs or {}
    chosen = plan.runs if run_ids is None else run_ids
    return {run_id: facts_of(sweep.run_folder(run_id, plan), here, wanted.get(run_id), run_id) for run_id in chosen}


def facts_of(folder: RunFolder, here: Owner, epochs: int | None = None, run_id: str | None = None) -> Facts:
    """Read one run's result, newest claim and how that ended. What cannot be read of one hides nothing of the other.

    run_id: the plan's; a result of another run, such as a fork that was put there, does not finish this one.
    """
    is_done, is_short, unclear = _look_at_result(folder, epochs, run_id)
    claim, end, unknown = _look_at_attempts(folder)
    beats = claim is not None and end is None and unknown is None and is_beating(folder, claim, here)
    return Facts(
        folder=folder,
        claim=claim,
        end=end,
        is_beating=beats,
        is_finished=is_done,
        has_short_result=is_short,
        fault=unclear or unknown,
        note=replay.note(folder) if claim is not None and unknown is None else None,
    )


def state_of(plan: Plan, run_id: str, facts: Facts, task: str | None, queue: Queue, is_cancelled: bool = False) -> RunState:
    """What the facts of one run mean, beside what the queue says of its task. is_cancelled: its task leaves it alone."""
    entry, end = plan.runs[run_id], facts.end
    owner = facts.claim.owner if facts.claim else None
    state = decide(
        has_result=facts.is_finished,
        attempts=facts.claim.generation if facts.claim else 0,
        has_short_result=facts.has_short_result,
        is_unreadable=facts.fault is not None,
        ending=end.ending if end else None,
        is_beating=facts.is_beating,
        listed=_listed(task, queue),
    )
    # What a run's records say goes to terminals and into tables, and a record can hold anything.
    ending, reason = (printable(end.ending), end.reason and printable(end.reason)) if end else (None, None)
    if facts.fault is not None and state == "failed":
        ending, reason = "unreadable", printable(facts.fault)
    if is_cancelled and state in (*MISSING, "queued", "waiting", "preempted"):
        state, ending, reason = "cancelled", "cancelled", "by the user (--cancel)"
    return RunState(
        run_id=run_id,
        slug=entry.slug,
        folder=facts.folder,
        arms=entry.arms,
        state=state,
        ending=ending,
        reason=reason,
        attempts=facts.claim.generation if facts.claim else 0,
        node=" ".join(printable(owner.host).split()) if owner else None,
        task=task,
        job=(owner.array_job_id or owner.raw_job_id) if owner else None,
        claim=facts.claim,
        end=end,
        note=facts.note and printable(facts.note),
    )


def decide(
    *,
    has_result: bool,
    has_short_result: bool = False,
    is_unreadable: bool = False,
    attempts: int,
    ending: str | None,
    is_beating: bool,
    listed: Literal["pending", "running"] | None,
) -> State:
    """One word for the facts of a run. A short result is one with fewer epochs than are asked for.

    Files count before the queue: they say what happened, the queue only what is planned.
    """
    after = after_ending(ending) if ending is not None else None
    if has_result:
        return "finished"
    if is_beating:
        return "running"
    if is_unreadable:
        return "failed"  # also where it is queued: every attempt would refuse the file
    if listed is not None:
        if after == "interrupted":
            return "preempted"
        # Listed as running without a beat: an earlier run of its pack has the task, or it starts right now.
        return "queued" if listed == "pending" else "waiting"
    if after == "cancelled":
        return "cancelled"
    # Before extend: an extension that failed must not be sent again with every launch.
    if after == "failed":
        return "failed"
    if has_short_result:
        return "extend"
    # Also finished without a result: somebody moved it away to have it made again.
    if after is not None:
        return "stopped"
    return "lost" if attempts else "new"


def is_beating(folder: RunFolder, claim: Claim, here: Owner) -> bool:
    """Whether the claim's owner seems to live. On this machine its process tells; elsewhere only its beat can."""
    owner = claim.owner
    if owner is not None and _place(owner) == _place(here) and None not in _place(here):
        return not claims.is_dead(owner.pid, owner.process_started)
    return claims.is_alive(folder, claim.generation)


def _look_at_attempts(folder: RunFolder) -> tuple[Claim | None, End | None, str | None]:
    """(newest claim, how it ended, why nobody can tell)."""
    claim = None
    try:
        claim = claims.newest_claim(folder)
        return claim, known_end(folder, claim) if claim else None, None
    except OSError as error:
        return claim, None, f"{folder.attempts}: cannot be read: {error}"


def _look_at_result(folder: RunFolder, epochs: int | None, run_id: str | None) -> tuple[bool, bool, str | None]:
    """(finished, there is a result that is too short, why nobody can tell)."""
    try:
        result = TrainResult.read(folder, is_whole=False)
        if result is None:
            return False, False, None
        if run_id is not None and result.run_id != run_id:
            what = f", a fork of {result.parent}" if result.parent else ""
            return False, True, f"{folder.result}: is of run {result.run_id}{what}; the plan says {run_id}. Move that folder away."
        is_done = result.epochs >= (RunHead.read(folder).epochs if epochs is None else epochs)
        return is_done, not is_done, None
    except (ConfigError, OSError) as error:
        return False, True, str(error)


def _listed(task: str | None, queue: Queue) -> Literal["pending", "running"] | None:
    """Where nobody answered, a task counts as waiting: calling it lost could train a run twice."""
    if task is None:
        return None
    unknown = task not in queue.asked and queue.problem is not None
    return queue.tasks.get(task, "pending" if unknown else None)


def _place(owner: Owner) -> tuple[str, str | None, str | None]:
    return owner.host, owner.boot_id, owner.pid_namespace
