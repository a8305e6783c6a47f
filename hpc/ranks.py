"""The processes of one run on this node: started, watched, stopped. What their ending means to the task is supervisor's business,
and a run on several nodes is put together by hpc.nodes.

Every run is a process group of its own, so that nothing one run does reaches another. One invariant: when a RankGroup is closed,
no process of its group is left.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpc.progress_watch import ProgressWatch
from hpc.slurm import stop_signals_blocked
from seresnet import attempts
from seresnet.errors import ConfigError
from seresnet.exits import ENDING_OF_EXIT, Exit, ending_of_status
from seresnet.run_folder import RunFolder, is_finished
from seresnet.signals import die_with_parent, prctl

#: From a stop request to SIGKILL: of 30 s of grace, ranks have 12 (ADR 7).
STOP_LIMIT_S = 12.0
#: After one rank died its siblings wait for it in a collective, at worst for minutes, and cannot save either.
BEREAVED_LIMIT_S = 3.0
#: After one rank left in peace: rank 0 may still write the result.
PARTING_LIMIT_S = 60.0
POLL_S = 0.1
#: A process that SIGKILL does not end is stuck in the kernel, mostly in a dead file system: its run has ended all the same.
UNKILLABLE_S = 3.0

#: A line of the supervisor's own in a run's log.
_OURS = re.compile(r"[-\d]{10} [:\d]{8} supervisor: ")
#: Codes that say how it failed, whoever chose them.
_SAID = (Exit.USER_ERROR, Exit.DIVERGED, Exit.GPU_OUT_OF_MEMORY)

#: What has become of the run's ranks on other nodes: one left in peace, one failed, or all must be killed at once.
Elsewhere = Literal["left", "failed", "lost"]


def start_process(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    group: int = 0,
    cpus: Sequence[int] | None = None,
    pass_fds: Sequence[int] = (),
    is_program: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start a child that appends to log, in process group `group` (0 = its own), and dies with this process on Linux.

    cpus: the only ones that it may use, where the system can say so. The stop signals are blocked in it until it unblocks them:
    importing torch takes seconds in which they would kill; is_program: not in somebody's own script, which does not know of that.
    Call from a thread that lives as long as the child may: the kernel watches the thread, not the process.
    """
    before_exec = _before_exec(os.getpid(), cpus) if sys.platform.startswith("linux") else None
    with open(log, "ab") as output, contextlib.nullcontext() if is_program else stop_signals_blocked():
        return subprocess.Popen(
            list(command), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            process_group=group, preexec_fn=before_exec, pass_fds=pass_fds,
        )  # fmt: skip


def _before_exec(parent: int, cpus: Sequence[int] | None) -> Callable[[], None]:
    """What the child does between fork and exec: system calls only, because siblings' hearts are threads of the parent by then."""
    prctl()  # loads the library here: in the child the loader's lock may be held by a thread that it does not have

    def before_exec() -> None:
        die_with_parent(parent)
        if cpus:
            with contextlib.suppress(OSError):  # a cpuset that has changed since: then it shares what there is
                os.sched_setaffinity(0, cpus)

    return before_exec


def _free_port() -> int:
    """A port that is free now. Somebody may take it before a program does: then it fails, and is tried again with another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def kill_group(leader: "subprocess.Popen[bytes]") -> None:
    """SIGKILL whatever is left of a process group, by its leader; it lives on when the leader is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of a run's ranks are this node's, and how they meet the others."""

    first_rank: int
    world_size: int
    meeting: Mapping[str, str]  # environment of every rank
    listen_fd: int | None = None  # rank 0 serves the meeting on this socket


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the ranks of one attempt ended. statuses as subprocess gives them, from first_rank on."""

    statuses: tuple[int, ...]
    culprit: int | None  # the rank whose failure explains the others'; None if none failed of itself
    stop_reason: str | None  # why we asked them to stop, if we did
    was_killed_by_us: bool  # some did not leave in time
    hung: str | None = None  # why we took it for hung
    first_rank: int = 0
    description: "Description | None" = None  # where several nodes' supervisors have judged already
    is_program: bool = False


