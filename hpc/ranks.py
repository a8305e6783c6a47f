"""The processes of one run on this node: started, watched, stopped. What their ending means to the task is supervisor's business.

Every run is a process group of its own, so that nothing one run does reaches another. One invariant: when a RankGroup is closed,
no process of its group is left.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc.slurm import stop_signals_blocked
from seresnet import attempts
from seresnet.errors import ConfigError
from seresnet.exits import ENDING_OF_EXIT, Exit, ending_of_status
from seresnet.run_folder import RunFolder, is_finished
from seresnet.signals import die_with_parent

#: From a stop request to SIGKILL: of 30 s of grace, ranks have 12 (design.md, "Stopping").
STOP_LIMIT_S = 12.0
#: After one rank died its siblings wait for it in a collective, at worst for minutes, and cannot save either.
BEREAVED_LIMIT_S = 3.0
#: After one rank left in peace: rank 0 may still write the result.
PARTING_LIMIT_S = 60.0
POLL_S = 0.1


def start_process(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, group: int = 0) -> "subprocess.Popen[bytes]":
    """Start a child that appends to log, in process group `group` (0 = its own), and dies with this process on Linux.

    The stop signals are blocked in it until it unblocks them: importing torch takes seconds in which they would kill.
    Call from a thread that lives as long as the child may: the kernel watches the thread, not the process.
    """
    parent = os.getpid()
    # A module-level import of ctypes has happened by now; with one thread, as here, code between fork and exec is safe.
    before_exec = (lambda: die_with_parent(parent)) if sys.platform.startswith("linux") else None
    with open(log, "ab") as output, stop_signals_blocked():
        return subprocess.Popen(
            list(command), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            process_group=group, preexec_fn=before_exec,
        )  # fmt: skip


def kill_group(leader: "subprocess.Popen[bytes]") -> None:
    """SIGKILL whatever is left of a process group, by its leader; it lives on when the leader is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the ranks of one attempt ended. statuses as subprocess gives them, by rank."""

    statuses: tuple[int, ...]
    culprit: int | None  # the rank whose failure explains the others'; None if none failed of itself
    stop_reason: str | None  # why we asked them to stop, if we did
    was_killed_by_us: bool  # some did not leave in time


class RankGroup:
    """The ranks of one attempt."""

    def __init__(self, command: Sequence[str], size: int, *, env: Mapping[str, str], cwd: Path, log: Path) -> None:
        """Start `size` processes of command. env gets RANK and its companions; ranks meet through a fresh node-local file."""
        self._temp = Path(tempfile.mkdtemp(prefix="ranks-"))
        meeting = {"SERESNET_INIT_METHOD": f"file://{self._temp}/meeting"} if size > 1 else {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._died: list[int] = []  # ranks in the order of their ends
        for rank in range(size):
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            whole = {**env, **meeting, **{name: str(value) for name, value in own.items()}}
            group = self._processes[0].pid if self._processes else 0
            self._processes.append(start_process(command, env=whole, cwd=cwd, log=log, group=group))

    def watch(self, should_stop: Callable[[], str | None]) -> Outcome:
        """Wait until every rank has ended, and see to it that they do: after a stop request, and after the death of one of them.

        should_stop is asked ten times a second; it returns a reason, or None.
        """
        stop_reason, kill_at, killed = None, float("inf"), False
        failed: list[int] = []
        while not self._all_ended():
            if stop_reason is None and (stop_reason := should_stop()):
                self._send(signal.SIGTERM)
                kill_at = min(kill_at, time.monotonic() + STOP_LIMIT_S)
            if self._died:
                kill_at = min(kill_at, time.monotonic() + (BEREAVED_LIMIT_S if self._failed() else PARTING_LIMIT_S))
            if not killed and time.monotonic() > kill_at:
                killed, failed = True, self._failed()  # who fails from now on was killed
                kill_group(self._processes[0])
            time.sleep(POLL_S)
        statuses = tuple(process.returncode for process in self._processes)
        culprit = _culprit(failed if killed else self._failed(), statuses)
        return Outcome(statuses=statuses, culprit=culprit, stop_reason=stop_reason, was_killed_by_us=killed)

    def close(self) -> None:
        """Leave nothing behind: descendants of ranks are in their group."""
        for process in self._processes:
            process.kill()
        kill_group(self._processes[0])
        for process in self._processes:
            process.wait()
        shutil.rmtree(self._temp, ignore_errors=True)

    def _all_ended(self) -> bool:
        for rank, process in enumerate(self._processes):
            if rank not in self._died and process.poll() is not None:
                self._died.append(rank)
        return len(self._died) == len(self._processes)

    def _failed(self) -> list[int]:
        return [rank for rank in self._died if self._processes[rank].returncode not in (Exit.FINISHED, Exit.STOPPED)]

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)  # does nothing to one that has ended


def _culprit(failed: Sequence[int], statuses: Sequence[int]) -> int | None:
    """Of ranks that failed at about the same time, in the order of their deaths, the one that explains the others.

    A rank whose peer is gone fails by itself within milliseconds, with an error of its own or as hung: it explains nothing.
    """

    def rank_of_evidence(rank: int) -> int:
        if statuses[rank] in (Exit.USER_ERROR, Exit.DIVERGED, Exit.GPU_OUT_OF_MEMORY, Exit.FENCED):
            return 0
        return 1 if statuses[rank] < 0 else 3 if statuses[rank] == Exit.WATCHDOG else 2

    return min(failed, key=rank_of_evidence, default=None)


@dataclass(frozen=True, kw_only=True)
class Description:
    """An attempt's ending in design.md's words, the code the task exits with on its account, and one line for people."""

    ending: str
    code: int
    reason: str


def describe(folder: RunFolder, generation: int, outcome: Outcome) -> Description:
    """Judge an attempt by its ranks' statuses and what they wrote before they exited."""
    if outcome.culprit is not None:
        return _describe_failure(folder, generation, outcome.culprit, outcome.statuses[outcome.culprit])
    is_complete, lack = _look_at_result(folder)
    if outcome.statuses[0] == 0 and is_complete:
        return Description(ending="finished", code=0, reason="finished")
    if outcome.stop_reason is not None:
        how = f"ranks did not stop within {STOP_LIMIT_S:.0f} s" if outcome.was_killed_by_us else "state saved"
        return Description(ending="stopped", code=Exit.STOPPED, reason=f"{outcome.stop_reason}: {how}")
    if outcome.was_killed_by_us:
        return Description(ending="hung", code=Exit.WATCHDOG, reason=f"one rank left, the others did not within {PARTING_LIMIT_S:.0f} s")
    if Exit.STOPPED in outcome.statuses:
        said = attempts.read_rank_exit(folder, generation)
        return Description(ending="stopped", code=Exit.STOPPED, reason=str(said.get("reason", "a rank was told to stop")))
    return Description(ending="crashed", code=1, reason=f"every rank exited 0, and {lack}")


