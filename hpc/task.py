"""What a task is told at its start: its runs, its job, the environment of its children, and why it must stop.

Read from the sweep's folder, the environment and one look at the job; hpc.supervisor acts on it. One invariant: nothing here starts,
stops or requeues anything.
"""

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc import requeue, slurm
from hpc.paths import Plan, Submissions, SweepFolder
from seresnet.signals import StopFlag

log = logging.getLogger("hpc.supervisor")

RANK_COMMAND = (sys.executable, "-m", "seresnet.train", "--run-dir", "{run_dir}")
#: Ranks 12 s, mirror 8 s, end files and requeue 5 s, and 20 s for a scheduler or a disk that is slow today.
STOP_BEFORE_END_S = 45.0


@dataclass(kw_only=True)
class Job:
    """The job that this task is, if it is one. Mutable, because a site may move the end of its time."""

    job_id: str | None  # None: no SLURM
    restart_count: int = 0
    signal_delay_s: float = 60.0
    end_time: float | None = None  # as Slurm last said

    def is_over(self) -> bool:
        """Whether the end of the time has come so near that we must stop; asks Slurm again before it says so."""
        if self.end_time is None or time.time() <= self.end_time - STOP_BEFORE_END_S:
            return False
        facts = slurm.job_facts(self.job_id) if self.job_id is not None else None
        if facts is not None and facts.end_time is not None and facts.end_time > self.end_time:
            log.info("job=%s end_time=%s was=%s", self.job_id, facts.end_time, self.end_time)
            self.end_time = facts.end_time
        return time.time() > self.end_time - STOP_BEFORE_END_S

    def judge(self) -> requeue.Verdict:
        """Ask Slurm why we were told to stop."""
        if self.job_id is None:
            return requeue.Verdict(ending="stopped", requeue=False, reason="told to stop, outside of SLURM")
        return requeue.judge(slurm.job_facts(self.job_id), self.restart_count, time.time(), self.signal_delay_s)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a task is told at its start; nothing here changes while it runs."""

    sweep: SweepFolder
    name: str
    plan: Plan
    job: Job
    stop: StopFlag
    series: str  # attempts of one series share a budget: those of one job, requeues included, or of this process
    code_dir: Path  # working directory of ranks, so that they import the snapshot
    env: Mapping[str, str]
    rank_command: Sequence[str] = RANK_COMMAND

    def should_stop(self) -> str | None:
        """Why the task has to stop now: a signal, or the end of its time."""
        if self.stop.signal_name is None and self.job.is_over():
            self.stop.signal_name = "deadline"
        return self.stop.signal_name


def read_task(sweep: SweepFolder, name: str, stop: StopFlag, rank_command: Sequence[str]) -> Task:
    """Raises ConfigError when the sweep's records cannot be read."""
    plan = Plan.read(sweep)
    submission = Submissions.read(sweep).get(name.partition("/")[0])
    site = submission.site if submission else {}
    code_dir = sweep.code(submission.code) if submission else Path.cwd()
    job = _look_at_job(os.environ, float(site.get("signal_delay_s") or 60.0), stop)
    return Task(
        sweep=sweep,
        name=name,
        plan=plan,
        job=job,
        stop=stop,
        series=f"{name}@{job.job_id or secrets.token_hex(4)}",
        code_dir=code_dir.resolve() if code_dir.is_dir() else Path.cwd(),
        env=_environment(os.environ, site),
        rank_command=rank_command,
    )


def _look_at_job(environ: Mapping[str, str], signal_delay_s: float, stop: StopFlag) -> Job:
    """Read the end of our time, and whether we were told to stop before our handlers were in."""
    job_id = slurm.own_job_id(environ)
    if job_id is None:
        return Job(job_id=None)
    facts = slurm.job_facts(job_id)
    if facts is not None and facts.is_preempted and stop.signal_name is None:
        stop.signal_name = "preempted during start-up"
    end_time = facts.end_time if facts is not None else None
    log.info("job=%s restart=%d end_time=%s host=%s", job_id, slurm.restart_count(environ), end_time, socket.gethostname())
    return Job(job_id=job_id, restart_count=slurm.restart_count(environ), signal_delay_s=signal_delay_s, end_time=end_time)


def _environment(environ: Mapping[str, str], site: Mapping[str, object]) -> dict[str, str]:
    """What every child of this task is given: the site's folders, and nothing that writes under HOME on a cluster."""
    env = dict(environ)
    if site.get("data_dir"):
        env.setdefault("HPC_DATA_DIR", os.path.expandvars(str(site["data_dir"])))
    if site.get("cache_dir"):
        cache = Path(os.path.expandvars(str(site["cache_dir"])))
        for name, below in _CACHES.items():
            env.setdefault(name, str(cache / below))
    env["PYTHONUNBUFFERED"] = "1"  # or a killed rank takes its last lines with it
    return env


_CACHES = {
    "XDG_CACHE_HOME": "",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
    "WANDB_CACHE_DIR": "wandb",
    "WANDB_CONFIG_DIR": "wandb-config",
}
