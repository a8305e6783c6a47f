"""One attempt at one run, from its claim to its end record, in steps that never wait: begin, claim, ranks, verdict, end.

Which runs there are, where they train and when they are tried again is pack_runner's business. One invariant: whatever was claimed
here gets an end record here, unless the disk refuses it or this process is killed.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc import batch_word, gpu_use, own_program, requeue, slurm
from hpc.later import Later
from hpc.memory_kills import MemoryKills
from hpc.nodes import SpreadGroup, Team
from hpc.place import check_nodes
from hpc.ranks import Description, RankGroup, describe
from hpc.slots import Slot, own_cpus
from hpc.task import Task
from seresnet import checkpoint_files, claims, journal
from seresnet.durable import Files
from seresnet.errors import ConfigError, OwnedElsewhereError, ToolkitError
from seresnet.exits import Exit
from seresnet.pinning import refuse_other_run
from seresnet.run_folder import CheckpointName, RunFolder, RunRecord, is_finished

log = logging.getLogger("hpc.supervisor")

#: A claim leaves within a second of a stop request; one that hangs in a dead file system is left behind.
LEAVE_CLAIM_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A run that is ours to train."""

    claim: claims.Claim
    ranks: int
    threads: int
    step: int  # durable before this attempt
    program: Sequence[str] | None = None  # somebody's own command in place of the task's


