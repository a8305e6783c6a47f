"""One run on several nodes: a supervisor on each, of which node 0's claims, judges, records and requeues, and the others do its word.

Ranks are started and watched by hpc.ranks on every node alike; the wire is hpc.node_channel's. Two invariants: when one node's ranks
fail, or its supervisor is gone, those of every other node are ended within seconds; and a supervisor that has lost node 0 keeps none.
"""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc import node_channel, node_ends
from hpc.node_channel import Door, Meeting, Message, Wire
from hpc.node_ends import NodeEnd
from hpc.ranks import PARTING_LIMIT_S, Description, Elsewhere, Outcome, RankGroup, Share
from hpc.task import Task
from seresnet.errors import SubmissionError
from seresnet.exits import Exit
from seresnet.run_folder import RunFolder

log = logging.getLogger("hpc.supervisor")

#: Containers and slow file systems start apart.
JOIN_LIMIT_S = 120.0
#: Node 0 reads the sweep's records and code before it publishes where it is.
FIND_LIMIT_S = 180.0
#: After the ranks here have ended in a stop or a failure, the others' ends come within the time of a write.
END_LIMIT_S = 10.0
#: For the record of a node whose connection broke: it may have been written just before.
RECORD_LIMIT_S = 2.0


class Team:
    """Node 0's side of the wires to the other supervisors of its task."""

    def __init__(self, task: Task) -> None:
        """Publish where we are."""
        self.place, self._task = task.place, task
        self._path: Path = task.place.meeting(task.sweep, task.name)
        self._door = Door()
        self._opened = time.monotonic()
        self._said: list[tuple[int, Message]] = []
        self.wires: dict[int, Wire] = {}
        self.names: dict[int, str] = {0: task.place.name}
        addresses = node_channel.addresses(task.place.name)
        try:
            Meeting(addresses=addresses, port=self._door.port, token=self._door.token).publish(self._path)
        except OSError as error:
            problem = f"{self._path}: cannot be written: {error}, and the other nodes read there how node 0 is reached"
            raise SubmissionError(f"{problem}. Free space or quota there, and launch the sweep again.") from error

    @classmethod
    def open(cls, task: Task) -> "Team | None":
        """None for a task on one node."""
        return cls(task) if task.place.nodes > 1 else None

    @property
    def others(self) -> range:
        return range(1, self.place.nodes)

    @property
    def is_complete(self) -> bool:
        return len(self.wires) == len(self.others)

    def listen(self) -> None:
        """Let in who has come, and take what the nodes say. Call it often: a stop request or a loss on one node stops the task."""
        for hello, wire in self._door.admit():
            node = int(hello["node"])  # what proves the token has it
            if node in self.others and node not in self.wires:
                self.wires[node], self.names[node] = wire, str(hello.get("name"))
                log.info("node=%d name=%s joined", node, self.names[node])
        for node, wire in self.wires.items():
            for message in wire.receive():
                if message.get("said") == "signal":
                    self._stop(f"{message.get('name')} on {self.call(node)}")
                else:
                    self._said.append((node, message))
        if lost := self.lost():
            # Without a node no run of this task can go on: what Slurm says of the job decides whether it comes back.
            self._task.job.lost_node = "; ".join(lost.values())
            self._stop(self._task.job.lost_node)

    def take(self) -> list[tuple[int, Message]]:
        """What the nodes have said of their ranks since the last call."""
        self.listen()
        said, self._said = self._said, []
        return said

    def tell(self, **message: Any) -> None:
        """Say something to every node."""
        for wire in self.wires.values():
            wire.send(**message)

    def lost(self) -> dict[int, str]:
        """The nodes that are gone or never came, and what is to be said of each."""
        gone = {node: f"{self.call(node)} is lost: its supervisor is gone" for node, wire in self.wires.items() if wire.is_lost}
        if not self.is_complete and time.monotonic() > self._opened + JOIN_LIMIT_S:
            late = f"did not come within {JOIN_LIMIT_S:.0f} s (is a task started on each node, and can nodes reach each other by TCP?)"
            gone |= {node: f"node {node} {late}" for node in self.others if node not in self.wires}
        return gone

    def call(self, node: int) -> str:
        return f"node {node} ({self.names.get(node, '?')})"

    def close(self, code: int) -> None:
        """The task is over: the others leave with its code, once this process is gone.

        Not before: where Slurm's KillOnBadExit is set, a follower's 75 would end us while we requeue.
        """
        self.tell(do="over", code=int(code))
        self._door.close()
        with contextlib.suppress(OSError):  # the requeue comes after this
            self._path.unlink(missing_ok=True)

    def _stop(self, reason: str) -> None:
        self._task.stop.signal_name = self._task.stop.signal_name or reason


