"""What a stop request meant, and whether the job must be requeued: pure decisions over the scheduler's own words.

Requeueing on every SIGTERM makes jobs impossible to cancel, and exiting with a code requeues nothing (both seen); so the
supervisor looks, and this module reads what it saw. One invariant: without positive evidence of a preemption, a time limit or a
restart minutes ago nothing is requeued. docs/adr/0007 has the reasons.
"""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Slurm sends --signal up to 60 s early, and the kill some seconds late: how near the end a stop still counts as the time limit.
SIGNAL_SLACK_S = 65
#: How long after a restart a stop that nobody explains is taken for one that was sent to an attempt before. slurmctld keeps a signal that
#: did not reach its node and tries again a minute after that try has failed (72 s in all, seen; MessageTimeout is up to 100 s at sites).
LATE_SIGNAL_S = 300
#: Endings that end in a small budget: so many attempts in a row without a new durable step stop the run.
FAILING = frozenset({"killed", "crashed", "out_of_memory", "hung"})
FAILURES_IN_A_ROW = 3
#: interrupted: by a sibling's GPU fault under MPS, or by a signal meant for an earlier attempt. As little the run's fault as an eviction.
EVICTED = frozenset({"preempted", "node_failed", "interrupted"})
EVICTIONS_IN_A_ROW = 10
#: A run may meet the time limit so many times as often as its measured epochs make likely.
TIME_LIMIT_FACTOR = 2
#: After these the same task tries the run again.
RETRIED = FAILING | {"interrupted"}
#: Endings after which a task never tries the run again by itself.
FINAL = frozenset({"finished", "user_error", "diverged"})
#: How an end record says that nobody could be asked; the batch script may know (hpc.batch_word).
UNASKED = "the scheduler could not be asked"
#: How an end record says that it cannot know who cancelled; accounting may (hpc.canceller).
UNKNOWN_CANCELLER = "by the user or the site"


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

    ending: str  # preempted, timed_out, cancelled, node_failed, out_of_memory, interrupted or stopped
    requeue: bool
    reason: str


def judge(
    facts: JobFacts | None,
    restart_count: int,
    now: float,
    signal_delay_s: float,
    lost_node: str | None = None,
    told_at: float | None = None,
) -> Verdict:
    """Decide, after a stop request, from what the scheduler says now.

    restart_count: this attempt's SLURM_RESTART_COUNT. facts None: no scheduler, or it does not answer; the batch script looks then.
    lost_node: another supervisor of the task is gone, which Slurm may not have noticed, or not call a failure. told_at: when the stop
    came; None: now. So that two looks at one stop agree.
    """
    if facts is None:
        return Verdict(ending="stopped", requeue=False, reason=UNASKED)
    if facts.restarts > restart_count:
        return Verdict(ending="preempted", requeue=False, reason=f"Slurm has requeued the job itself (Restarts={facts.restarts})")
    if facts.state.startswith("CANCELLED"):
        # Also inside the grace of a preemption: the user's word is the later one.
        return Verdict(ending="cancelled", requeue=False, reason=f"{UNKNOWN_CANCELLER} (JobState=CANCELLED)")
    if facts.state.startswith("NODE_FAIL"):
        return Verdict(ending="node_failed", requeue=True, reason="JobState=NODE_FAIL: a node of the job is lost")
    if facts.is_preempted:
        return Verdict(ending="preempted", requeue=True, reason=f"JobState={facts.state} with a PreemptTime")
    if facts.reason == "TimeLimit" or facts.state == "TIMEOUT":
        return Verdict(ending="timed_out", requeue=True, reason="Reason=TimeLimit")
    if facts.state.startswith("OUT_OF_MEMORY"):
        return Verdict(ending="out_of_memory", requeue=False, reason="JobState=OUT_OF_MEMORY: Slurm ended the job for its memory")
    if facts.state not in ("RUNNING", "SIGNALING"):  # SIGNALING: it runs, and one of its nodes has not had the signal yet
        return Verdict(ending="cancelled", requeue=False, reason=f"{UNKNOWN_CANCELLER} (JobState={facts.state}, no PreemptTime)")
    if facts.end_time is not None and now >= facts.end_time - (signal_delay_s + SIGNAL_SLACK_S):
        return Verdict(ending="timed_out", requeue=True, reason=f"{facts.end_time - now:.0f} s before the time limit")
    if lost_node:
        return Verdict(ending="node_failed", requeue=True, reason="Slurm says RUNNING")
    since = None if facts.start_time is None else (now if told_at is None else told_at) - facts.start_time
    if restart_count > 0 and since is not None and since <= LATE_SIGNAL_S:
        reason = f"{since:.0f} s after restart {restart_count}: taken for a signal that Slurm sent to an earlier attempt and delivered late"
        return Verdict(ending="interrupted", requeue=True, reason=reason)
    return Verdict(ending="stopped", requeue=False, reason="a signal, and nothing that the scheduler knows of")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How one earlier attempt at a run ended, as far as budgets care."""

    ending: str
    made_progress: bool  # a new durable step


def why_stop(attempts: Sequence[Attempt], time_limits: int | None = None) -> str | None:
    """Why a run must not be tried again, or None. attempts: those of this submission, oldest first.

    time_limits: as budget_of_time_limits says; None = unknown, only those in a row count.
    """
    if attempts and attempts[-1].ending in FINAL:
        return f"ended as {attempts[-1].ending}"
    barren = _without_progress(attempts)
    failures = [attempt.ending for attempt in barren if attempt.ending in FAILING or attempt.ending == "timed_out"]
    evictions = [attempt.ending for attempt in barren if attempt.ending in EVICTED]
    if len(failures) >= FAILURES_IN_A_ROW:
        return f"{len(failures)} attempts in a row without a new checkpoint: {', '.join(failures)}"
    if len(evictions) >= EVICTIONS_IN_A_ROW:
        return f"evicted {len(evictions)} times in a row before a new checkpoint was durable"
    met = sum(attempt.ending == "timed_out" for attempt in attempts)
    if time_limits is not None and met >= time_limits:
        return f"met the time limit {met} times, and its measured epochs allow {time_limits}"
    return None


def budget_of_time_limits(epochs: int, epoch_seconds: Sequence[float], walltime_s: float | None) -> int | None:
    """How often a run may meet the time limit: twice as often as planned from its measured epochs. None: nothing to plan from."""
    if not epoch_seconds or not walltime_s:
        return None
    planned_s = epochs * statistics.median(epoch_seconds)
    return TIME_LIMIT_FACTOR * max(1, math.ceil(planned_s / walltime_s))


def budget_of(ending: str, made_progress: bool) -> str | None:
    """Which budget an ending drew from: failures, time limits or evictions; None = none, also where a new step fills it again."""
    if ending == "timed_out":
        return "time limits"
    if made_progress:
        return None
    return "failures" if ending in FAILING else "evictions" if ending in EVICTED else None


def canceller(sacct_state: str) -> int | None:
    """The uid in sacct's "CANCELLED by 0"; None for any other state."""
    found = re.fullmatch(r"CANCELLED by (\d+)", sacct_state.strip())
    return int(found[1]) if found else None


def _without_progress(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The newest attempts, back to and without the last that made a new step durable."""
    barren: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.made_progress:
            break
        barren.append(attempt)
    return barren[::-1]
