"""What a task is told at its start: its runs, its job, the environment of its children, and why it must stop.

Read from the sweep's folder, the environment and one look at the job; hpc.supervisor acts on it. One invariant: nothing here starts,
stops or requeues anything.
"""

import logging
import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc import code_snapshot, requeue, slurm
from hpc.paths import Plan, Submission, Submissions, SweepFolder
from hpc.place import Place
from seresnet.durable import parse_json
from seresnet.errors import ConfigError
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
    walltime_s: float | None = None  # of each attempt of the job, as Slurm granted it
    lost_node: str | None = None  # what is said of a node of ours that is gone; see hpc.nodes
    told_at: float | None = None  # when the task was first seen to be told to stop

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
        facts = slurm.job_facts(self.job_id)
        return requeue.judge(facts, self.restart_count, time.time(), self.signal_delay_s, self.lost_node, self.told_at)


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
    at_a_time: int = 1  # runs that train side by side
    place: Place = field(default_factory=Place)  # this supervisor among those of the task's nodes
    site: Mapping[str, object] = field(default_factory=dict)  # as the submission had it

    @property
    def has_shared_gpu_contexts(self) -> bool:
        """Whether a fatal GPU fault of one run takes its siblings along: side by side under the site's MPS."""
        return self.at_a_time > 1 and bool(self.site.get("mps_comment"))

    def should_stop(self) -> str | None:
        """Why the task has to stop now: a signal, or the end of its time."""
        if self.stop.signal_name is None and self.job.is_over():
            self.stop.signal_name = "deadline"
        if self.stop.is_set and self.job.told_at is None:
            self.job.told_at = time.time()
        return self.stop.signal_name


def read_task(sweep: SweepFolder, name: str, stop: StopFlag, rank_command: Sequence[str]) -> Task:
    """Raises ConfigError when the sweep's records cannot be read, know no such task, or when this is not the code that was sent."""
    plan = Plan.read(sweep)
    if name not in plan.tasks:
        raise ConfigError(
            f"{sweep.plan}: no task {name}. Tasks: {', '.join(list(plan.tasks)[:20])}{', ...' if len(plan.tasks) > 20 else ''}."
        )
    submission = Submissions.read(sweep).get(name.partition("/")[0])
    site = submission.site if submission else {}
    code_dir = checked_code(sweep, submission) if submission else Path.cwd()
    job = look_at_job(os.environ, float(site.get("signal_delay_s", 60.0)), stop)
    return Task(
        sweep=sweep,
        name=name,
        plan=plan,
        job=job,
        stop=stop,
        series=f"{name}@{job.job_id or secrets.token_hex(4)}",
        code_dir=code_dir.resolve(),
        env=task_environment(os.environ, site),
        rank_command=rank_command,
        at_a_time=submission.at_a_time if submission else 1,
        place=Place.of(os.environ),
        site=site,
    )


def checked_code(sweep: SweepFolder, submission: Submission, running: Path = code_snapshot.ROOT) -> Path:
    """The snapshot that the submission runs, if it is whole and what runs here."""
    folder = sweep.code(submission.code)
    mark = folder / code_snapshot.MARK
    try:
        wanted = parse_json(mark.read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{mark}: no code snapshot for submission {submission.id}: {type(error).__name__}"
        raise ConfigError(f"{problem}. Restore {folder}, or launch the sweep again.") from error
    if (found := code_snapshot.code_digest(running)) != wanted:
        raise ConfigError(
            f"{folder}: submission {submission.id} was sent with code {wanted}, but {found} runs here, from {running}. "
            "Start it in the snapshot, with PYTHONPATH and PYTHONSAFEPATH unset; if the snapshot was edited, launch the sweep again."
        )
    return folder


def look_at_job(environ: Mapping[str, str], signal_delay_s: float, stop: StopFlag) -> Job:
    """Read the end of our time, and whether we were told to stop before our handlers were in."""
    job_id = slurm.own_job_id(environ)
    if job_id is None:
        return Job(job_id=None)
    facts = slurm.job_facts(job_id)
    if facts is not None and facts.is_preempted and stop.signal_name is None:
        stop.signal_name = "preempted during start-up"
    restarts = slurm.restart_count(environ)
    start_time, end_time = (facts.start_time, facts.end_time) if facts is not None else (None, None)
    log.info("job=%s restart=%d end_time=%s host=%s", job_id, restarts, end_time, socket.gethostname())
    walltime_s = end_time - start_time if start_time is not None and end_time is not None else None
    return Job(job_id=job_id, restart_count=restarts, signal_delay_s=signal_delay_s, end_time=end_time, walltime_s=walltime_s)


def task_environment(environ: Mapping[str, str], site: Mapping[str, object]) -> dict[str, str]:
    """What every child of this task is given: the site's folders, and in a SLURM job no cache under HOME."""
    env = {name: value for name, value in environ.items() if name != "PYTHONSAFEPATH"}  # ranks are found in the snapshot by `python -m`
    if site.get("data_dir") and "HPC_DATA_DIR" not in env:
        env["HPC_DATA_DIR"] = str(_expanded("data_dir", str(site["data_dir"]), environ))
    cache = _expanded("cache_dir", str(site["cache_dir"]), environ) if site.get("cache_dir") else None
    if cache is None and slurm.own_job_id(environ) is not None:
        cache = _node_local_cache(environ)
    if cache is not None:
        for name, below in _CACHES.items():
            env.setdefault(name, str(cache / below))
    env["PYTHONUNBUFFERED"] = "1"  # or a killed rank takes its last lines with it
    return env


def _expanded(key: str, value: str, environ: Mapping[str, str]) -> Path:
    """A folder of the site on this node. An unset variable must not become the name of a folder in the working directory."""
    variable = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
    if missing := [name for pair in variable.findall(value) if (name := "".join(pair)) not in environ]:
        raise ConfigError(f"site.{key}: {value} needs ${missing[0]}, which is not set on {socket.gethostname()}. Say site.{key}=/a/folder.")
    return Path(variable.sub(lambda found: environ[found[1] or found[2]], value)).expanduser()


def _node_local_cache(environ: Mapping[str, str]) -> Path:
    """A folder of this user on the node; libraries load code from their caches, so that nobody else's will do."""
    temp = Path(environ.get("SLURM_TMPDIR") or environ.get("TMPDIR") or tempfile.gettempdir())
    folder = temp / f"hpc-cache-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.getuid() and not folder.is_symlink():
            return folder
    except OSError as error:
        log.warning("cache=%s error=%s", folder, error)
    return Path(tempfile.mkdtemp(prefix="hpc-cache-"))


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
