"""Who owns a run: claiming it, proving that an earlier owner is gone, and the heart that shows that this one is not.

The records themselves are attempts.py's. One invariant: a live-looking claim is taken over only with proof, and a generation has one
owner; an owner that is taken over by mistake is fenced by the higher number, not harmed.
"""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from seresnet import attempts, checkpoint_files
from seresnet.attempts import Claim, End, Owner, newest_claim, newest_generation, read_claim, read_claims, read_end, read_owner, write_end
from seresnet.durable import DISK, Files
from seresnet.errors import OwnedElsewhereError
from seresnet.process_identity import boot_id, is_dead, pid_namespace, process_state
from seresnet.run_folder import RunFolder

__all__ = [
    "Claim",
    "End",
    "Heart",
    "Owner",
    "Scheduler",
    "acquire",
    "is_alive",
    "is_dead",
    "newest_claim",
    "newest_generation",
    "process_state",
    "read_claim",
    "read_claims",
    "read_end",
    "read_owner",
    "refuse_if_fenced",
    "this_process",
    "write_end",
]

log = logging.getLogger(__name__)

#: True: it still lists the owner's job. False: it answered and does not. None: no answer, or the owner is not its job.
Scheduler = Callable[[Owner], bool | None]
#: Where a new attempt starts from, as a checkpoint's file name; None = from the beginning. Raises CheckpointError.
ChooseBase = Callable[[RunFolder], str | None]


def this_process(environ: Mapping[str, str] = os.environ, *, task_try: int = 0, facts: Mapping[str, object] | None = None) -> Owner:
    """This process as the owner of a run. task_try must grow when one process or task claims the same run again."""
    array, index = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    state = process_state(os.getpid())
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        boot_id=boot_id(),
        pid_namespace=pid_namespace(),
        process_started=state and state[1],
        cluster=environ.get("SLURM_CLUSTER_NAME"),
        raw_job_id=environ.get("SLURM_JOB_ID"),
        array_job_id=f"{array}_{index}" if array and index else None,
        restart_count=_count(environ.get("SLURM_RESTART_COUNT")),
        task_try=task_try,
        started=time.time(),
        facts=dict(facts or {}),
    )


def acquire(
    folder: RunFolder,
    owner: Owner,
    scheduler: Scheduler | None = None,
    base: ChooseBase | None = None,
    observe_s: float = 90.0,
    *,
    finished: Callable[[RunFolder], bool] | None = None,
    poll_s: float = 1.0,
    files: Files = DISK,
) -> Claim:
    """Claim the run, or raise OwnedElsewhereError saying who has it, where and since when.

    Blocks for up to observe_s, and only when nothing but a standing beat could prove that the last owner is gone. base: unset = the
    newest trusted checkpoint. finished: asked once the last owner is proved gone, because it may have finished the run while we
    watched it. Writes the ends that earlier owners did not get to write. Raises CheckpointError (nothing is claimed) when there are
    checkpoints and none can be trusted, and OSError.
    """
    # The number is fixed by what was seen before the proof: whoever claims meanwhile takes it, and we lose. Looked up later, it
    # would be one above a new owner whom nothing proves gone (seen: twice in six runs of 20 races, on a loaded machine).
    in_use = _highest_number(folder, files)
    last = newest_claim(folder, files)
    generation = 1 + max(in_use, last.generation if last else 0)
    proof = None if last is None else _proof_of_end(folder, last, owner, scheduler, observe_s, poll_s, files)
    if finished is not None and finished(folder):
        raise OwnedElsewhereError(f"{folder.path}: another attempt has finished the run meanwhile. There is nothing left to do.")
    chosen = base(folder) if base is not None else _newest_trusted(folder, files)
    claim = Claim(generation=generation, owner=owner, base=chosen)
    _refuse_outdated_proof(folder, last, proof, files)
    if not attempts.publish_claim(folder, claim, files):
        raise _owned_elsewhere(folder, attempts.newest_claim(folder, files) or claim, "it was faster by a moment")
    log.info("run_claimed generation=%d base=%s proof=%s", claim.generation, claim.base, proof and proof.seen)
    try:
        refuse_if_fenced(folder, claim.generation, files)  # the number was free below a newer one: somebody had skipped it
        _infer_ends(folder, claim, last, proof, files)
        attempts.delete_leftover_temps(folder, claim.generation, files)
    except OSError as error:  # the run is ours all the same
        log.warning("attempts_not_tidied error=%s", error)
    return claim


def refuse_if_fenced(folder: RunFolder, generation: int, files: Files = DISK) -> None:
    """Raise OwnedElsewhereError if a newer attempt owns the run: for the moment before something of lasting effect is written."""
    try:
        newest = newest_generation(folder, files)
    except OSError as error:  # proves nothing, and the lower number in what is written protects the newer owner anyway
        log.warning("cannot_look_for_newer_owner error=%s", error)
        return
    if newest > generation:
        raise OwnedElsewhereError(f"{folder.path}: generation {newest} owns the run now, generation {generation} writes no more.")