class AttemptRunner:
    """One attempt. Call poll() about ten times a second from the main thread, then finish()."""

    def __init__(self, task: Task, run_id: str, slot: Slot, task_try: int, memory: MemoryKills, team: Team | None = None) -> None:
        """Begin to claim the run; nothing is started yet."""
        self.run_id, self.slot = run_id, slot
        self.folder = task.sweep.run_folder(run_id, task.plan)
        self._task, self._memory, self._team = task, memory, team
        self._started = time.time()
        self._leave, self._fenced = threading.Event(), threading.Event()
        self._leave_by: float | None = None
        self._ready: Ready | None = None
        self._group: RankGroup | SpreadGroup | None = None
        self._heart: claims.Heart | None = None
        self._claiming = Later(lambda: _begin(task, run_id, self.folder, task_try, self._leave), f"claim-{run_id}")

    @property
    def use_file(self) -> Path | None:
        """Where samples of GPU use go while ranks run."""
        return self.folder.gpu_use(self._ready.claim.generation) if self._ready is not None and self._group is not None else None

    def poll(self, stop_reason: str | None) -> "Description | Nothing | None":
        """Look once: None while it goes on, NOTHING if there was nothing to do, else how it ended, to be handed to finish()."""
        if self._ready is None:
            return self._poll_claim(stop_reason)
        if self._group is None:
            return self._start_ranks(stop_reason)
        return self._poll_ranks(stop_reason)

    def finish(self, ended: Description, verdict: requeue.Verdict | None) -> Description:
        """Write down how the attempt ended; verdict: what the scheduler says of a stop. What was never claimed needs no record."""
        self.close()
        if self._ready is None:
            # Without a claim nothing is counted, and what may be tried again would be so for ever.
            return dataclasses.replace(ended, ending="no_claim") if ended.ending == "crashed" else ended
        if ended.ending == "fenced":
            return ended
        if verdict is not None:
            # A run that did not get to start has met no time limit of its own: it draws from no budget.
            ending = ended.ending if self._group is None and verdict.ending == "timed_out" else verdict.ending
            ended = dataclasses.replace(ended, ending=ending, reason=f"{ended.reason}; {verdict.reason}")
        if ended.ending == "cancelled":
            ended = dataclasses.replace(ended, reason=f"{ended.reason}{self._said_of_gpu_use()}")
        with logged_errors("end_not_written"):
            step = durable_step(self.folder, is_program=self._ready.program is not None)
            facts = end_facts(self._task, ended, self._ready.step, step, self._started)
            facts["requeue"] = verdict.requeue if verdict is not None else False
            claims.write_end(self.folder, self._ready.claim.generation, ended.ending, reason=ended.reason, **facts)
        return ended

    def close(self) -> None:
        """Leave no process and no beat behind. May be called twice."""
        self._leave.set()
        if self._group is not None:
            self._group.close()
        if self._heart is not None:
            self._heart.stop()

    # --- steps ---

    def _poll_claim(self, stop_reason: str | None) -> "Description | Nothing | None":
        if stop_reason and self._leave_by is None:
            self._leave.set()
            self._leave_by = time.monotonic() + LEAVE_CLAIM_S
        if not self._claiming.is_done:
            return NOTHING if self._leave_by is not None and time.monotonic() > self._leave_by else None
        found = self._claiming.result()
        if not isinstance(found, Ready):
            return found
        self._ready = found
        return None

    def _start_ranks(self, stop_reason: str | None) -> Description | None:
        """Start the ranks of a claim, and the heart that shows that it lives."""
        task, ready = self._task, self._ready
        assert ready is not None
        if stop_reason:
            return Description(ending="stopped", code=Exit.STOPPED, reason=f"{stop_reason}: before its ranks were started")
        generation = ready.claim.generation
        env = {**task.env, **self.slot.env, "SERESNET_GENERATION": str(generation)}
        words, cwd = (ready.program, own_program.folder_of(task.code_dir)) if ready.program else (task.rank_command, task.code_dir)
        command = [part.replace("{run_dir}", str(self.folder.path.resolve())) for part in words]
        where = f" gpu={self.slot.gpu} cpus={self.slot.cpus and len(self.slot.cpus)}" if task.at_a_time > 1 else ""
        host = socket.gethostname()
        note(self.folder, f"attempt={generation} task={task.name} job={task.job.job_id} host={host} ranks={ready.ranks}{where}")
        self._warn_of_threads(ready)
        if self._team is not None:
            self._group = SpreadGroup(
                self._team, command, ready.ranks, run_id=self.run_id, generation=generation, folder=self.folder, env=env, cwd=task.code_dir
            )  # fmt: skip
        else:
            self._group = RankGroup(
                command, ready.ranks, env=env, cwd=cwd, log=self.folder.log, cpus=self.slot.cpus, is_program=ready.program is not None
            )
        self._heart = claims.Heart(self.folder, generation, self._fenced.set).start()
        return None

    def _poll_ranks(self, stop_reason: str | None) -> Description | None:
        """Look at the ranks, and judge them once they have all ended."""
        assert self._group is not None and self._ready is not None
        is_fenced = self._fenced.is_set()
        outcome = self._group.poll(self._why_fenced() if is_fenced else stop_reason)
        if outcome is None:
            return None
        ended = describe(self.folder, self._ready.claim.generation, outcome)
        if is_fenced and ended.ending != "finished":
            return Description(ending="fenced", code=Exit.FENCED, reason=self._why_fenced())
        if ended.ending == "killed":
            return self._with_cause_of_kill(ended, outcome.statuses.count(-9))
        return ended

    def _why_fenced(self) -> str:
        is_there = self.folder.path.is_dir()
        return "a newer owner has the run" if is_there else f"{self.folder.path} is gone: the sweep was moved or removed under its run"

    def _with_cause_of_kill(self, ended: Description, killed: int) -> Description:
        """SIGKILL has many senders; only a counted kill of the kernel makes it a matter of memory."""
        if not self._memory.take(killed):
            return dataclasses.replace(ended, reason=f"{ended.reason} ({self._memory.evidence})")
        reason = f"host memory: {ended.reason}; its memory cgroup counts a kill (oom_kill)"
        return dataclasses.replace(ended, ending="out_of_memory", reason=reason)

    def _warn_of_threads(self, ready: Ready) -> None:
        cpus = len(own_cpus())
        if self._task.at_a_time > 1 and 0 < cpus < ready.threads * self._task.at_a_time:
            asked = f"{self._task.at_a_time} runs at a time x train.threads={ready.threads}"
            note(self.folder, f"warning: {asked} share {cpus} CPUs of the task. Ask for more (site.cpus_per_rank), or lower train.threads.")
            log.warning("threads=%d at_a_time=%d cpus=%d: more threads than CPUs", ready.threads, self._task.at_a_time, cpus)

    def _said_of_gpu_use(self) -> str:
        assert self._ready is not None
        minutes = self._task.site.get("low_use_window_min")
        window_s = 60.0 * minutes if isinstance(minutes, int | float) else gpu_use.WINDOW_S
        used = gpu_use.mean_util_pct(gpu_use.read_use(self.folder, self._ready.claim.generation), window_s)
        return "" if used is None else f"; GPU use {used:.0f} % in the last {window_s / 60:.0f} min"


