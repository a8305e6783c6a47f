"""What runs in a task: the runs of a pack one after another, each as rank processes; watched, stopped, recorded; one requeue.

Used by SLURM jobs (hpc.worker, sbatch/train.sh) and by local launches alike; without SLURM_JOB_ID nothing is requeued. One
invariant: the requeue is the last act, after every end file is durable.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc import requeue, slurm
from hpc.mirror_child import MirrorChild
from hpc.paths import Plan, SweepFolder
from hpc.ranks import Description, RankGroup, describe
from hpc.single import sweep_of_one
from hpc.task import RANK_COMMAND, Job, Task, read_task
from seresnet import checkpoint_files, claims
from seresnet.errors import ConfigError, OwnedElsewhereError, ToolkitError
from seresnet.exits import Exit
from seresnet.run_folder import RunFolder, RunRecord, is_finished
from seresnet.signals import StopFlag

log = logging.getLogger("hpc.supervisor")


@dataclass(kw_only=True)
class _Progress:
    """What has become of the task's runs so far."""

    ended: dict[str, Description] = field(default_factory=dict)  # run id -> its last attempt in this task
    tries: int = 0


def run_task(
    sweep: SweepFolder,
    task: str,
    *,
    stop: StopFlag,
    rank_command: Sequence[str] = RANK_COMMAND,
    mirror_command: Sequence[str] | None = None,
) -> int:
    """Run every unfinished run of a task, to its end or to a stop request; returns the task's exit code.

    0: all have their result. 75: told to stop, and requeued if the scheduler's words ask for it. Else the code of the first run that
    failed. rank_command: "{run_dir}" in it becomes the run's folder; it must keep to seresnet.exits.
    """
    told = read_task(sweep, task, stop, rank_command)
    run_ids = told.plan.tasks[task]
    mirror = MirrorChild.start(told.sweep, run_ids, told.plan.wandb.mode, mirror_command, env=told.env, cwd=told.code_dir)
    progress = _Progress()
    try:
        _run_all(told, run_ids, progress, mirror)
    finally:
        mirror.stop()
    code = _exit_code(told, run_ids, progress)
    log.info("task=%s code=%d stop=%s", task, code, stop.signal_name)
    if code == Exit.STOPPED:
        _requeue_if_asked(told.job)
    return code


# --- the runs of a task ---


def _run_all(task: Task, run_ids: Sequence[str], progress: _Progress, mirror: MirrorChild) -> None:
    """One run after another; one that failed comes again after its siblings, as long as its budget lasts."""
    waiting = deque(run_ids)
    while waiting and not task.should_stop():
        run_id = waiting.popleft()
        ended = _run_once(task, run_id, progress, mirror)
        if ended is None:
            continue
        progress.ended[run_id] = ended
        log.info("run=%s ending=%s code=%d reason=%s", run_id, ended.ending, ended.code, ended.reason)
        if ended.ending in requeue.FAILING:
            waiting.append(run_id)


def _run_once(task: Task, run_id: str, progress: _Progress, mirror: MirrorChild) -> Description | None:
    """One attempt at one run; None if there was nothing to do, or if its budget is spent."""
    folder = task.sweep.run_folder(run_id, task.plan)
    try:
        record = RunRecord.read(folder)
        ranks = _ranks(folder, record)
        if _is_finished(folder, record):
            return None
        if reason := requeue.why_stop(_earlier_attempts(folder, task)):
            log.warning("run=%s is not tried again in this submission: %s", run_id, reason)
            return None
        progress.tries += 1
        claim = _claim(task, folder, progress.tries)
    except OwnedElsewhereError as error:
        return Description(ending="owned_elsewhere", code=Exit.FENCED, reason=str(error))
    except ToolkitError as error:
        return _refuse(task, folder, progress, str(error))
    except OSError as error:
        # No claim, so no budget to draw from: a disk that is full now is full in a second too.
        ended = Description(ending="no_claim", code=1, reason=f"{type(error).__name__}: {error}")
        _note(folder, f"the run could not be claimed: {ended.reason}")
        return ended
    return None if claim is None else _attempt(task, folder, claim, ranks, mirror)


