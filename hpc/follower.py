"""The supervisor of a node that is not the first: starts its share of ranks when node 0 says so, and says how they ended.

It claims, requeues and mirrors nothing. One invariant: once node 0 is gone, no rank of this node is left, and neither are we.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from hpc import node_channel, node_ends
from hpc.memory_kills import MemoryKills
from hpc.node_channel import Message, Wire
from hpc.nodes import FIND_LIMIT_S
from hpc.place import Place
from hpc.ranks import POLL_S, Elsewhere, RankGroup, Share
from hpc.task import Task
from seresnet.exits import Exit
from seresnet.run_folder import RunFolder

log = logging.getLogger("hpc.supervisor")

#: Between two tries to reach a node 0 that has said where it is.
RETRY_S = 2.0
#: Node 0 asks Slurm, twice at worst, and requeues before it is gone.
LEAVE_LIMIT_S = 30.0


def follow(task: Task) -> int:
    """Do node 0's word until it says that the task is over; returns the task's code, or 75 if node 0 is gone or never came."""
    place = task.place
    found = _find_node_0(task, place)
    if found is None:
        log.error("node=%d node 0 was not found: %s", place.node, task.stop.signal_name or f"not within {FIND_LIMIT_S:.0f} s")
        return Exit.STOPPED
    address, wire = found
    log.info("node=%d name=%s node_0=%s", place.node, place.name, address)
    follower = _Follower(task, place, address, wire)
    try:
        while (code := follower.step()) is None:
            pass
    finally:
        follower.close()
    log.info("node=%d code=%d", place.node, code)
    return code


def _find_node_0(task: Task, place: Place) -> tuple[str, Wire] | None:
    path = place.meeting(task.sweep, task.name)
    limit, poked = time.monotonic() + FIND_LIMIT_S, time.monotonic()
    while time.monotonic() < limit and not task.stop.is_set:
        meeting = node_channel.find(path)
        if meeting is not None and (found := node_channel.connect(meeting, place.node, place.name)) is not None:
            return found
        if meeting is not None:
            time.sleep(RETRY_S)
        if time.monotonic() - poked > node_channel.POKE_S:
            node_channel.poke(path.parent)
            poked = time.monotonic()
        time.sleep(POLL_S)
    return None


class _Follower:
    def __init__(self, task: Task, place: Place, address: str, wire: Wire) -> None:
        self._task, self._place, self._address, self._wire = task, place, address, wire
        self._group: RankGroup | None = None
        self._folder: RunFolder | None = None
        self._generation = 0
        self._stop_reason: str | None = None
        self._elsewhere: Elsewhere | None = None
        self._said: Elsewhere | None = None
        self._has_passed_signal_on = False
        self._over: tuple[int, float] | None = None  # the task's code, and when to leave at the latest
        self._memory = MemoryKills()

    def step(self) -> int | None:
        """One look at everything; the code to leave with once the task is over."""
        for message in self._wire.receive(POLL_S):
            self._obey(message)
        if self._over is not None:
            code, leaves_at = self._over
            return code if self._wire.is_lost or time.monotonic() > leaves_at else None
        if self._wire.is_lost:
            log.error("node=%d node 0 is gone", self._place.node)
            return Exit.STOPPED
        if self._task.stop.is_set and not self._has_passed_signal_on:
            self._wire.send(said="signal", name=self._task.stop.signal_name)
            self._has_passed_signal_on = True
        self._watch()
        return None

    def close(self) -> None:
        """End what runs here, and hang up."""
        if self._group is not None:
            self._group.close()
        self._group = None
        self._wire.close()

    def _obey(self, message: Message) -> None:
        match message.get("do"):
            case "start":
                self._start(str(message["run"]), int(message["generation"]), int(message["ranks"]), int(message["port"]))
            case "over":
                self._over = int(message.get("code", Exit.STOPPED)), time.monotonic() + LEAVE_LIMIT_S
            case "stop" if message.get("generation") == self._generation:
                self._stop_reason = str(message.get("why"))
            case "elsewhere" if message.get("generation") == self._generation:
                self._elsewhere = message.get("what")

    def _start(self, run_id: str, generation: int, ranks: int, port: int) -> None:
        task, place = self._task, self._place
        self._folder, self._generation = task.sweep.run_folder(run_id, task.plan), generation
        self._stop_reason = self._elsewhere = self._said = None
        self._memory.forget()
        size = ranks // place.nodes
        share = Share(first_rank=place.node * size, world_size=ranks, meeting={"SERESNET_STORE": f"{self._address}:{port}"})
        log.info("run=%s attempt=%d ranks=%d-%d", run_id, generation, share.first_rank, share.first_rank + size - 1)
        self._group = RankGroup(
            _command(task.rank_command, self._folder), size, env={**task.env, "SERESNET_GENERATION": str(generation)},
            cwd=task.code_dir, log=node_ends.log_of(self._folder, place.node), share=share,
        )  # fmt: skip

    def _watch(self) -> None:
        if self._group is None or self._folder is None:
            return
        outcome = self._group.poll(self._stop_reason or self._task.stop.signal_name, self._elsewhere)
        look = self._group.look()
        if look != self._said and outcome is None:
            self._wire.send(said="look", generation=self._generation, what=look)
            self._said = look
        if outcome is None:
            return
        self._group.close()
        self._group = None
        end = node_ends.judge_node(self._folder, self._generation, outcome, self._place.node, self._place.name)
        if end.ending == "killed" and self._memory.take(outcome.statuses.count(-9)):
            end = replace(
                end, ending="out_of_memory", reason=f"host memory: {end.reason}; the node's memory cgroup counts a kill (oom_kill)"
            )
        try:
            end.write(self._folder, self._generation)
        except OSError as error:
            log.error("node_end_not_written error=%s", error)
        log.info("attempt=%d statuses=%s reason=%s", self._generation, end.statuses, end.reason)
        self._wire.send(said="end", generation=self._generation, what=look, end=asdict(end))


def _command(rank_command: Sequence[str], folder: RunFolder) -> list[str]:
    path: Path = folder.path.resolve()
    return [part.replace("{run_dir}", str(path)) for part in rank_command]