def proof_of_end(folder: RunFolder, observe_s: float = 90.0, *, poll_s: float = 1.0, files: Files = DISK) -> tuple[int, str] | None:
    """(newest generation, why its owner is gone), without claiming; None before the first claim. Raises OwnedElsewhereError, OSError."""
    last = newest_claim(folder, files)
    return None if last is None else (last.generation, _proof_of_end(folder, last, this_process(), None, observe_s, poll_s, files).seen)


def is_alive(folder: RunFolder, generation: int, within_s: float = 60.0) -> bool:
    """Whether this attempt seems to live, for display: its beat is young by the clocks of two machines. Proves nothing."""
    if read_end(folder, generation) is not None:
        return False
    try:
        age_s = time.time() - folder.beat(generation).stat().st_mtime
    except OSError:
        return False
    return abs(age_s) < within_s  # a clock that is an hour ahead must not keep the dead alive for an hour


class Heart:
    """A thread of rank 0 that shows that the owner lives and looks for a newer one.

    Every interval_s it writes a higher counter to attempts/NNNNNN.beat, and calls on_fenced, once and from its own thread, when a higher
    generation exists. Start it before anything slow: an owner without a beat is taken over after 90 s.
    """

    def __init__(self, folder: RunFolder, generation: int, on_fenced: Callable[[], None], interval_s: float = 10.0) -> None:
        self._folder, self._generation, self._on_fenced, self._interval_s = folder, generation, on_fenced, interval_s
        self._stopped = threading.Event()
        self._missed = 0  # looks in a row that found no folder
        self._count = _last_count(folder, generation)  # carry on: a restarted rank's first beat must be a change
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> "Heart":
        """The first beat is on disk when this returns (errors are logged)."""
        self._beat()
        self._thread.start()
        return self

    def stop(self) -> None:
        """No more beats or calls of on_fenced once this returns; a thread stuck in a dead file system is waited for 5 s only."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.is_set():
            if self._is_fenced():
                log.error("fenced generation=%d", self._generation)
                self._stopped.set()
                self._on_fenced()
                return
            if self._stopped.wait(self._interval_s):
                return
            self._beat()

    def _is_fenced(self) -> bool:
        try:
            return newest_generation(self._folder) > self._generation or self._has_lost_folder()
        except OSError as error:
            log.warning("heart_cannot_look error=%s", error)
            return False

    def _has_lost_folder(self) -> bool:
        """Whether the run's folder is gone at two looks in a row: it was moved or removed, and nothing that is trained is kept."""
        try:
            os.stat(self._folder.path)  # noqa: PTH116 - exists() takes a stale handle for an absence on some versions
            self._missed = 0
        except FileNotFoundError:
            self._missed += 1
        return self._missed > 1

    def _beat(self) -> None:
        self._count += 1
        try:
            # In place and of one width: overwriting needs no space, so that a full disk does not stop the heart. Not durable.
            handle = os.open(self._folder.beat(self._generation), os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.write(handle, b"%020d\n" % self._count)
            finally:
                os.close(handle)
        except OSError as error:
            log.warning("heart_cannot_beat error=%s", error)


def _last_count(folder: RunFolder, generation: int) -> int:
    try:
        return int(_read_beat(folder, generation) or 0)
    except (OSError, ValueError):
        return 0


@dataclass(frozen=True, kw_only=True)
class _Proof:
    """Why an owner is gone."""

    ending: str  # that it speaks for
    seen: str
    standing_beat: tuple[bytes | None] | None = None  # where nothing else proves it: the beat, None = there was never one


def _proof_of_end(
    folder: RunFolder, last: Claim, owner: Owner, scheduler: Scheduler | None, observe_s: float, poll_s: float, files: Files
) -> _Proof:
    """Why the last owner is gone, cheapest first; raises OwnedElsewhereError if it may live."""
    proof = _recorded_end(folder, last, files)
    if proof is None and last.owner is not None:
        proof = _earlier_attempt(last.owner, owner) or _dead_process(last.owner, owner)
        if proof is None and scheduler is not None and scheduler(last.owner) is False:
            proof = _Proof(ending="unknown", seen="the scheduler answered and does not list its job")
    return proof or _watch_beat(folder, last, owner, observe_s, poll_s, files)


def _recorded_end(folder: RunFolder, last: Claim, files: Files) -> _Proof | None:
    # Not result.json: where a finished run is carried on to more epochs, the old result lies beside a living owner.
    end = read_end(folder, last.generation, files)
    return None if end is None else _Proof(ending=end.ending, seen="it wrote its end")


def _earlier_attempt(last: Owner, owner: Owner) -> _Proof | None:
    """Slurm does not start a job again, nor a process its next try, before the last one is over."""
    is_same_job = last.raw_job_id is not None and (last.cluster, last.raw_job_id) == (owner.cluster, owner.raw_job_id)
    if is_same_job and owner.restart_count > last.restart_count:
        return _Proof(ending="node_failed", seen=f"same job, restart {owner.restart_count} after {last.restart_count}")
    # Of one process only: two of one job (in an salloc, say) count their tries each for itself, and may both live.
    if _same_process(last, owner) and owner.task_try > last.task_try:
        return _Proof(ending="killed", seen=f"same process, try {owner.task_try} after {last.task_try}")
    return None


def _same_process(last: Owner, owner: Owner) -> bool:
    return _sees_its_processes(last, owner) and (last.pid, last.process_started) == (owner.pid, owner.process_started)


def _sees_its_processes(last: Owner, owner: Owner) -> bool:
    """Whether a pid means the same to both: same host, same boot, same PID namespace, all three known."""
    ours, theirs = (owner.host, owner.boot_id, owner.pid_namespace), (last.host, last.boot_id, last.pid_namespace)
    return ours == theirs and None not in ours


def _dead_process(last: Owner, owner: Owner) -> _Proof | None:
    if _sees_its_processes(last, owner) and is_dead(last.pid, last.process_started):
        return _Proof(ending="killed", seen=f"its process {last.pid} on this host is dead")
    return None


def _watch_beat(folder: RunFolder, last: Claim, owner: Owner, observe_s: float, poll_s: float, files: Files) -> _Proof:
    """Return once the beat has stood still for observe_s of watching; raise as soon as it moves."""
    # An error of reading is raised: it proves nothing, neither that the beat moves nor that it stands.
    first, watched_s, before = _read_beat(folder, last.generation, files), 0.0, time.monotonic()
    log.info("watching_beat generation=%d for_s=%.0f", last.generation, observe_s)
    while watched_s < observe_s:
        time.sleep(min(poll_s, observe_s - watched_s))
        now = time.monotonic()
        # Only time that we were looking counts: we may ourselves have been stopped for an hour.
        watched_s, before = watched_s + min(now - before, 2 * poll_s), now
        if newest_generation(folder, files) > last.generation:
            raise _owned_elsewhere(folder, newest_claim(folder, files) or last, "it was faster")
        proof = _recorded_end(folder, last, files)
        if proof is None and last.owner is not None:
            proof = _dead_process(last.owner, owner)
        if proof is not None:
            return proof
        if _read_beat(folder, last.generation, files) != first:
            raise _owned_elsewhere(folder, last, "its beat moved while we watched")
    return _Proof(ending="unknown", seen=f"its beat stood still for {observe_s:.0f} s", standing_beat=(first,))


def _read_beat(folder: RunFolder, generation: int, files: Files = DISK) -> bytes | None:
    try:
        return files.read(folder.beat(generation)).strip()
    except FileNotFoundError:
        return None


def _refuse_outdated_proof(folder: RunFolder, last: Claim | None, proof: _Proof | None, files: Files) -> None:
    """Look once more right before the claim: reading the checkpoints takes its time, and we may have been stopped for an hour."""
    if newest_generation(folder, files) > (last.generation if last else 0):
        newest = newest_claim(folder, files)
        assert newest is not None
        raise _owned_elsewhere(folder, newest, "it was faster")
    if last is None or proof is None or proof.standing_beat is None:
        return
    if proof.standing_beat != (_read_beat(folder, last.generation, files),):
        raise _owned_elsewhere(folder, last, "its beat moved again before we claimed")


def _owned_elsewhere(folder: RunFolder, last: Claim, why: str) -> OwnedElsewhereError:
    who = str(last.owner) if last.owner else "an owner whose claim cannot be read"
    return OwnedElsewhereError(
        f"{folder.path}: owned by generation {last.generation}, {who}; {why}. Wait until it ends, or stop it and start again."
    )


def _newest_trusted(folder: RunFolder, files: Files) -> str | None:
    name = checkpoint_files.newest_trusted(folder, files)
    return None if name is None else str(name)


def _infer_ends(folder: RunFolder, claim: Claim, last: Claim | None, proof: _Proof | None, files: Files) -> None:
    """Write the end records that are missing below this claim; what a rank said before it exited counts most."""
    for earlier in read_claims(folder, files):
        if earlier.generation >= claim.generation or read_end(folder, earlier.generation, files) is not None:
            continue
        ending, seen = ("unknown", "a later claim exists")
        if proof is not None and last is not None and earlier.generation == last.generation:
            ending, seen = proof.ending, proof.seen
        said = attempts.read_rank_exit(folder, earlier.generation, files=files)
        if isinstance(said.get("ending"), str):
            ending, seen = said["ending"], "its rank 0 said so before it exited"
        facts = {key: said[key] for key in ("reason", "step", "durable_step") if key in said}
        attempts.write_inferred_end(folder, earlier.generation, ending, files, proof=seen, by_generation=claim.generation, **facts)


def _highest_number(folder: RunFolder, files: Files) -> int:
    """Of files other than claims: where somebody has moved attempts/ away, an old file must never look newer than a new one."""
    places = ((folder.checkpoints, r"g(\d+)-s"), (folder.set_aside, r"g(\d+)-s"), (folder.metrics, r"g(\d+)\.jsonl"))
    found = (re.match(pattern, name) for place, pattern in places for name in files.names(place))
    return max((int(match[1]) for match in found if match), default=0)


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0
