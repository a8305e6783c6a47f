"""The only place that talks to SLURM: submit an array, read facts, requeue.

submitit makes the sbatch text and the pickles; its signal handling, states and timeouts are not used. Every call has a time limit,
an exit status that is looked at and stderr that is shown. One invariant: no stop signal that hits this process group reaches a client.
"""

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.requeue import JobFacts
from hpc.shapes import TaskShape
from hpc.site import Site
from seresnet.errors import ConfigError, SubmissionError
from seresnet.signals import STOP_SIGNALS

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
#: Options of sbatch that every script sets, beside those that a site's other keys ask for.
_OURS = ("array", "output", "error", "chdir", "workdir", "signal", "no-requeue", "ntasks", "wrap", "input")


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


def call(*args: str, timeout_s: float = QUICK_TIMEOUT_S, env: Mapping[str, str] | None = None) -> Reply:
    """Run one client of Slurm; never raises for what it answers."""
    try:
        with stop_signals_blocked():
            process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    except OSError as error:
        return Reply(returncode=None, stdout="", stderr=str(error))
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Reply(returncode=None, stdout="", stderr=f"{args[0]} did not answer within {timeout_s:.0f} s")
    return Reply(returncode=process.returncode, stdout=out, stderr=err.strip())


# --- submitting ---


def script(
    folder: Path,
    code_dir: Path,
    site: Site,
    shape: TaskShape,
    job_name: str,
    tasks: int,
    *,
    dependency: str | None = None,
    parallel: int | None = None,
) -> str:
    """The sbatch script of an array of `tasks` tasks: what --dry-run prints and submit_array sends.

    dependency: as sbatch takes it, e.g. "afterok:123". parallel: tasks at a time, the smaller of it and the site's own cap counts.

    Raises ConfigError for an option that we set ourselves or that would not reach Slurm as it is meant.
    """
    # Here and not above: importing submitit takes longer than `launch --help` may.
    from submitit.slurm.slurm import _make_sbatch_string

    command = f"{_guarded(site.python or shlex.quote(sys.executable))} -u -m submitit.core._submit {shlex.quote(str(folder.absolute()))}"
    parameters = _parameters(code_dir, site, shape, job_name)
    if dependency:
        # Else the array of a failed smoke test would wait for ever.
        parameters["additional_parameters"] |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    if caps := [cap for cap in (parallel, site.array_parallelism) if cap]:
        parameters["array_parallelism"] = min(caps)
    _check_options(site, parameters, folder)
    text = _make_sbatch_string(command, folder.absolute(), **parameters, map_count=tasks)
    assert isinstance(text, str)
    return text


def _guarded(python: str) -> str:
    """A command that starts python with the stop signals ignored until the worker's handlers are in.

    By default they kill, and submitit's start takes a second. What was missed meanwhile the supervisor sees when it looks at its job.
    """
    return f"""bash -c 'trap "" TERM USR1 USR2; exec "$@"' task {python}"""


def _parameters(code_dir: Path, site: Site, shape: TaskShape, job_name: str) -> dict[str, Any]:
    gpu = f"{site.gpu_type}:{shape.gpus}" if site.gpu_type else str(shape.gpus)
    cpus = site.cpus_per_rank * shape.processes
    more = {name: value for name, value in site.sbatch.items() if value is not False}
    more |= {"requeue": True, "open-mode": "append", "chdir": str(code_dir.absolute())}
    wanted: dict[str, Any] = {
        "job_name": job_name,
        "account": site.account,
        "partition": site.partition,
        "qos": site.qos,
        "constraint": site.constraint,
        "comment": site.comment,
        "exclude": site.exclude,
        "gres": f"gpu:{gpu}" if shape.gpus and site.gpu_request == "gres" else None,
        "gpus_per_node": gpu if shape.gpus and site.gpu_request == "gpus_per_node" else None,
        "mem": f"{site.mem_gb_per_rank * shape.processes}G" if site.mem_gb_per_rank else None,
        "setup": _before(site),
        # The same end as sbatch/train.sh: a task in a container has no scontrol and cannot requeue itself.
        "teardown": [f"end_task $? {site.signal_delay_s}"],
    }
    return {
        **{name: value for name, value in wanted.items() if value is not None},
        "nodes": shape.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        # Since 22.05 srun does not inherit it from sbatch.
        "srun_args": [f"--cpus-per-task={cpus}"],
        "time": site.walltime_min,
        "signal_delay_s": site.signal_delay_s,
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": more,
    }


