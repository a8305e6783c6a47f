"""What a stop request meant, and whether the job must be requeued: pure decisions over the scheduler's own words.

Requeueing on every SIGTERM makes jobs impossible to cancel, and exiting with a code requeues nothing (both seen); so the
supervisor looks, and this module reads what it saw. One invariant: without positive evidence of a preemption or a time limit
nothing is requeued. docs/adr/0007 has the reasons.
"""

from collections.abc import Sequence
from dataclasses import dataclass

#: Slurm sends --signal up to 60 s early, and the kill some seconds late: how near the end a stop still counts as the time limit.
SIGNAL_SLACK_S = 65
#: Endings that end in a small budget: so many attempts in a row without a new durable step stop the run.
FAILING = frozenset({"killed", "crashed", "out_of_memory", "hung"})
FAILURES_IN_A_ROW = 3
EVICTED = frozenset({"preempted", "node_failed"})
EVICTIONS_IN_A_ROW = 10
#: Endings after which a task never tries the run again by itself.
FINAL = frozenset({"finished", "user_error", "diverged"})


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What `scontrol show job` says of one job or array task; times are unix seconds, None where it says None or Unknown."""

    job_id: str  # "123" or "123_4"
    state: str  # RUNNING, COMPLETING, CANCELLED, ...
    reason: str = "None"
    restarts: int = 0
    start_time: float | None = None
    end_time: float | None = None
    preempt_time: float | None = None

    @property
    def is_preempted(self) -> bool:
        """Whether this attempt, and not one before a requeue, is being preempted."""
        return self.preempt_time is not None and self.preempt_time >= (self.start_time or 0)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why a task was told to stop, and what to do about it."""

    ending: str  # preempted, timed_out, cancelled or stopped
    requeue: bool
    reason: str


def judge(facts: JobFacts | None, restart_count: int, now: float, signal_delay_s: float) -> Verdict:
    """Decide, after a stop request, from what the scheduler says now.

    restart_count: this attempt's SLURM_RESTART_COUNT. facts None: no scheduler, or it does not answer; the batch script looks then.
    """
    if facts is None:
        return Verdict(ending="stopped", requeue=False, reason="the scheduler could not be asked")
    if facts.restarts > restart_count:
        return Verdict(ending="preempted", requeue=False, reason=f"Slurm has requeued the job itself (Restarts={facts.restarts})")
    if facts.state.startswith("CANCELLED"):
        # Also inside the grace of a preemption: the user's word is the later one.
        return Verdict(ending="cancelled", requeue=False, reason="JobState=CANCELLED: never comes back by itself")
    if facts.is_preempted:
        return Verdict(ending="preempted", requeue=True, reason=f"JobState={facts.state} with a PreemptTime")
    if facts.reason == "TimeLimit" or facts.state == "TIMEOUT":
        return Verdict(ending="timed_out", requeue=True, reason="Reason=TimeLimit")
    if facts.state != "RUNNING":
        return Verdict(ending="cancelled", requeue=False, reason=f"JobState={facts.state} without a PreemptTime: scancel")
    if facts.end_time is not None and now >= facts.end_time - (signal_delay_s + SIGNAL_SLACK_S):
        return Verdict(ending="timed_out", requeue=True, reason=f"{facts.end_time - now:.0f} s before the time limit")
    return Verdict(ending="stopped", requeue=False, reason="a signal, and nothing that the scheduler knows of")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How one earlier attempt at a run ended, as far as budgets care."""

    ending: str
    made_progress: bool  # a new durable step


def why_stop(attempts: Sequence[Attempt]) -> str | None:
    """Why a run must not be tried again, or None. attempts: those of this submission, oldest first."""
    if attempts and attempts[-1].ending in FINAL:
        return f"ended as {attempts[-1].ending}"
    barren = _without_progress(attempts)
    failures = [attempt.ending for attempt in barren if attempt.ending in FAILING or attempt.ending == "timed_out"]
    evictions = [attempt.ending for attempt in barren if attempt.ending in EVICTED]
    if len(failures) >= FAILURES_IN_A_ROW:
        return f"{len(failures)} attempts in a row without a new checkpoint: {', '.join(failures)}"
    if len(evictions) >= EVICTIONS_IN_A_ROW:
        return f"evicted {len(evictions)} times in a row before a new checkpoint was durable"
    return None


def _without_progress(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The newest attempts, back to and without the last that made a new step durable."""
    barren: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.made_progress:
            break
        barren.append(attempt)
    return barren[::-1]
