"""Who owns a run: claiming it, proving that an earlier owner is gone, and the heart that shows that this one is not.

The records themselves are attempts.py's. One invariant: a live-looking claim is taken over only with proof, and a generation has one
owner; an owner that is taken over by mistake is fenced by the higher number, not harmed.
"""

import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from seresnet import attempts, checkpoint_files
from seresnet.attempts import Claim, End, Owner, newest_claim, newest_generation, read_claim, read_claims, read_end, read_owner, write_end
from seresnet.durable import DISK, Files
from seresnet.errors import OwnedElsewhereError
from seresnet.run_folder import RunFolder

__all__ = [
    "Claim",
    "End",
    "Heart",
    "Owner",
    "Scheduler",
    "acquire",
    "is_alive",
    "newest_claim",
    "newest_generation",
    "read_claim",
    "read_claims",
    "read_end",
    "read_owner",
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
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        process_started=state and state[1],
        cluster=environ.get("SLURM_CLUSTER_NAME"),
        raw_job_id=environ.get("SLURM_JOB_ID"),
        array_job_id=f"{array}_{index}" if array and index else None,
        restart_count=int(environ.get("SLURM_RESTART_COUNT") or 0),
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
    poll_s: float = 1.0,
    files: Files = DISK,
) -> Claim:
    """Claim the run, or raise OwnedElsewhereError saying who has it, where and since when.

    Blocks for up to observe_s, and only when nothing but a standing beat could prove that the last owner is gone. base: unset = the
    newest trusted checkpoint. Writes the ends that earlier owners did not get to write. Raises CheckpointError (nothing is claimed)
    when there are checkpoints and none can be trusted, and OSError.
    """
    # The number is fixed by what was seen before the proof: whoever claims meanwhile takes it, and we lose. Looked up later, it
    # would be one above a new owner whom nothing proves gone (seen: twice in six runs of 20 races, on a loaded machine).
    in_use = _highest_number(folder, files)
    last = newest_claim(folder, files)
    generation = 1 + max(in_use, last.generation if last else 0)
    proof = None if last is None else _proof_of_end(folder, last, owner, scheduler, observe_s, poll_s, files)
    choose = base or _newest_trusted
    claim = Claim(generation=generation, owner=owner, base=choose(folder))
    if not attempts.publish_claim(folder, claim, files):
        raise _owned_elsewhere(folder, attempts.newest_claim(folder, files) or claim, "it was faster by a moment")
    log.info("run_claimed generation=%d base=%s proof=%s", claim.generation, claim.base, proof and proof[1])
    try:
        _infer_ends(folder, claim, last, proof, files)
        attempts.delete_leftover_temps(folder, claim.generation, files)
    except OSError as error:  # the run is ours all the same
        log.warning("attempts_not_tidied error=%s", error)
    return claim


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
            return newest_generation(self._folder) > self._generation
        except OSError as error:
            log.warning("heart_cannot_look error=%s", error)
            return False

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


Proof = tuple[str, str]  # (ending that it speaks for, what was seen)


def _proof_of_end(
    folder: RunFolder, last: Claim, owner: Owner, scheduler: Scheduler | None, observe_s: float, poll_s: float, files: Files
) -> Proof:
    """Why the last owner is gone, cheapest first; raises OwnedElsewhereError if it may live."""
    proof = _recorded_end(folder, last, files)
    if proof is None and last.owner is not None:
        proof = _earlier_attempt(last.owner, owner) or _dead_process(last.owner, owner)
        if proof is None and scheduler is not None and scheduler(last.owner) is False:
            proof = ("unknown", "the scheduler answered and does not list its job")
    return proof or _watch_beat(folder, last, owner, observe_s, poll_s, files)


def _recorded_end(folder: RunFolder, last: Claim, files: Files) -> Proof | None:
    # Not result.json: where a finished run is carried on to more epochs, the old result lies beside a living owner.
    end = read_end(folder, last.generation, files)
    return None if end is None else (end.ending, "it wrote its end")