def _before(site: Site) -> list[str]:
    """Shell lines before srun, in the code snapshot. The batch shell outlives the stop signals, or nobody could look afterwards."""
    rule = "source hpc/requeue.sh || { echo 'no code snapshot in '\"$PWD\" >&2; exit 78; }"
    setup = ["set -e", *site.setup, "set +e"] if site.setup else []
    # `python -m` must find the snapshot, which is our working directory.
    return ["trap : TERM USR1 USR2", rule, *setup, "unset PYTHONSAFEPATH"]


def _check_options(site: Site, parameters: Mapping[str, Any], folder: Path) -> None:
    faults = []
    ours = {name.replace("_", "-") for name in parameters if name not in ("setup", "teardown")} | {"requeue", "open-mode"} | {*_OURS}
    for name in site.sbatch:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            faults.append(f"site.sbatch: {name!r} is not a long option of sbatch. Write it as `mail-type: END`.")
        # sbatch takes any unambiguous beginning of an option for the option.
        elif taken := next((known for known in sorted(ours) if known.startswith(name.replace("_", "-"))), None):
            faults.append(f"site.sbatch.{name}: --{taken} is set by the toolkit. Remove it, or use the site's own key for it.")
    if "%" in str(folder.absolute()):
        faults.append(f"{folder.absolute()}: Slurm would expand the % in the names of its logs. Use a runs folder without one.")
    texts = {**parameters, **site.sbatch, "python": site.python, "chdir": parameters["additional_parameters"]["chdir"], "folder": folder}
    for name, value in texts.items():
        if isinstance(value, str | Path) and not str(value).isprintable():
            faults.append(f"site {site.name}: {name}: {str(value)!r} has a line break or a control character. Remove it.")
    if faults:
        raise ConfigError("\n".join(faults))


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
) -> str:
    """Submit one array whose task i calls worker(tasks[i]) with code_dir as working directory; returns the array's job id.

    Also a single task is an array, so that every task is known as JOB_INDEX. Pickles and logs go into folder, which compute nodes must
    see. Raises ConfigError (see script), and SubmissionError with Slurm's own words; nothing is queued then, unless the text says that
    sbatch did not answer.
    """
    assert tasks, "an array of no tasks"
    if shutil.which("sbatch") is None:
        raise SubmissionError("sbatch is not on PATH. Launch where it is, or say --local to run on this machine.")
    text = script(folder, code_dir, site, shape, job_name, len(tasks), dependency=dependency, parallel=parallel)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = secrets.token_hex(6)
    pickles = [folder / f".{stamp}-{index}.pkl" for index in range(len(tasks))]
    script_path = folder / f".{stamp}.sh"
    script_path.write_text(text)
    try:
        for path, task in zip(pickles, tasks, strict=True):
            _dump(path, worker, task, site.walltime_min)
        job_id = _sbatch(script_path)
        for index, path in enumerate(pickles):
            # Where submitit's start waits for it, up to 60 s: only now is the name known.
            path.rename(folder / f"{job_id}_{index}_submitted.pkl")
        script_path.rename(folder / f"{job_id}_submission.sh")
    finally:
        for path in (*pickles, script_path):
            path.unlink(missing_ok=True)
    return job_id


class SbatchRefusedError(SubmissionError):
    """sbatch answered, and the answer is no: nothing is queued."""


def _dump(path: Path, worker: Callable[[str], object], task: str, walltime_min: int) -> None:
    from submitit.core.utils import DelayedSubmission

    delayed = DelayedSubmission(worker, task)
    delayed.set_timeout(walltime_min, 0)
    delayed.dump(path)


def _sbatch(script_path: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if not _NOT_FOR_JOBS.match(name) and name != "SLURM_JWT"}
    reply = call("sbatch", "--parsable", str(script_path), timeout_s=SUBMIT_TIMEOUT_S, env=environ)
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
    return int(environ.get("SLURM_RESTART_COUNT") or 0)


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


def listed_jobs() -> dict[str, ListedJob] | None:
    """Every queued or running job of this user, arrays taken apart, by job id; None if Slurm does not answer."""
    reply = call("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%j", timeout_s=30)
    if not reply.succeeded:
        return None
    rows = [line.split("|", 3) for line in reply.stdout.splitlines() if line.count("|") >= 3]
    return {row[0]: ListedJob(job_id=row[0], state=row[1], reason=row[2], name=row[3]) for row in rows}


def requeue(job_id: str) -> str | None:
    """Put a job back into the queue; None on success, else what Slurm said. Within a second of success the caller is killed."""
    reply = _insist("scontrol", "requeue", job_id)
    return None if reply.succeeded else reply.stderr or f"scontrol requeue exited {reply.returncode}"
