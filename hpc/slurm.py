"""The only place that talks to SLURM: submit an array, read facts, requeue.

The sbatch text is hpc.sbatch_script's; submitit makes the pickles; its signal handling, states and timeouts are not used. Every call has
a time limit, an exit status that is looked at and stderr that is shown. One invariant: no stop signal that hits this process group
reaches a client.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpc.requeue import JobFacts
from hpc.sbatch_script import check_script, script
from hpc.shapes import TaskShape
from hpc.site_keys import Site
from seresnet.errors import SubmissionError
from seresnet.signals import STOP_SIGNALS

__all__ = [
    "ACTIVE_STATES",
    "ListedJob",
    "Reply",
    "SbatchRefusedError",
    "TaskShape",
    "call",
    "check_script",
    "is_job_listed",
    "job_facts",
    "listed_jobs",
    "own_job_id",
    "parse_job",
    "requeue",
    "restart_count",
    "restore_pickles",
    "script",
    "stop_signals_blocked",
    "submit_array",
]

SUBMIT_TIMEOUT_S = 120.0
#: Inside a grace of 30 s, end file and requeue have 5 s together, which a busy slurmctld may miss: it is asked TRIES times.
QUICK_TIMEOUT_S = 5.0
TRIES = 2
#: Of a job that still holds or will hold nodes. Anything else is history that slurmctld keeps for MinJobAge.
ACTIVE_STATES = frozenset(
    {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT", "COMPLETING"}
    | {"REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
)
#: From the launcher's own allocation or session; inside a job they confuse srun, torch or wandb, or are secrets.
_NOT_FOR_JOBS = re.compile(
    r"(SLURMD?_(?!CONF$|CLUSTERS$)|SRUN_|SBATCH_|SUBMITIT_|PMIX?_|WANDB_SERVICE)"
    r"|(MASTER_ADDR|MASTER_PORT|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|SERESNET_\w+|PYTHONSAFEPATH)$"
)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a client of Slurm answered; returncode None when it is not installed or did not answer in time."""

    returncode: int | None
    stdout: str
    stderr: str

    @property
    def succeeded(self) -> bool:
        return self.returncode == 0


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Children started in here begin with the stop signals blocked; a blocked mask survives exec, a handler does not."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def call(
    *args: str,
    timeout_s: float = QUICK_TIMEOUT_S,
    env: Mapping[str, str] | None = None,
    asked: str | None = None,
    keep_open: Sequence[int] = (),
) -> Reply:
    """Run one client of Slurm; never raises for what it answers.

    asked: lines for a client that reads its questions, several in one call. keep_open: files that the client holds open while it runs.
    """
    stdin = subprocess.DEVNULL if asked is None else subprocess.PIPE
    try:
        with stop_signals_blocked():
            process = subprocess.Popen(
                args, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=env, pass_fds=keep_open,
            )  # fmt: skip
    except OSError as error:
        return Reply(returncode=None, stdout="", stderr=str(error))
    try:
        out, err = process.communicate(asked, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Reply(returncode=None, stdout="", stderr=f"{args[0]} did not answer within {timeout_s:.0f} s")
    return Reply(returncode=process.returncode, stdout=out, stderr=err.strip())


# --- submitting ---


def submit_array(
    worker: Callable[[str], object],
    tasks: Sequence[str],
    *,
    folder: Path,
    code_dir: Path,
    site: Site,
    shape: TaskShape,
    job_name: str,
    dependency: str | None = None,
    parallel: int | None = None,
    visible: Sequence[Path] = (),
    keep_open: Sequence[int] = (),
) -> str:
    """Submit one array whose task i calls worker(tasks[i]) with code_dir as working directory; returns the array's job id.

    Also a single task is an array, so that every task is known as JOB_INDEX. Pickles and logs go into folder, which compute nodes must
    see. keep_open: locks that outlive a launcher that is killed while sbatch runs. Raises ConfigError (see script), and SubmissionError
    with Slurm's own words; nothing is queued then, unless the text says that sbatch did not answer.
    """
    assert tasks, "an array of no tasks"
    if shutil.which("sbatch") is None:
        raise SubmissionError("sbatch is not on PATH. Launch where it is, or say --local to run on this machine.")
    text = script(folder, code_dir, site, shape, job_name, len(tasks), dependency=dependency, parallel=parallel, visible=visible)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = secrets.token_hex(6)
    pickles = [folder / f".{stamp}-{index}.pkl" for index in range(len(tasks))]
    script_path = folder / f".{stamp}.sh"
    script_path.write_text(text)
    try:
        for path, task in zip(pickles, tasks, strict=True):
            _dump(path, worker, task, site.walltime_min)
        job_id = _sbatch(script_path, keep_open)
        for index, path in enumerate(pickles):
            # Where submitit's start waits for it, up to 60 s: only now is the name known.
            path.rename(folder / f"{job_id}_{index}_submitted.pkl")
        script_path.rename(folder / f"{job_id}_submission.sh")
    finally:
        for path in (*pickles, script_path):
            path.unlink(missing_ok=True)
    return job_id


def restore_pickles(worker: Callable[[str], object], tasks: Sequence[str], job_id: str, *, folder: Path, walltime_min: int) -> None:
    """Give an array's tasks the pickles that its launcher died before naming: what has not started yet then starts as it should."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, task in enumerate(tasks):
        path = folder / f"{job_id}_{index}_submitted.pkl"
        if not path.exists():
            temp = folder / f".{secrets.token_hex(6)}-{index}.pkl"
            _dump(temp, worker, task, walltime_min)
            temp.rename(path)


class SbatchRefusedError(SubmissionError):
    """sbatch answered, and the answer is no: nothing is queued."""


def _dump(path: Path, worker: Callable[[str], object], task: str, walltime_min: int) -> None:
    from submitit.core.utils import DelayedSubmission

    delayed = DelayedSubmission(worker, task)
    delayed.set_timeout(walltime_min, 0)
    delayed.dump(path)


def sbatch_environment() -> dict[str, str]:
    """What sbatch is given, and jobs with it: this process's environment without its own allocation's, and without a token."""
    return {name: value for name, value in os.environ.items() if not _NOT_FOR_JOBS.match(name) and name != "SLURM_JWT"}


def _sbatch(script_path: Path, keep_open: Sequence[int] = ()) -> str:
    environ = sbatch_environment()
    reply = call("sbatch", "--parsable", str(script_path), timeout_s=SUBMIT_TIMEOUT_S, env=environ, keep_open=keep_open)
    if reply.returncode is None:
        raise SubmissionError(f"sbatch: {reply.stderr}. Look with `squeue --me` before launching again: it may have been accepted.")
    if not reply.succeeded:
        raise SbatchRefusedError(
            f"sbatch refused (exit {reply.returncode}): {reply.stderr}\n"
            "Nothing was queued. Correct that and launch again, or say --local to train here."
        )
    found = re.match(r"(\d+)(;|\s|$)", reply.stdout)
    if found is None:
        raise SubmissionError(f"sbatch answered {reply.stdout!r}, which holds no job id. Look with `squeue --me`.")
    return found[1]


# --- looking ---


def own_job_id(environ: Mapping[str, str]) -> str | None:
    """This task's job id in the form that names nothing else: the raw id of one array task names the whole array."""
    array_id, index = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array_id}_{index}" if array_id and index else environ.get("SLURM_JOB_ID") or None


