"""What has become of each run of a sweep: read from the run folders first, then from one look at whoever runs its tasks.

Shared by launch (what is missing?) and status (what is going on?). Deciding is a pure function of the facts of one run; nothing is
written here. One invariant: a run is never called missing while a scheduler or a launcher may still have it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hpc.paths import Plan, SweepFolder
from seresnet import claims
from seresnet.attempts import Claim, Owner
from seresnet.errors import ConfigError
from seresnet.exits import after_ending
from seresnet.run_folder import RunFolder, is_finished

State = Literal["finished", "running", "queued", "waiting", "preempted", "failed", "cancelled", "stopped", "lost", "extend", "new"]

#: States that a plain relaunch submits; `failed` needs --retry.
MISSING: tuple[State, ...] = ("new", "lost", "stopped", "cancelled", "extend")
#: States in which somebody has the run.
OWNED: tuple[State, ...] = ("running", "queued", "waiting", "preempted")


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What schedulers and local launchers say of the tasks of a sweep."""

    tasks: Mapping[str, Literal["pending", "running"]] = field(default_factory=dict)  # those that are still listed
    asked: frozenset[str] = frozenset()  # tasks that somebody was asked about and answered
    problem: str | None = None  # why nobody answered about the others


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One run, its state in one word, and what is known about its last attempt."""

    run_id: str
    slug: str
    folder: RunFolder
    arms: tuple[str, ...]
    state: State
    ending: str | None = None  # of the last attempt, design.md's words; "unreadable" where result.json or run.yaml is damaged
    reason: str | None = None
    attempts: int = 0
    node: str | None = None
    task: str | None = None  # the newest task that holds it


def run_states(sweep: SweepFolder, plan: Plan, queue: Queue, epochs: Mapping[str, int] | None = None) -> tuple[RunState, ...]:
    """Every run of the plan, in its order. epochs: run id -> epochs asked for, by default run.yaml's."""
    here = claims.this_process()
    newest_task = {run_id: task for task, run_ids in plan.tasks.items() for run_id in run_ids}
    wanted = epochs or {}
    return tuple(run_state(sweep, plan, run_id, newest_task.get(run_id), queue, here, wanted.get(run_id)) for run_id in plan.runs)


def run_state(
    sweep: SweepFolder, plan: Plan, run_id: str, task: str | None, queue: Queue, here: Owner, epochs: int | None = None
) -> RunState:
    """The facts of one run and what they mean."""
    entry, folder = plan.runs[run_id], sweep.run_folder(run_id, plan)
    claim = claims.newest_claim(folder)
    owner = claim.owner if claim else None
    end = claims.read_end(folder, claim.generation) if claim else None
    is_done, fault = _look_at_result(folder, epochs)
    state = decide(
        has_result=is_done,
        attempts=claim.generation if claim else 0,
        has_short_result=not is_done and folder.result.exists(),
        is_unreadable=fault is not None,
        ending=end.ending if end else None,
        is_beating=claim is not None and end is None and _is_beating(folder, claim, here),
        listed=_listed(task, queue),
    )
    ending, reason = (end.ending, end.reason) if end else (None, None)
    if fault is not None and state == "failed":
        ending, reason = "unreadable", fault
    return RunState(
        run_id=run_id,
        slug=entry.slug,
        folder=folder,
        arms=entry.arms,
        state=state,
        ending=ending,
        reason=reason,
        attempts=claim.generation if claim else 0,
        node=owner.host if owner else None,
        task=task,
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


def _look_at_result(folder: RunFolder, epochs: int | None) -> tuple[bool, str | None]:
    """Whether the run is finished, and why nobody can tell."""
    try:
        return is_finished(folder, epochs), None
    except ConfigError as error:
        return False, str(error)


def _listed(task: str | None, queue: Queue) -> Literal["pending", "running"] | None:
    """Where nobody answered, a task counts as waiting: calling it lost could train a run twice."""
    if task is None:
        return None
    unknown = task not in queue.asked and queue.problem is not None
    return queue.tasks.get(task, "pending" if unknown else None)


def _is_beating(folder: RunFolder, claim: Claim, here: Owner) -> bool:
    """Whether the claim's owner seems to live. On this machine its process tells; elsewhere only its beat can."""
    owner = claim.owner
    if owner is not None and _place(owner) == _place(here) and None not in _place(here):
        return not claims.is_dead(owner.pid, owner.process_started)
    return claims.is_alive(folder, claim.generation)


def _place(owner: Owner) -> tuple[str, str | None, str | None]:
    return owner.host, owner.boot_id, owner.pid_namespace