class SpreadGroup:
    """The ranks of one attempt on all nodes of a task, for node 0's supervisor, which uses it as it uses a RankGroup."""

    def __init__(
        self, team: Team, command: Sequence[str], ranks: int, *, run_id: str, generation: int, folder: RunFolder, env: Mapping[str, str],
        cwd: Path,
    ) -> None:  # fmt: skip
        """Nothing is started before all nodes are there: poll does."""
        self._team, self._folder, self._run_id, self._generation = team, folder, run_id, generation
        self._command, self._ranks, self._env, self._cwd = command, ranks, env, cwd
        self._here: RankGroup | None = None
        self._own: Outcome | None = None  # of the ranks of this node
        self._own_at = 0.0
        self._looks: dict[int, Elsewhere] = {}  # node -> what its ranks have come to; those that failed first, in their order
        self._ends: dict[int, NodeEnd] = {}
        self._lost_at: dict[int, float] = {}
        self._told_stop: str | None = None
        self._told_look: Elsewhere | None = None

    def poll(self, stop_reason: str | None = None) -> Outcome | None:
        """As RankGroup.poll, for all nodes: they are told what happens here and elsewhere, and waited for, bounded."""
        self._hear()
        if self._here is None:
            return self._start(stop_reason)
        if self._own is None and (outcome := self._here.poll(stop_reason, self._look_elsewhere())) is not None:
            self._own, self._own_at = outcome, time.monotonic()
            self._ends[0] = node_ends.judge_node(self._folder, self._generation, outcome, 0, self._team.place.name)
        self._note(0, self._here.look())
        self._tell(stop_reason)
        if self._own is None or not self._is_all_heard():
            return None
        ends = [self._ends[node] for node in dict.fromkeys([*self._looks, *self._ends]) if node in self._ends]
        return node_ends.combine(ends, self._unheard(), self._own.stop_reason)

    def close(self) -> None:
        """Leave nothing behind, on any node."""
        if self._here is not None:
            self._team.tell(do="elsewhere", what="lost", generation=self._generation)
            self._here.close()

    def _start(self, stop_reason: str | None) -> Outcome | None:
        """Start the ranks of all nodes once these are there."""
        if stop_reason:
            said = Description(ending="stopped", code=Exit.STOPPED, reason=f"{stop_reason}: before its ranks were started")
            return Outcome(statuses=(), culprit=None, stop_reason=stop_reason, was_killed_by_us=False, description=said)
        if not self._team.is_complete:
            return None
        with node_channel.listen() as listener:  # rank 0 alone keeps it: where it is dead, nobody must think that it listens
            port = node_channel.port_of(listener)
            meeting = {"SERESNET_STORE": f"127.0.0.1:{port}"}
            share = Share(first_rank=0, world_size=self._ranks, meeting=meeting, listen_fd=listener.fileno())
            size = self._ranks // self._team.place.nodes
            self._here = RankGroup(self._command, size, env=self._env, cwd=self._cwd, log=self._folder.log, share=share)
        self._team.tell(do="start", run=self._run_id, generation=self._generation, ranks=self._ranks, port=port)
        return None

    def _hear(self) -> None:
        for node, message in self._team.take():
            if message.get("generation") != self._generation:
                continue  # of an earlier attempt
            self._note(node, message.get("what"))
            try:
                if "end" in message:
                    self._ends[node] = NodeEnd.of(message["end"])
            except (ValueError, KeyError, TypeError) as error:
                log.error("node=%d end=%s error=%s", node, message["end"], error)
        for node in self._team.lost():
            self._lost_at.setdefault(node, time.monotonic())
            if node not in self._ends and (end := node_ends.read(self._folder, self._generation, node)) is not None:
                self._ends[node] = end  # written, and then its node was gone

    def _note(self, node: int, what: Elsewhere | None) -> None:
        """Remember what a node's ranks have come to: who failed first is asked first why."""
        if what == "failed" and self._looks.get(node) != "failed":
            self._looks.pop(node, None)
            failed = {other: look for other, look in self._looks.items() if look == "failed"}
            self._looks = {**failed, node: "failed", **self._looks}
        elif what == "left":
            self._looks.setdefault(node, "left")

    def _look_elsewhere(self) -> Elsewhere | None:
        """What the ranks here must be told of the others."""
        return "lost" if self._lost_at else _worst([look for node, look in self._looks.items() if node != 0])

    def _tell(self, stop_reason: str | None) -> None:
        """Pass on what is new; looks only get worse."""
        if stop_reason and not self._told_stop:
            self._told_stop = stop_reason
            self._team.tell(do="stop", why=stop_reason, generation=self._generation)
        worst = "lost" if self._lost_at else _worst(list(self._looks.values()))
        if worst != self._told_look:
            self._told_look = worst
            self._team.tell(do="elsewhere", what=worst, generation=self._generation)

    def _is_all_heard(self) -> bool:
        """Whether every node's end is here, or was waited for long enough."""
        now = time.monotonic()
        in_haste = self._told_stop or "failed" in self._looks.values() or self._lost_at
        limit = self._own_at + (END_LIMIT_S if in_haste else PARTING_LIMIT_S + END_LIMIT_S)
        limits = {node: self._lost_at[node] + RECORD_LIMIT_S if node in self._lost_at else limit for node in self._team.others}
        return all(node in self._ends or now > limits[node] for node in self._team.others)

    def _unheard(self) -> list[str]:
        lost = self._team.lost()
        silent = [node for node in self._team.others if node not in self._ends]
        return [lost.get(node, f"{self._team.call(node)} did not say how its ranks ended") for node in silent]


def _worst(looks: Sequence[Elsewhere]) -> Elsewhere | None:
    return "failed" if "failed" in looks else "left" if "left" in looks else None
