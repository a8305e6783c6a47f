"""The callable that submitit pickles: a class by reference and one path. All else lives in the sweep's folder, read when the task starts.

Imports nothing heavy, so that a pickle made on a login node loads on the job side, whatever is installed there.
"""

import os
import signal
from pathlib import Path


class Worker:
    """Runs one task of a sweep inside a job. Never returns: submitit's way of ending a job knows no exit codes."""

    def __init__(self, sweep: str) -> None:
        self.sweep = sweep

    def __call__(self, task: str) -> None:
        """Run the task in this process and exit with its code."""
        from seresnet.signals import StopFlag

        stop = StopFlag()
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit's handler would log it
        stop.install()  # before anything else: until now a stop request was lost, and is found by looking at the job
        from hpc import supervisor
        from hpc.paths import SweepFolder

        _remove_stale_results()
        if task.startswith("trial/"):  # hpc.trials.PREFIX
            from hpc import trial_task

            os._exit(trial_task.main_task(SweepFolder(Path(self.sweep)), task, stop))
        os._exit(supervisor.main_task(SweepFolder(Path(self.sweep)), task, stop))


def _remove_stale_results() -> None:
    """submitit takes a result pickle of an earlier attempt for this one's, and refuses to write beside its own temp file."""
    folder, job_id = os.environ.get("SUBMITIT_FOLDER"), os.environ.get("SLURM_ARRAY_JOB_ID")
    if folder and job_id:
        for path in Path(folder).glob(f"{job_id}_{os.environ.get('SLURM_ARRAY_TASK_ID')}_*_result.*"):
            path.unlink(missing_ok=True)