class RankGroup:
    """The ranks of one attempt on this node."""

    def __init__(
        self,
        command: Sequence[str],
        size: int,
        *,
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        cpus: Sequence[int] | None = None,
        share: Share | None = None,
        is_program: bool = False,
    ) -> None:
        """Start `size` processes of command. env gets RANK and its companions; ranks meet through a fresh node-local file.

        share: they are only some ranks of their run, and meet as it says. Call it from the main thread, see start_process, also for
        is_program.
        """
        self._temp = Path(tempfile.mkdtemp(prefix="ranks-"))
        alone = {"SERESNET_INIT_METHOD": f"file://{self._temp}/meeting"} if size > 1 or is_program else {}
        if is_program:
            alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}  # for those that meet by env://
        share = share or Share(first_rank=0, world_size=size, meeting=alone)
        self._first_rank, self._is_program = share.first_rank, is_program
        meeting = {**share.meeting, "SERESNET_PROGRESS": str(self._temp)}
        self._progress = ProgressWatch(self._temp)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._died: list[int] = []  # ranks in the order of their ends
        self._stop_reason: str | None = None
        self._hung: str | None = None
        self._kill_at = float("inf")
        self._killed_at: float | None = None
        self._failed_before_kill: list[int] = []  # who fails after it was killed
        try:
            for local_rank in range(size):
                rank = share.first_rank + local_rank
                own = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": share.world_size, "LOCAL_WORLD_SIZE": size}
                fds = [share.listen_fd] if share.listen_fd is not None and rank == 0 else []
                if fds:
                    own["SERESNET_STORE_FD"] = fds[0]
                whole = {**env, **meeting, **{name: str(value) for name, value in own.items()}}
                group = self._processes[0].pid if self._processes else 0
                started = start_process(
                    command, env=whole, cwd=cwd, log=log, group=group, cpus=cpus, pass_fds=fds, is_program=is_program
                )  # fmt: skip
                self._processes.append(started)
        except BaseException:
            self.close()  # nobody else knows of those that did start
            raise

    def watch(self, should_stop: Callable[[], str | None]) -> Outcome:
        """poll() until every rank has ended. should_stop is asked ten times a second; it returns a reason, or None."""
        while (outcome := self.poll(should_stop())) is None:
            time.sleep(POLL_S)
        return outcome

    def poll(self, stop_reason: str | None = None, elsewhere: Elsewhere | None = None) -> Outcome | None:
        """Look once, without waiting: how the ranks ended, or None while one lives. Call it about every POLL_S.

        Sees to it that they do end: after the first call with a stop_reason, after the death of one of them, here or elsewhere, and
        when they hang.
        """
        if stop_reason and self._stop_reason is None:
            self._stop_reason = stop_reason
            self._send(signal.SIGTERM)
            self._kill_within(STOP_LIMIT_S)
        if self._all_ended():
            return self._outcome()
        seen = (self.look(), elsewhere)
        if seen != (None, None):
            self._kill_within(0 if "lost" in seen else BEREAVED_LIMIT_S if "failed" in seen else PARTING_LIMIT_S)
        elif self._hung is None and (hung := self._progress.look()):
            self._hung = hung
            self._kill_within(BEREAVED_LIMIT_S)  # the others write down where they are
        return self._kill_if_due()

    def close(self) -> None:
        """Leave nothing behind: descendants of ranks are in their group."""
        for process in self._processes:
            process.kill()
        if self._processes:
            kill_group(self._processes[0])
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=UNKILLABLE_S)
        shutil.rmtree(self._temp, ignore_errors=True)

    def _kill_within(self, seconds: float) -> None:
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)

    def _kill_if_due(self) -> Outcome | None:
        now = time.monotonic()
        if self._killed_at is None and now >= self._kill_at:
            self._killed_at, self._failed_before_kill = now, self._failed()
            kill_group(self._processes[0])
        is_stuck = self._killed_at is not None and now > self._killed_at + UNKILLABLE_S
        return self._outcome() if is_stuck else None

    def _outcome(self) -> Outcome:
        statuses = tuple(-signal.SIGKILL if process.returncode is None else process.returncode for process in self._processes)
        killed = self._killed_at is not None
        culprit = culprit_of(self._failed_before_kill if killed else self._failed(), dict(enumerate(statuses, self._first_rank)))
        return Outcome(
            statuses=statuses, culprit=culprit, stop_reason=self._stop_reason, was_killed_by_us=killed, hung=self._hung,
            first_rank=self._first_rank, is_program=self._is_program,
        )  # fmt: skip

    def look(self) -> Elsewhere | None:
        """What other nodes must be told of the ranks here."""
        if self._failed() or self._hung:
            return "failed"
        # Ours leave together; what a program's rank 0 still does alone, such as a last evaluation, takes as long as it takes.
        return "left" if self._died and not self._is_program else None

    def _all_ended(self) -> bool:
        for rank, process in enumerate(self._processes, self._first_rank):
            if rank not in self._died and process.poll() is not None:
                self._died.append(rank)
        return len(self._died) == len(self._processes)

    def _failed(self) -> list[int]:
        codes = {rank: self._processes[rank - self._first_rank].returncode for rank in self._died}
        return [rank for rank, code in codes.items() if not self._is_peaceful(code)]

    def _is_peaceful(self, code: int | None) -> bool:
        if code in (Exit.FINISHED, Exit.STOPPED):
            return True
        if self._stop_reason is None:
            return False
        # What was told to stop did as it was told, if it has no handler yet; torchrun, shells and other frames around a program turn its
        # code into theirs. If something was wrong all the same, it will be so again after the next start.
        return code == -signal.SIGTERM or (self._is_program and code not in _SAID)

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)  # does nothing to one that has ended


