"""What runs in a task: its runs as rank processes, watched, stopped and recorded by pack_runner; the task's exit code; one requeue.

Used by SLURM jobs (hpc.worker, sbatch/train.sh) and by local launches alike; without SLURM_JOB_ID nothing is requeued. One
invariant: the requeue is the last act, after every end file is durable.
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from hpc import last_table, slurm
from hpc.attempt_runner import why_stop
from hpc.follower import follow
from hpc.gpu_use import Sampler
from hpc.mirror_child import MirrorChild
from hpc.nodes import Team
from hpc.pack_runner import PackRunner
from hpc.paths import Plan, SweepFolder
from hpc.renewal import renewing
from hpc.single import name_code_root, sweep_of_one
from hpc.task import RANK_COMMAND, Job, Task, read_task
from seresnet.errors import ToolkitError
from seresnet.exits import Exit
from seresnet.run_folder import RunRecord, is_finished
from seresnet.signals import StopFlag

log = logging.getLogger("hpc.supervisor")


def run_task(
    sweep: SweepFolder,
    task: str,
    *,
    stop: StopFlag,
    rank_command: Sequence[str] = RANK_COMMAND,
    mirror_command: Sequence[str] | None = None,
) -> int:
    """Run every unfinished run of a task, to its end or to a stop request; returns the task's exit code.

    0: all have their result, or those that have not are held, cancelled or dropped. 75: told to stop, and requeued if the scheduler's
    words ask for it. Else the code of the first run that failed. rank_command: "{run_dir}" in it becomes the run's folder; it must keep
    to seresnet.exits.
    """
    told = read_task(sweep, task, stop, rank_command)
    if told.place.node:
        return follow(told)
    run_ids, team = told.plan.tasks[task], Team.open(told)
    mirror = MirrorChild.start(told.sweep, run_ids, told.plan.wandb.mode, mirror_command, env=told.env, cwd=told.code_dir)
    pack = PackRunner(told, run_ids, mirror, team)
    sampler = Sampler(pack.use_files, told.env).start()
    try:
        with renewing(told.sweep):
            pack.run()
        last_table.write_if_last(told)  # before the mirror is told to stop, which meanwhile publishes
    finally:
        sampler.stop()
        mirror.stop(told.should_stop)
    code = _exit_code(told, run_ids, pack)
    log.info("task=%s code=%d stop=%s", task, code, stop.signal_name)
    if team is not None:
        team.close(code)  # before the requeue, which kills us
    if code == Exit.STOPPED:
        _requeue_if_asked(told.job)
    return code


def _exit_code(task: Task, run_ids: Sequence[str], pack: PackRunner) -> int:
    """0 if every run has its result or is meant to wait; 75 if told to stop before that; else what the first failed run says."""
    unfinished = [run_id for run_id in run_ids if run_id not in pack.left_alone and not _has_result(task, run_id)]
    if not unfinished:
        return Exit.FINISHED
    # What a newer owner has taken is no reason to come back: its job sees to it.
    elsewhere = {run_id for run_id, ended in pack.ended.items() if ended.code == Exit.FENCED}
    if task.should_stop() and any(_may_go_on(task, run_id) for run_id in unfinished if run_id not in elsewhere):
        return Exit.STOPPED
    codes = [pack.ended[run_id].code for run_id in unfinished if run_id in pack.ended]
    # Held before it began: no failure of the task, or its array would look failed and an afterok of the user's would never start.
    untouched = 0 if pack.is_held else 1
    return next((code for code in codes if code), untouched)


def _has_result(task: Task, run_id: str) -> bool:
    folder = task.sweep.run_folder(run_id, task.plan)
    with contextlib.suppress(ToolkitError):
        record = RunRecord.read(folder)
        return record.run_id == run_id and is_finished(folder, record.epochs)
    return False


def _may_go_on(task: Task, run_id: str) -> bool:
    folder = task.sweep.run_folder(run_id, task.plan)
    with contextlib.suppress(ToolkitError):
        return why_stop(task, folder, RunRecord.read(folder)) is None
    return False


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
    # Above 128 the batch script takes it for our own death, and not for that of the rank which had this code.
    return int(code) if code <= 128 else 1


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
        name_code_root(args.run, sweep, task)
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