def restart_count(environ: Mapping[str, str]) -> int:
    """How often Slurm has restarted this job; the variable is absent the first time."""
    text = environ.get("SLURM_RESTART_COUNT") or ""
    return int(text) if text.isascii() and text.isdigit() else 0


def job_facts(job_id: str) -> JobFacts | None:
    """What Slurm says of one job or array task now; None if it does not answer or does not know it."""
    reply = _insist("scontrol", "show", "job", job_id)
    return parse_job(reply.stdout) if reply.succeeded else None


def _insist(*args: str) -> Reply:
    """call, and once more if Slurm did not answer: it is slow when many jobs are evicted together."""
    environ = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    for left in reversed(range(TRIES)):
        reply = call(*args, env=environ)
        if reply.succeeded or not left or "Invalid job id" in reply.stderr:
            break
    return reply


def parse_job(text: str) -> JobFacts | None:
    """The facts in the first record of `scontrol show job`; None where there is none."""
    record = text.strip().split("\n\n")[0]
    # The first occurrence of each: what a user can write freely (JobName apart) comes after.
    value = {key: found[1] for key in _KEYS if (found := re.search(rf"(?:^|\s){key}=(\S*)", record))}
    if "JobState" not in value:
        return None
    array_id, index = value.get("ArrayJobId"), value.get("ArrayTaskId")
    return JobFacts(
        job_id=f"{array_id}_{index}" if array_id and index else value["JobId"],
        state=value["JobState"],
        reason=value.get("Reason", "None"),
        restarts=int(value.get("Restarts", "0")),
        start_time=_unix_time(value.get("StartTime")),
        end_time=_unix_time(value.get("EndTime")),
        preempt_time=_unix_time(value.get("PreemptTime")),
    )


_KEYS = ("JobId", "ArrayJobId", "ArrayTaskId", "JobState", "Reason", "Restarts", "StartTime", "EndTime", "PreemptTime")


def _unix_time(text: str | None) -> float | None:
    """Slurm prints local time without a zone; None, Unknown and N/A are no time."""
    try:
        return time.mktime(time.strptime(text or "", "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


def is_job_listed(job_id: str) -> bool | None:
    """True: queued, running or completing. False: Slurm answered and it is none of these. None: no answer, which proves nothing."""
    reply = call("scontrol", "show", "job", job_id, timeout_s=20)
    if reply.succeeded:
        facts = parse_job(reply.stdout)
        return None if facts is None else facts.state.split("+")[0] in ACTIVE_STATES
    if reply.returncode is not None and "Invalid job id" in reply.stderr:
        return False
    return None


@dataclass(frozen=True, kw_only=True)
class ListedJob:
    """One job or array task in the queue."""

    job_id: str  # "123" or "123_4"
    name: str
    state: str
    reason: str
    start: float | None = None  # unix time: when it started, or while it is pending what Slurm expects


def listed_jobs() -> dict[str, ListedJob] | None:
    """Every queued or running job of this user, arrays taken apart, by job id; None if Slurm does not answer."""
    environ = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    reply = call("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%S|%j", timeout_s=30, env=environ)
    if not reply.succeeded:
        return None
    rows = [line.split("|", 4) for line in reply.stdout.splitlines() if line.count("|") >= 4]
    return {row[0]: ListedJob(job_id=row[0], state=row[1], reason=row[2], start=_unix_time(row[3]), name=row[4]) for row in rows}


def requeue(job_id: str) -> str | None:
    """Put a job back into the queue; None on success, else what Slurm said. Within a second of success the caller is killed."""
    reply = _insist("scontrol", "requeue", job_id)
    return None if reply.succeeded else reply.stderr or f"scontrol requeue exited {reply.returncode}"