def _ranks(folder: RunFolder, record: RunRecord) -> int:
    try:
        return int(record.config["train"]["ranks"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder.run_yaml}: config.train.ranks is not there. Launch the sweep again to write the file.") from error


def _refuse(task: Task, folder: RunFolder, progress: _Progress, reason: str) -> Description:
    """Record a user error that came before the claim as an attempt of its own: status shows it, and no launch sends it again unasked."""
    _note(folder, reason)
    progress.tries += 1
    try:
        claim = _claim(task, folder, progress.tries, _unchecked_base)
        if claim is not None:
            facts: dict[str, Any] = {"code": int(Exit.USER_ERROR), "task": task.name, "job_id": task.job.job_id}
            claims.write_end(folder, claim.generation, "user_error", reason=reason, **facts, host=socket.gethostname(), requeue=False)
    except (ToolkitError, OSError) as error:
        log.error("end_not_written run=%s error=%s", folder.path.name, error)
    return Description(ending="user_error", code=Exit.USER_ERROR, reason=reason)


def _unchecked_base(folder: RunFolder) -> str | None:
    """The file that the next attempt would try first, sound or not: a claim that names none would let it start over in silence."""
    last = next((claim for claim in reversed(claims.read_claims(folder)) if claim.owner is not None), None)
    names = checkpoint_files.candidates(checkpoint_files.list_checkpoints(folder), last)
    return str(names[0]) if names else last.base if last is not None else None


class _StoppedWhileWaitingError(Exception):
    """A stop request came while we watched somebody else's beat."""


def _claim(task: Task, folder: RunFolder, task_try: int, base: claims.ChooseBase | None = None) -> claims.Claim | None:
    """Claim the run; None if a stop request came first. Watching a beat takes up to 90 s, which a grace does not have."""

    def leave(name: str) -> None:
        raise _StoppedWhileWaitingError(name)

    facts = {"task": task.name, "series": task.series}
    try:
        task.stop.install(at_once=leave)
        return claims.acquire(folder, claims.this_process(task_try=task_try, facts=facts), _is_listed, base)
    except _StoppedWhileWaitingError:
        return None
    finally:
        task.stop.first_step()  # from now on a signal only sets the flag


def _is_listed(owner: claims.Owner) -> bool | None:
    """For claims: whether Slurm still has the owner's job. None if it cannot know: another cluster's job, or no job."""
    job_id = owner.array_job_id or owner.raw_job_id
    if job_id is None or owner.cluster != os.environ.get("SLURM_CLUSTER_NAME", owner.cluster):
        return None
    return slurm.is_job_listed(job_id)


def _attempt(task: Task, folder: RunFolder, claim: claims.Claim, ranks: int, mirror: MirrorChild) -> Description:
    """Run the ranks of one claim to their end, and write down how they ended."""
    fenced, started, step = threading.Event(), time.time(), _durable_step(folder)

    def should_stop() -> str | None:
        reason = "a newer owner has the run" if fenced.is_set() else task.should_stop()
        if reason and not fenced.is_set():
            mirror.ask_to_stop()  # together with the ranks: one after the other would not fit into the grace
        return reason

    env = {**task.env, "SERESNET_GENERATION": str(claim.generation)}
    command = [part.replace("{run_dir}", str(folder.path.resolve())) for part in task.rank_command]
    _note(folder, f"attempt={claim.generation} task={task.name} job={task.job.job_id} host={socket.gethostname()} ranks={ranks}")
    # Ranks before the heart's thread: a child is set up between fork and exec, which wants a process of one thread.
    group = RankGroup(command, ranks, env=env, cwd=task.code_dir, log=folder.log)
    heart = claims.Heart(folder, claim.generation, fenced.set).start()
    try:
        ended = describe(folder, claim.generation, group.watch(should_stop))
    finally:
        group.close()
        heart.stop()
    if fenced.is_set() and ended.ending != "finished":
        return Description(ending="fenced", code=Exit.FENCED, reason="a newer owner has the run")
    verdict = task.job.judge() if ended.ending == "stopped" else None
    if verdict is not None:
        ended = dataclasses.replace(ended, ending=verdict.ending, reason=f"{ended.reason}; {verdict.reason}")
    facts: dict[str, Any] = {"code": ended.code, "task": task.name, "job_id": task.job.job_id, "restart_count": task.job.restart_count}
    facts |= {"step_before": step, "durable_step": _durable_step(folder), "seconds": round(time.time() - started, 3)}
    facts |= {"host": socket.gethostname(), "requeue": verdict.requeue if verdict is not None else False}
    with _logged_errors("end_not_written"):
        claims.write_end(folder, claim.generation, ended.ending, reason=ended.reason, **facts)
    return ended


def _is_finished(folder: RunFolder, record: RunRecord) -> bool:
    return is_finished(folder, record.epochs)


def _durable_step(folder: RunFolder) -> int:
    """The highest step with a checkpoint, -1 without one; names only, so that looking costs one listing."""
    return max((name.step for name in checkpoint_files.list_checkpoints(folder)), default=-1)


def _earlier_attempts(folder: RunFolder, task: Task) -> list[requeue.Attempt]:
    """How earlier attempts of this series ended: a relaunch is a new job, and starts with a new budget."""
    found = []
    for claim in claims.read_claims(folder):
        end = claims.read_end(folder, claim.generation)
        if end is None or claim.owner is None or claim.owner.facts.get("series") != task.series:
            continue
        before, after = end.facts.get("step_before"), end.facts.get("durable_step")
        # An end that somebody else inferred does not say: the benefit of the doubt, or a lost node would draw from a budget.
        made_progress = after > before if isinstance(before, int) and isinstance(after, int) else not end.inferred
        found.append(requeue.Attempt(ending=end.ending, made_progress=made_progress))
    return found


def _note(folder: RunFolder, line: str) -> None:
    """One line of ours in the run's log."""
    with _logged_errors("log_not_written"), open(folder.log, "a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} supervisor: {line}\n")


@contextlib.contextmanager
def _logged_errors(event: str) -> Iterator[None]:
    """A full disk must not turn one ending into another."""
    try:
        yield
    except OSError as error:
        log.error("%s error=%s", event, error)


# --- the end of a task ---


def _exit_code(task: Task, run_ids: Sequence[str], progress: _Progress) -> int:
    """0 if every run has its result; 75 if the task was told to stop before that; else what the first failed run says."""
    unfinished = [run_id for run_id in run_ids if not _has_result(task, run_id)]
    if not unfinished:
        return Exit.FINISHED
    if task.should_stop() and any(_may_go_on(task, run_id) for run_id in unfinished):
        return Exit.STOPPED
    codes = [progress.ended[run_id].code for run_id in unfinished if run_id in progress.ended]
    return next((code for code in codes if code), 1)


def _has_result(task: Task, run_id: str) -> bool:
    folder = task.sweep.run_folder(run_id, task.plan)
    with contextlib.suppress(ToolkitError):
        return _is_finished(folder, RunRecord.read(folder))
    return False


def _may_go_on(task: Task, run_id: str) -> bool:
    return requeue.why_stop(_earlier_attempts(task.sweep.run_folder(run_id, task.plan), task)) is None


def _requeue_if_asked(job: Job) -> None:
    """Look again, since ranks and mirror took their time, and requeue if Slurm's words say so. Slurm kills us right after."""
    verdict = job.judge()
    log.info("job=%s verdict=%s requeue=%s reason=%s", job.job_id, verdict.ending, verdict.requeue, verdict.reason)
    for handler in log.handlers + logging.getLogger().handlers:
        handler.flush()
    if verdict.requeue and job.job_id is not None:
        problem = slurm.requeue(job.job_id)
        log.info("requeued job=%s problem=%s", job.job_id, problem)


# --- commands ---


def main_task(sweep: SweepFolder, task: str, stop: StopFlag) -> int:
    """run_task with logging set up and what users can cause turned into one line and an exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stdout)
    try:
        code = run_task(sweep, task, stop=stop)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        code = int(Exit.USER_ERROR)
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code)


def main(argv: Sequence[str] | None = None) -> int:
    """One run without a launcher, or one task of a sweep."""
    stop = StopFlag()
    stop.install()
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if (args.sweep is None) != (args.task is None) or (args.sweep is None) == (args.run is None):
        parser.error("give the YAML file of a run, or --sweep and --task")
    if args.sweep is not None:
        return main_task(SweepFolder(args.sweep), args.task, stop)

    try:
        sweep, task = sweep_of_one(args.run, args.override)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"run folder: {sweep.run_folder(Plan.read(sweep).tasks[task][0]).path}, log: log.txt in it", flush=True)
    return main_task(sweep, task, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hpc.supervisor",
        description="Train one run with resume and requeue, without a launcher; or run one task of a sweep.",
    )
    parser.add_argument("run", type=Path, nargs="?", help="YAML file of one run")
    parser.add_argument("override", nargs="*", metavar="key=value", help="for example optim.lr=0.05")
    parser.add_argument("--sweep", type=Path, help="folder of a sweep, with --task")
    parser.add_argument("--task", help="name of a task in its plan, such as 0001/0")
    return parser


if __name__ == "__main__":
    sys.exit(main())