def _look_at_result(folder: RunFolder) -> tuple[bool, str]:
    """Whether there is a result of all epochs, and what is wrong if there is none."""
    try:
        lack = "result.json has fewer epochs than run.yaml asks for" if folder.result.exists() else "there is no result.json"
        return is_finished(folder), lack
    except ConfigError as error:
        return False, str(error)


def _describe_failure(folder: RunFolder, generation: int, rank: int, status: int) -> Description:
    said = attempts.read_rank_exit(folder, generation, rank)
    ending, code = ending_of_status(status), status if status > 0 else 128 - status
    if ending == "crashed" and said.get("ending") in ENDING_OF_EXIT.values() and said.get("code"):
        ending, code = str(said["ending"]), int(said["code"])  # a wrapper, such as torchrun, may have turned the code into 1
    return Description(ending=ending, code=code, reason=str(said.get("reason") or _guess(folder, rank, status)))


def _guess(folder: RunFolder, rank: int, status: int) -> str:
    """What can be said of a rank that wrote nothing: its signal or status, and the last line of the log."""
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited {status}"
    try:
        lines = folder.log.read_bytes()[-4000:].decode(errors="replace").split("\n")
    except OSError:
        lines = []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    return f"rank {rank} {how}; the log's last line: {last[:300]}"
