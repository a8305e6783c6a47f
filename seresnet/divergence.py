"""Losses or a state that are not finite: where they were seen first, and the way back to an epoch's boundary, on all ranks together.

The records and the order in which files change are replay.py's, the loop is recipe.py's. One invariant: every rank goes back, ends or
goes on as rank 0 decides, at the same step.
"""

import logging
import socket
from collections.abc import Callable
from dataclasses import replace

from seresnet.attempts import Claim
from seresnet.checkpoint_files import Header
from seresnet.checkpoint_writer import decode, write_checkpoint
from seresnet.durable import DISK, Files
from seresnet.engine import Engine
from seresnet.errors import CheckpointError
from seresnet.replay import MOST_SUSPECT, Boundary, Replay, find_boundary, read_replays, rewind, write
from seresnet.run_folder import RunFolder, RunRecord
from seresnet.state import TrainState
from seresnet.world import World

log = logging.getLogger("seresnet")


class Diverged(Exception):  # noqa: N818 - an ending, not an error
    """What is not finite came back, or cannot be replayed. The text is for people."""


class NotFinite(Diverged):
    """Every rank raises it at the same step: the run must go back, or end if it cannot."""

    def __init__(self, what: str, step: int, first_bad: int, hosts: tuple[str, ...]) -> None:
        """first_bad: batches consumed before the first step whose loss is not known to be finite. hosts: who saw that one."""
        super().__init__(f"{what} at step {step}")
        self.what, self.step, self.first_bad, self.hosts = what, step, first_bad, hosts

    @classmethod
    def gather(cls, engine: Engine, saved_step: int | None, tensor: str | None) -> "NotFinite":
        """What the ranks saw. Every rank must call it. saved_step: of the save that was refused, if the losses are in order."""
        own = (engine.step - engine.losses.steps_in_doubt, engine.losses.bad_in_a_row > 0, socket.gethostname())
        seen = engine.world.gather_objects(own)
        first = min(step for step, _, _ in seen)
        hosts = tuple(sorted({host for step, _, host in seen if step == first}))
        if any(is_bad for _, is_bad, _ in seen):
            return cls("loss not finite", engine.step, first, hosts)
        if tensor is None and saved_step is not None:
            first = min(first, saved_step)
        return cls(f"{tensor or 'state'} not finite", engine.step, first, hosts)


class Replays:
    """The replays of a run as one attempt sees them. Every rank has one; rank 0's reads and writes, the others are told."""

    def __init__(self, folder: RunFolder, record: RunRecord, generation: int, base: str | None, world: World, files: Files = DISK) -> None:
        self.running: Replay | None = None
        self._folder, self._world, self._files = folder, world, files
        self._claim, self._is_fork = Claim(generation=generation, owner=None, base=base), record.parent is not None

    def catch_up(self, initial_state: Callable[[], TrainState]) -> None:
        """Go on with the replay that an earlier attempt began, and first of all bring to an end what it was killed in."""
        if self._world.is_main:
            known = read_replays(self._folder, self._files)
            self.running = known[-1] if known and known[-1].outcome is None else None
            if self.running is not None and not self.running.is_rewound:
                boundary = self._boundary(self.running.from_step + 1)
                if boundary is None:  # a fork: first weights of its own would make it another run
                    raise CheckpointError(
                        f"{self._folder.checkpoints}: nothing of step {self.running.from_step} or before is left to replay from"
                    )
                self.running = self._rewind(self.running, boundary, initial_state)
        self.running = self._world.broadcast_object(self.running)
        if self.running is not None:
            log.info("replay_goes_on number=%d %s", self.running.number, self.running)

    def go_back(self, fault: NotFinite, initial_state: Callable[[], TrainState]) -> Replay:
        """Make the next start one from the last epoch's boundary. Raises Diverged on every rank if the fault came back, or too often."""
        answer = self._begin(fault, initial_state) if self._world.is_main else None
        answer = self._world.broadcast_object(answer)
        if isinstance(answer, str):
            raise Diverged(answer)
        assert isinstance(answer, Replay)
        self.running = answer
        return answer

    def is_passed_at(self, step: int) -> bool:
        """Whether a replay is running and has left the place of the divergence behind. The same on every rank."""
        return self.running is not None and step >= self.running.goal

    def pass_by(self) -> None:
        """The divergence has not come back: say whose hardware is suspect. The state was found finite."""
        if self.running is None:
            return
        done, self.running = replace(self.running, outcome="gone"), None
        if self._world.is_main:
            self._write(done)
            log.error("hardware_suspect %s. The data and the draws were the same: have it tested, training goes on", done)

    def _begin(self, fault: NotFinite, initial_state: Callable[[], TrainState]) -> Replay | str:
        """The replay that begins now, or why there is none."""
        if self.running is not None:
            ended = replace(self.running, outcome="came_back", again_step=fault.step)
            self._write(ended)
            if fault.what == ended.what:
                return str(ended)
            return f"{fault}, in a replay from step {ended.from_step} that was for {ended.what} at step {ended.step}"
        known = read_replays(self._folder, self._files)
        gone = [replay for replay in known if replay.outcome == "gone"]
        if len(gone) >= MOST_SUSPECT:
            hosts = sorted({host for replay in gone for host in replay.hosts} | set(fault.hosts))
            return f"{fault}, and {len(gone)} times before that it did not come back in a replay. Hardware is suspect: {', '.join(hosts)}"
        boundary = self._boundary(fault.first_bad)
        if boundary is None:
            return f"{fault}, and no checkpoint from before that is left to replay it from"
        number = 1 + max((replay.number for replay in known), default=0)
        replay = Replay(number=number, what=fault.what, step=fault.step, from_step=boundary.step, hosts=fault.hosts, suspects=())
        log.error("replay_begins number=%d %s, seen first on %s", number, replay, ", ".join(fault.hosts))
        return self._rewind(replay, boundary, initial_state)

    def _boundary(self, first_bad: int) -> Boundary | None:
        return find_boundary(self._folder, self._claim, first_bad, self._is_fork, self._files)

    def _rewind(self, replay: Replay, boundary: Boundary, initial_state: Callable[[], TrainState]) -> Replay:
        def save(at: Boundary) -> None:
            state = decode(at.payload) if at.name is not None else initial_state()
            is_boundary = at.header is None or at.header.epoch_boundary
            header = Header(generation=self._claim.generation, step=state.step, epoch_boundary=is_boundary, best_so_far=at.best_so_far)
            write_checkpoint(self._folder, state, header, self._files)

        return rewind(self._folder, self._claim, replay, boundary, save, self._files)

    def _write(self, replay: Replay) -> None:
        """Best effort: on a full disk a replay that is over goes on for the next attempt, which finds the same."""
        try:
            write(self._folder, self._claim.generation, replay, self._files)
        except OSError as error:
            log.error("replay_not_written number=%d error=%s", replay.number, error)