class Nothing:
    """There was nothing to do, or nothing more may be done."""


NOTHING = Nothing()


# --- what may take its time: in a thread ---


def _begin(task: Task, run_id: str, folder: RunFolder, task_try: int, leave: threading.Event) -> Ready | Description | Nothing:
    """Look at the run and claim it."""
    try:
        record = RunRecord.read(folder)
        if record.run_id != run_id:
            return _leave_alone(folder, record, run_id)
        ranks, threads = _ranks(task, folder, record)
        program = own_program.command_of(record.config)
        if is_finished(folder, record.epochs):
            return NOTHING
        batch_word.record_killed(folder)
        if reason := why_stop(task, folder, record):
            log.warning("run=%s is not tried again in this submission: %s", record.run_id, reason)
            return NOTHING
        step = durable_step(folder, is_program=program is not None)
        claim = _claim(task, folder, task_try, leave, finished=lambda run: is_finished(run, record.epochs))
        if program is not None:
            own_program.introduce(folder, claim.generation, record, task.code_dir)
        return Ready(claim=claim, ranks=ranks, threads=threads, step=step, program=program)
    except _LeftError:
        return NOTHING
    except OwnedElsewhereError as error:
        return Description(ending="owned_elsewhere", code=Exit.FENCED, reason=str(error))
    except ToolkitError as error:
        return _refuse(task, folder, task_try, leave, str(error))
    except OSError as error:
        # No claim, so no budget to draw from: a disk that is full now is full in a second too.
        ended = Description(ending="no_claim", code=1, reason=f"{type(error).__name__}: {error}")
        note(folder, f"the run could not be claimed: {ended.reason}")
        return ended


def _leave_alone(folder: RunFolder, record: RunRecord, run_id: str) -> Description:
    """Another run's folder, a fork's mostly, lies in the place of ours: nothing is claimed or written there."""
    try:
        refuse_other_run(folder, record, run_id)
    except ConfigError as error:
        log.error("run=%s %s", run_id, error)
        return Description(ending="user_error", code=Exit.USER_ERROR, reason=str(error))
    raise AssertionError("the folder is this run's")


def _ranks(task: Task, folder: RunFolder, record: RunRecord) -> tuple[int, int]:
    """Ranks and threads of each, as run.yaml has them."""
    try:
        train = record.config["train"]
        ranks, threads = int(train["ranks"]), int(train.get("threads", 1))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder.run_yaml}: config.train.ranks is not there. Launch the sweep again to write the file.") from error
    check_nodes(folder, record, task.place)
    if task.at_a_time > 1 and ranks > 1:
        raise ConfigError(
            f"{folder.run_yaml}: train.ranks: {ranks}, but task {task.name} trains {task.at_a_time} runs at a time, which wants "
            "1 rank each. Launch the sweep again with `pack: sequential`."
        )
    return ranks, threads


class _LeftError(Exception):
    """A stop request came while we watched somebody else's beat."""


class _LeavingFiles(Files):
    """The real disk for a claim that is given up when told to: watching a beat takes up to 90 s, which a grace does not have."""

    def __init__(self, leave: threading.Event) -> None:
        self._leave, self._is_taken = leave, False

    def names(self, folder: Path) -> list[str]:
        if self._leave.is_set() and not self._is_taken:
            raise _LeftError
        return super().names(folder)

    def link(self, source: Path, target: Path) -> None:
        self._is_taken = True  # the claim may be ours from here on, whatever the answer is
        super().link(source, target)


def _claim(
    task: Task,
    folder: RunFolder,
    task_try: int,
    leave: threading.Event,
    base: claims.ChooseBase | None = None,
    finished: Callable[[RunFolder], bool] | None = None,
) -> claims.Claim:
    owner = claims.this_process(task_try=task_try, facts={"task": task.name, "series": task.series})
    return claims.acquire(folder, owner, _is_listed, base, finished=finished, files=_LeavingFiles(leave))


def _is_listed(owner: claims.Owner) -> bool | None:
    """For claims: whether Slurm still has the owner's job. None if it cannot know: another cluster's job, or no job."""
    job_id = owner.array_job_id or owner.raw_job_id
    if job_id is None or owner.cluster != os.environ.get("SLURM_CLUSTER_NAME", owner.cluster):
        return None
    return slurm.is_job_listed(job_id)