def _earlier_attempt(last: Owner, owner: Owner) -> Proof | None:
    """Slurm does not start a job again, nor a task its next try, before the last one is over."""
    if last.raw_job_id is not None and (last.cluster, last.raw_job_id) == (owner.cluster, owner.raw_job_id):
        if owner.restart_count > last.restart_count:
            return "node_failed", f"same job, restart {owner.restart_count} after {last.restart_count}"
        if owner.restart_count == last.restart_count and owner.task_try > last.task_try:
            return "killed", f"same job, try {owner.task_try} after {last.task_try}"
    if _same_process(last, owner) and owner.task_try > last.task_try:
        return "killed", f"same process, try {owner.task_try} after {last.task_try}"
    return None


def _same_process(last: Owner, owner: Owner) -> bool:
    return _sees_its_processes(last, owner) and (last.pid, last.process_started) == (owner.pid, owner.process_started)


def _sees_its_processes(last: Owner, owner: Owner) -> bool:
    """Whether a pid means the same to both: same host, same boot, same PID namespace, all three known."""
    ours, theirs = (owner.host, owner.boot_id, owner.pid_namespace), (last.host, last.boot_id, last.pid_namespace)
    return ours == theirs and None not in ours


def _dead_process(last: Owner, owner: Owner) -> Proof | None:
    if _sees_its_processes(last, owner) and is_dead(last.pid, last.process_started):
        return "killed", f"its process {last.pid} on this host is dead"
    return None


def is_dead(pid: int, started: str | None) -> bool:
    """Whether no process has this pid, or only one that began at another time, or a corpse that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it exists and is somebody else's
    state = process_state(pid)
    if state is None:
        return False
    return state[0] in "ZX" or (started is not None and state[1] != started)


def process_state(pid: int) -> tuple[str, str] | None:
    """(state letter, start time) of a process; the time means nothing but "the same or not". None where it cannot be told."""
    try:
        # The command's name, in parentheses, may hold spaces and parentheses: fields count from the last one. proc(5): 3 and 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError, ValueError):
        pass
    line = _output_of("ps", "-o", "stat=,lstart=", "-p", str(pid)) if sys.platform == "darwin" else None
    state, _, started = (line or "").partition(" ")
    return (state[0], started.strip()) if state else None


def _watch_beat(folder: RunFolder, last: Claim, owner: Owner, observe_s: float, poll_s: float, files: Files) -> Proof:
    """Return once the beat has stood still for observe_s of watching; raise as soon as it moves."""
    # An error of reading is raised: it proves nothing, neither that the beat moves nor that it stands.
    first, watched_s, before = _read_beat(folder, last.generation), 0.0, time.monotonic()
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
        if _read_beat(folder, last.generation) != first:
            raise _owned_elsewhere(folder, last, "its beat moved while we watched")
    return "unknown", f"its beat stood still for {observe_s:.0f} s"


def _read_beat(folder: RunFolder, generation: int) -> bytes | None:
    try:
        return folder.beat(generation).read_bytes().strip()
    except FileNotFoundError:
        return None


def _owned_elsewhere(folder: RunFolder, last: Claim, why: str) -> OwnedElsewhereError:
    who = str(last.owner) if last.owner else "an owner whose claim cannot be read"
    return OwnedElsewhereError(
        f"{folder.path}: owned by generation {last.generation}, {who}; {why}. Wait until it ends, or stop it and start again."
    )


def _newest_trusted(folder: RunFolder) -> str | None:
    name = checkpoint_files.newest_trusted(folder)
    return None if name is None else str(name)


def _infer_ends(folder: RunFolder, claim: Claim, last: Claim | None, proof: Proof | None, files: Files) -> None:
    """Write the end records that are missing below this claim; what a rank said before it exited counts most."""
    for earlier in read_claims(folder, files):
        if earlier.generation >= claim.generation or read_end(folder, earlier.generation, files) is not None:
            continue
        ending, seen = ("unknown", "a later claim exists")
        if proof is not None and last is not None and earlier.generation == last.generation:
            ending, seen = proof
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


def _boot_id() -> str | None:
    if sys.platform == "darwin":
        return _output_of("sysctl", "-n", "kern.bootsessionuuid")
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None


def _pid_namespace() -> str | None:
    if sys.platform == "darwin":
        return "the only one"
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