def culprit_of(failed: Sequence[int], statuses: Mapping[int, int]) -> int | None:
    """Of ranks that failed at about the same time, in the order of their deaths, the one that explains the others.

    A rank whose peer is gone fails by itself within milliseconds, with an error of its own: it explains nothing. A watchdog is patient
    for longer than ranks live after a crash, so where one has spoken, the hang came first.
    """

    def rank_of_evidence(rank: int) -> int:
        if statuses[rank] in (*_SAID, Exit.FENCED):
            return 0
        return 1 if statuses[rank] < 0 else 2 if statuses[rank] == Exit.WATCHDOG else 3

    return min(failed, key=rank_of_evidence, default=None)


@dataclass(frozen=True, kw_only=True)
class Description:
    """An attempt's ending in the words of seresnet.exits, the code the task exits with on its account, and one line for people."""

    ending: str
    code: int
    reason: str


def describe(folder: RunFolder, generation: int, outcome: Outcome) -> Description:
    """Judge an attempt by its ranks' statuses and what they wrote before they exited."""
    if outcome.description is not None:
        return outcome.description
    if outcome.hung is not None:
        return Description(ending="hung", code=Exit.WATCHDOG, reason=outcome.hung)
    if outcome.culprit is not None:
        status = outcome.statuses[outcome.culprit - outcome.first_rank]
        found = describe_failure(folder, generation, outcome.culprit, status, folder.log)
        # A program knows nothing of owners and watchdogs: that it chose these numbers means nothing.
        return replace(found, ending="crashed", code=1) if outcome.is_program and status in (Exit.WATCHDOG, Exit.FENCED) else found
    is_complete, lack = _look_at_result(folder)
    if outcome.statuses[0] == 0 and is_complete:
        return Description(ending="finished", code=0, reason=str(attempts.read_rank_exit(folder, generation).get("reason") or "finished"))
    if outcome.stop_reason is not None:
        return Description(ending="stopped", code=Exit.STOPPED, reason=f"{outcome.stop_reason}: {_how_stopped(outcome)}")
    if outcome.was_killed_by_us:
        return Description(ending="hung", code=Exit.WATCHDOG, reason=f"one rank left, the others did not within {PARTING_LIMIT_S:.0f} s")
    if Exit.STOPPED in outcome.statuses:
        said = attempts.read_rank_exit(folder, generation)
        return Description(ending="stopped", code=Exit.STOPPED, reason=str(said.get("reason", "a rank was told to stop")))
    return Description(ending="crashed", code=1, reason=f"every rank exited 0, and {lack}")


def _how_stopped(outcome: Outcome) -> str:
    if outcome.was_killed_by_us:
        return f"ranks did not stop within {STOP_LIMIT_S:.0f} s"
    if -signal.SIGTERM in outcome.statuses:
        return "ended by SIGTERM, which it does not handle"
    others = [status for status in outcome.statuses if status not in (Exit.FINISHED, Exit.STOPPED)]
    return f"exited {others[0]}, whether its state was saved is not known" if others else "state saved"


def _look_at_result(folder: RunFolder) -> tuple[bool, str]:
    """Whether there is a result of all epochs, and what is wrong if there is none."""
    try:
        lack = "result.json has fewer epochs than run.yaml asks for" if folder.result.exists() else "there is no result.json"
        return is_finished(folder), lack
    except ConfigError as error:
        return False, str(error)


def describe_failure(folder: RunFolder, generation: int, rank: int, status: int, log: Path) -> Description:
    """Judge an attempt by the one rank that explains its end. log: where that rank's output went."""
    said = attempts.read_rank_exit(folder, generation, rank)
    ending, code = ending_of_status(status), status if status > 0 else 128 - status
    if ending == "crashed" and said.get("ending") in ENDING_OF_EXIT.values() and said.get("code"):
        ending, code = str(said["ending"]), int(said["code"])  # a wrapper, such as torchrun, may have turned the code into 1
    return Description(ending=ending, code=code, reason=str(said.get("reason") or _guess(log, rank, status)))


def _guess(log: Path, rank: int, status: int) -> str:
    """What can be said of a rank that wrote nothing: its signal or status, and the last line of the log."""
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited {status}"
    try:
        lines = log.read_bytes()[-4000:].decode(errors="replace").split("\n")
    except OSError:
        lines = []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if not last or _OURS.match(last):
        return f"rank {rank} {how}, and said nothing"
    return f"rank {rank} {how}; the log's last line: {last[:300]}"