def _refuse(task: Task, folder: RunFolder, task_try: int, leave: threading.Event, reason: str) -> Description | Nothing:
    """Record a user error that came before the claim as an attempt of its own: status shows it, and no launch sends it again unasked."""
    note(folder, reason)
    ended = Description(ending="user_error", code=Exit.USER_ERROR, reason=reason)
    try:
        claim = _claim(task, folder, task_try, leave, _unchecked_base)
        step = durable_step(folder)
        facts = end_facts(task, ended, step, step, time.time())
        claims.write_end(folder, claim.generation, ended.ending, reason=reason, **facts, requeue=False)
    except _LeftError:
        return NOTHING
    except (ToolkitError, OSError) as error:
        log.error("end_not_written run=%s error=%s", folder.path.name, error)
    return ended


def _unchecked_base(folder: RunFolder) -> str | None:
    """The file that the next attempt would try first, sound or not: a claim that names none would let it start over in silence."""
    last = next((claim for claim in reversed(claims.read_claims(folder)) if claim.owner is not None), None)
    names = checkpoint_files.candidates(checkpoint_files.list_checkpoints(folder), last)
    return str(names[0]) if names else last.base if last is not None else None


# --- what is known of a run ---


def end_facts(task: Task, ended: Description, before: int, after: int, started: float) -> dict[str, Any]:
    """What an end record says beside ending, reason and requeue."""
    return {
        "code": int(ended.code),
        "budget": requeue.budget_of(ended.ending, after > before),
        "task": task.name,
        "job_id": task.job.job_id,
        "restart_count": task.job.restart_count,
        "step_before": before,
        "durable_step": after,
        "seconds": round(time.time() - started, 3),
        "host": socket.gethostname(),
    }


def why_stop(task: Task, folder: RunFolder, record: RunRecord) -> str | None:
    """Why the run must not be tried again in this submission, or None."""
    seconds = [epoch.seconds for epoch in journal.read(folder)]
    is_program = own_program.command_of(record.config) is not None
    return requeue.why_stop(
        earlier_attempts(task, folder, is_program), requeue.budget_of_time_limits(record.epochs, seconds, task.job.walltime_s)
    )


def earlier_attempts(task: Task, folder: RunFolder, is_program: bool = False) -> list[requeue.Attempt]:
    """How earlier attempts of this series ended: a relaunch is a new job, and starts with a new budget."""
    found, known = [], claims.read_claims(folder)
    for claim, later in itertools.zip_longest(known, known[1:]):
        if claim.owner is None or claim.owner.facts.get("series") != task.series:
            continue
        end = batch_word.known_end(folder, claim)
        if end is None and claim.owner.restart_count != task.job.restart_count:
            continue  # whoever claims next says what became of it
        # One of our own whose record the disk refused must cost something, or it would be tried for ever.
        ending, facts = (end.ending, end.facts) if end is not None else ("killed", {})
        before, after = facts.get("step_before"), facts.get("durable_step")
        if not isinstance(before, int) or not isinstance(after, int):
            # An end that somebody else inferred: what it began from, and what was durable when the next one began.
            before, after = _step_of(claim.base), _step_of(later.base) if later is not None else durable_step(folder)
            if is_program:  # names no base; what it wrote of itself is in its own journal
                before, after = 0, int(own_program.has_written(folder, claim.generation))
        found.append(requeue.Attempt(ending=ending, made_progress=after > before))
    return found


def _step_of(base: str | None) -> int:
    name = CheckpointName.parse(base) if base else None
    return -1 if name is None else name.step


def durable_step(folder: RunFolder, *, is_program: bool = False) -> int:
    """The highest step with a checkpoint, -1 without one; names only, so that looking costs one listing. Of a program, its journal's."""
    if not is_program:
        return max((name.step for name in checkpoint_files.list_checkpoints(folder)), default=-1)
    with contextlib.suppress(OSError):  # it may have put anything in that place
        return max((record.step for record in journal.read_last(folder, 1)), default=-1)
    return -1


def note(folder: RunFolder, line: str) -> None:
    """One line of ours in the run's log."""
    with logged_errors("log_not_written"), open(folder.log, "a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor: {line}\n")


@contextlib.contextmanager
def logged_errors(event: str) -> Iterator[None]:
    """A full disk must not turn one ending into another."""
    try:
        yield
    except OSError as error:
        log.error("%s error=%s", event, error)
