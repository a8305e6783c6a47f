"""altered.json: tasks that were running when --alter came, and what they get once they wait again.

Slurm refuses a running job these changes, and a requeued one as long as a process of it lives (seen: "Job has already finished"), so no
task can alter itself. Whoever looks next does it: a running sibling once in a while, a launch, another --alter; docs/adr/0011 has what
was tried. One invariant: a task that runs is never asked, so that a shorter walltime cannot end it.
"""

import contextlib
import logging
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hpc import locks, slurm, slurm_control
from hpc.paths import SweepFolder
from seresnet.durable import parse_json, write_json_durably

log = logging.getLogger("hpc.supervisor")

#: A requeued job waits for two minutes on most clusters (the life of its credential); below that one look is enough.
RENEW_EVERY_S = 30.0
_LOCK_WAIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Left:
    """The tasks of one array that still have old values."""

    job_name: str  # another cluster may give the same id to somebody else's job
    values: Mapping[str, str]  # as scontrol update takes them
    tasks: tuple[int, ...]


def left(sweep: SweepFolder) -> dict[str, Left]:
    """Job id -> what is left of it; empty where nothing is, or nobody can read it."""
    try:
        value = parse_json(_path(sweep).read_text())
        return {job_id: Left(**{**entry, "tasks": tuple(entry["tasks"])}) for job_id, entry in value.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def remember(sweep: SweepFolder, job_id: str, job_name: str, values: Mapping[str, str], tasks: Sequence[int]) -> None:
    """Note tasks of an array that get these values later; those noted earlier get them as well. Raises OSError."""
    with locks.holding(_lock(sweep), wait_s=_LOCK_WAIT_S):
        known = left(sweep)
        before = known.get(job_id, Left(job_name=job_name, values={}, tasks=()))
        entry = Left(job_name=job_name, values={**before.values, **values}, tasks=tuple(sorted({*before.tasks, *tasks})))
        _write(sweep, {**known, job_id: entry})


def renew(sweep: SweepFolder) -> list[str]:
    """Alter what was left and waits by now; lines to log. Only one process of the sweep at a time asks Slurm; raises OSError."""
    if not _path(sweep).exists():
        return []
    with locks.holding(_lock(sweep)) as is_mine:
        jobs = slurm.listed_jobs() if is_mine else None
        if jobs is None:
            return []
        lines: list[str] = []
        still = {}
        for job_id, entry in left(sweep).items():
            done, said = _renew(job_id, entry, jobs)
            lines += said
            still[job_id] = Left(job_name=entry.job_name, values=entry.values, tasks=tuple(i for i in entry.tasks if i not in done))
        _write(sweep, still)
        return lines


def _renew(job_id: str, entry: Left, jobs: Mapping[str, slurm.ListedJob]) -> tuple[Collection[int], list[str]]:
    """The tasks that are done with, and what to say."""
    listed = {index: jobs.get(f"{job_id}_{index}") for index in entry.tasks}
    gone = [index for index, job in listed.items() if job is None or job.name != entry.job_name]
    waiting = [index for index, job in listed.items() if index not in gone and job is not None and job.state == "PENDING"]
    if not waiting:
        return gone, []
    jobs_text, what = slurm_control.tasks_of(job_id, waiting), " ".join(f"{key}={value}" for key, value in entry.values.items())
    if refusals := slurm_control.update(jobs_text, entry.values):
        # Most likely they have just started; else they are refused again, and --alter said why.
        return gone, [f"not altered: {text}" for text in refusals]
    return [*gone, *waiting], [f"altered {jobs_text} to {what}"]


@contextlib.contextmanager
def renewing(sweep: SweepFolder) -> Iterator[None]:
    """For the time of a task: once in a while alter siblings that wait again. Costs one look at a file that is rarely there."""
    done = threading.Event()
    thread = threading.Thread(target=_renew_until, args=(sweep, done), name="renewing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()  # not joined: a scheduler that is slow must not cost a grace


def _renew_until(sweep: SweepFolder, done: threading.Event) -> None:
    while not done.wait(RENEW_EVERY_S):
        try:
            for line in renew(sweep):
                log.info("renewal: %s", line)
        except Exception as error:  # a thread of the supervisor's: nothing in here may end the task
            log.warning("renewal: %s", error)


def _write(sweep: SweepFolder, entries: Mapping[str, Left]) -> None:
    kept = {job_id: asdict(entry) for job_id, entry in entries.items() if entry.tasks}
    if kept:
        write_json_durably(_path(sweep), kept)
    else:
        _path(sweep).unlink(missing_ok=True)


def _path(sweep: SweepFolder) -> Path:
    return sweep.path / "altered.json"


def _lock(sweep: SweepFolder) -> Path:
    return sweep.path / ".altered.lock"
