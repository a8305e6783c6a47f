"""Who still works in a sweep's folder: jobs in the queue, launchers, mirrors, and owners of runs whose end nobody has written.

For hpc.move, hpc.archive and hpc.clean, which must not take a file away from anybody. Looks; changes nothing. One invariant: what nobody
can answer counts as somebody, and is said together with what to check.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hpc import locks, queues, slurm, trials
from hpc.paths import Plan, Submission, Submissions, SweepFolder
from seresnet import claims
from seresnet.attempts import Claim, Owner
from seresnet.errors import ConfigError, SubmissionError
from seresnet.run_folder import RunFolder, is_finished

#: As long as a claimant watches a beat (docs/adr/0006): no shorter look proves that an owner elsewhere is gone.
WATCH_S = 90.0
_SHOWN = 10

Say = Callable[[str], None]


def users(sweep: SweepFolder, plan: Plan, *, say: Say = print, watch_s: float = WATCH_S) -> list[str]:
    """One line for each that may still write into the folder; empty if nobody does. Takes watch_s where only beats can tell."""
    found = [*_jobs(sweep, plan), *_launchers(sweep), *_mirrors(sweep)]
    # The quick answers first: who is refused anyway need not wait for beats.
    return found or _owners(sweep, say, watch_s)


def refuse_users(sweep: SweepFolder, plan: Plan, done: str) -> None:
    """Raise SubmissionError, naming each of them, if anybody may still write. done: what was not done, as "archived"."""
    if found := users(sweep, plan):
        raise SubmissionError("\n".join([f"{sweep.path} is in use. Nothing was {done}.", *(f"  {line}" for line in found)]))


# --- the scheduler ---


def _jobs(sweep: SweepFolder, plan: Plan) -> Iterator[str]:
    """Listed jobs of the sweep, and submissions of which nobody can say that they are over."""
    open_tasks = {task for task, ids in plan.tasks.items() if any(not _is_done(sweep.run_folder(run_id, plan)) for run_id in ids)}
    sent = [entry for entry in _submissions(sweep, plan) if entry.mode == "slurm" and entry.state != "done"]
    begun = sorted(sweep.logs.glob("begun-*.json"))
    tests = sorted(path.stem for path in sweep.trials.glob("*.json") if not path.stem.endswith(".end")) if sweep.trials.is_dir() else []
    if not (sent or begun or tests):
        return
    jobs = slurm.listed_jobs()
    if jobs is not None:
        yield from _listed(sweep, plan, jobs, begun)
    cluster = queues.this_cluster() if jobs is not None else None
    for entry in sent:
        if open_tasks.intersection(entry.tasks) and (doubt := _doubt(entry.cluster, jobs, cluster)):
            yield f"submission {entry.id}{f', job {entry.job_id}' if entry.job_id else ''}: {doubt}"
    for path in begun:
        where, _, job_id = path.stem.removeprefix("begun-").rpartition("-")
        if open_tasks and (doubt := _doubt(where, jobs, cluster)):
            yield f"job {job_id} (sbatch/train.sh): {doubt}"
    for name in tests:
        if jobs is None and sent and not trials.read_outcomes(sweep, f"{trials.PREFIX}{name}"):
            yield f"{name}: squeue does not answer, so nobody knows whether this trial is still queued. Ask where `squeue --me` works."


def _listed(sweep: SweepFolder, plan: Plan, jobs: dict[str, slurm.ListedJob], begun: Sequence[Path]) -> Iterator[str]:
    prefix, numbers = queues.job_name(plan, ""), {path.stem.rpartition("-")[2] for path in begun}
    mine = [job for job in jobs.values() if job.name.startswith(prefix) or job.job_id in numbers]
    for job in mine[:_SHOWN]:
        yield f"job {job.job_id} ({job.name}) is {job.state}"
    if len(mine) > _SHOWN:
        yield f"and {len(mine) - _SHOWN} more of its jobs"


def _doubt(sent_to: str | None, jobs: object, cluster: str | None) -> str | None:
    """Why nobody can say that what was sent to this cluster, and is not finished, is over."""
    if jobs is None:
        return "squeue does not answer, so nobody knows whether it is over. Type this where `squeue --me` works and lists no job of it."
    if sent_to is None or sent_to.lower() == (cluster or "").lower():
        return None
    return f"it went to cluster {sent_to}, and squeue here answers for {cluster or 'another'}. Type this on a login node of {sent_to}."


def _submissions(sweep: SweepFolder, plan: Plan) -> list[Submission]:
    known = Submissions.read(sweep).submissions
    return [*known, *queues.forgotten(sweep, plan, known)]


def _is_done(folder: RunFolder) -> bool:
    try:
        return is_finished(folder)
    except (ConfigError, OSError):
        return False


# --- this machine, as far as locks reach ---


def _launchers(sweep: SweepFolder) -> Iterator[str]:
    for path in sorted(sweep.logs.glob("local-*.lock")):
        if locks.is_held(path):
            yield f"a launcher trains submission {path.stem.removeprefix('local-')} on this machine. Stop it with Ctrl-C, or wait."


def _mirrors(sweep: SweepFolder) -> Iterator[str]:
    for path in sorted(sweep.path.glob("*/wandb/*.lock")):
        if locks.is_held(path):
            yield f"{path.parent.parent.name}: python -m hpc.mirror publishes it right now. Wait for it."


# --- owners ---


def _owners(sweep: SweepFolder, say: Say, watch_s: float) -> list[str]:
    """Runs, set-aside ones and trials among them, whose last attempt has no end and whose owner may live."""
    here, doubtful, found = claims.this_process(), [], []
    for place in sorted((*sweep.path.glob("*/attempts"), *sweep.trials.glob("*/attempts"))):
        folder = RunFolder(path=place.parent)
        claim = claims.newest_claim(folder)
        if claim is None or claims.read_end(folder, claim.generation) is not None:
            continue
        lives = None if claim.owner is None else _lives(claim.owner, here)
        if lives:
            found.append(f"{folder.path.name}: {claim.owner} trains it. Stop it, or wait until it ends.")
        elif lives is None:
            doubtful.append((folder, claim))
    return found or [_of_beat(folder, claim) for folder, claim in _beating(doubtful, say, watch_s)]


def _lives(owner: Owner, here: Owner) -> bool | None:
    """By its process, where that can be seen from here, or by the scheduler; None: neither knows."""
    places = [(each.host, each.boot_id, each.pid_namespace) for each in (owner, here)]
    if places[0] == places[1] and None not in places[0]:
        return not claims.is_dead(owner.pid, owner.process_started)
    job_id = owner.array_job_id or owner.raw_job_id
    if job_id is None or owner.cluster is None or owner.cluster != queues.this_cluster():
        return None
    return slurm.is_job_listed(job_id)


def _beating(doubtful: Sequence[tuple[RunFolder, Claim]], say: Say, watch_s: float) -> list[tuple[RunFolder, Claim]]:
    """Those whose beat moves, or that end or are claimed anew, while we watch; all at once."""
    if not doubtful:
        return []
    say(f"{len(doubtful)} of its runs ended without a word: watching for {watch_s:.0f} s whether anybody is still there")
    before = [_trace(folder, claim) for folder, claim in doubtful]
    limit = time.monotonic() + watch_s
    while time.monotonic() < limit:
        time.sleep(min(1.0, watch_s))
        if moved := [pair for pair, seen in zip(doubtful, before, strict=True) if _trace(*pair) != seen]:
            return moved
    return []


def _trace(folder: RunFolder, claim: Claim) -> tuple[int, bytes]:
    try:
        beat = folder.beat(claim.generation).read_bytes()
    except FileNotFoundError:
        beat = b""
    return claims.newest_generation(folder), beat


def _of_beat(folder: RunFolder, claim: Claim) -> str:
    return f"{folder.path.name}: {claim.owner or 'an owner whose claim cannot be read'} is alive, its beat moves. Stop it, or wait."
