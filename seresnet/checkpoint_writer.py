"""Checkpoints as state: writing a TrainState behind the training step's back, and reading the newest trusted one.

Which files exist and count is checkpoint_files.py's job, the order of system calls durable.py's. One invariant: a step is called
durable only after the folder that names its file was synced, and nothing older is deleted before that.
"""

import errno
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace

import safetensors.torch

from seresnet import checkpoint_files
from seresnet.attempts import Claim, newest_claim
from seresnet.checkpoint_files import (
    KEPT_STEPS,
    Header,
    delete_leftover_temps,
    delete_superseded,
    digest_of,
    metadata,
    read_new_headers,
    read_record,
)
from seresnet.claims import refuse_if_fenced
from seresnet.durable import DISK, Files, write_durably
from seresnet.errors import CheckpointError
from seresnet.run_folder import CheckpointName, Guard, RunFolder
from seresnet.state import TrainState, first_nonfinite
from seresnet.threads import start_narrow

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


def encode(state: TrainState, header: Header) -> bytes:
    """The file's bytes. Raises CheckpointError naming the first tensor that holds a NaN or an infinity."""
    name = first_nonfinite(state)
    if name is not None:
        raise CheckpointError(f"step {state.step}: {name} is not finite, so it is not saved. The previous checkpoint stays.")
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
    return safetensors.torch.save(tensors, metadata(header, state.scalars))


def decode(payload: bytes) -> TrainState:
    """The state in bytes whose digest was checked. Raises CheckpointError for the schema of a newer version, and for no checkpoint."""
    record = read_record(payload)
    try:
        found = safetensors.torch.load(payload)
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"a checkpoint of the right digest whose tensors cannot be read: {error}. Move it away.") from error
    tensors = {record["renamed"].get(name, name): tensor for name, tensor in found.items()}
    return TrainState(tensors=tensors, scalars=record["scalars"])


def write_checkpoint(folder: RunFolder, state: TrainState, header: Header, files: Files = DISK) -> CheckpointName:
    """Commit one checkpoint; durable when this returns. Raises CheckpointError and OSError, with older checkpoints untouched."""
    return _commit(folder, encode(state, header), header, files)


def recover(folder: RunFolder, base: str | None, files: Files = DISK) -> tuple[TrainState, CheckpointName] | None:
    """What the newest claim goes on from: its own newest trusted checkpoint, else the base, else older ones; None = begin.

    base: as the claim names it (Claim.base). Damaged files are moved to ckpt/bad/. Raises CheckpointError when there are or were
    checkpoints and none can be trusted. Every rank may call it, as long as none of them has begun to save.
    """
    claim = newest_claim(folder, files)
    if claim is not None:
        claim = replace(claim, base=base)
    elif base is not None:
        claim = Claim(generation=2**62, owner=None, base=base)
    found = checkpoint_files.read_newest_trusted(folder, claim, files)
    return None if found is None else (decode(found.payload), found.name)


@dataclass(frozen=True, kw_only=True)
class Save:
    """A state to be saved, which nobody changes any more, and what it is."""

    state: TrainState
    epoch_boundary: bool = False
    best: bool = False
    final: bool = False
    stop: bool = False

    @property
    def is_periodic(self) -> bool:
        return not (self.epoch_boundary or self.best or self.final or self.stop)


class Saver:
    """Saves one state after the other in the caller's thread: looks for newer owners, commits, and tidies up when told to.

    On a full disk it frees its own old files and tries once more. resumed_from: what recover() returned, so that the best checkpoint
    of earlier attempts is known and kept.
    """

    def __init__(self, folder: RunFolder, generation: int, resumed_from: CheckpointName | None = None, files: Files = DISK) -> None:
        self.durable_step: int | None = None if resumed_from is None else resumed_from.step
        self.last_error: Exception | None = None  # of the latest save; None once a later one is durable
        self._folder, self._generation, self._resumed_from, self._files = folder, generation, resumed_from, files
        self._headers: dict[CheckpointName, Header] = {}  # verified by this process
        self._best: str | None = None  # file name; durable
        self._knows_older_files = False

    def save(self, save: Save) -> bool:
        """Whether the state is durable now. Raises nothing: a failed save is logged and leaves older checkpoints alone."""
        started = time.monotonic()
        try:
            self._refuse_if_fenced()
            name = self._commit(save)
        except Exception as error:  # also a bug of ours: a thread that dies here would let every later save hang
            self.last_error = error
            kept = f"the state of step {self.durable_step} stays" if self.durable_step is not None else "none is durable yet"
            log.error("checkpoint_failed step=%d error=%r training goes on, %s", save.state.step, error, kept)
            return False
        self.last_error, self.durable_step = None, name.step
        self._best = str(name) if save.best else self._best
        log.info("checkpoint_durable step=%d name=%s seconds=%.2f", name.step, name, time.monotonic() - started)
        return True

    def tidy(self) -> None:
        """What a durable save makes superfluous goes. Failing is no reason to lose a save."""
        self.learn_older_files()
        self._delete()

    def learn_older_files(self) -> None:
        """Once: remove dead writers' temp files, verify what is there, and find the best so far. Tried again where it failed."""
        if self._knows_older_files:
            return
        try:
            delete_leftover_temps(self._folder, self._generation, self._files)
            read_new_headers(self._folder, self._generation, self._headers, self._files)
            if self._resumed_from is not None and self._best is None:
                header = self._headers[self._resumed_from]
                self._best = str(self._resumed_from) if header.best else header.best_so_far
            self._knows_older_files = True
        except Exception as error:
            log.warning("cannot_read_older_checkpoints error=%r", error)

    def _refuse_if_fenced(self) -> None:
        refuse_if_fenced(self._folder, self._generation, self._files)

    def _commit(self, save: Save) -> CheckpointName:
        header = Header(
            generation=self._generation,
            step=save.state.step,
            epoch_boundary=save.epoch_boundary,
            best=save.best,
            final=save.final,
            stop=save.stop,
            best_so_far=self._best,
        )
        payload = encode(save.state, header)
        try:
            return _commit(self._folder, payload, header, self._files, self._refuse_if_fenced)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            log.error("disk_full step=%d error=%s deleting own old checkpoints, then one more try", header.step, error)
            self._delete(last=1, boundaries=1)
            return _commit(self._folder, payload, header, self._files, self._refuse_if_fenced)

    def _delete(self, last: int = KEPT_STEPS, boundaries: int = 2) -> None:
        """Retention. Not knowing the best so far is a reason to delete nothing."""
        if not self._knows_older_files:
            return
        try:
            delete_superseded(self._folder, self._generation, self._headers, self._files, last=last, boundaries=boundaries, best=self._best)
        except Exception as error:
            log.warning("cannot_delete_old_checkpoints error=%r", error)


class CheckpointWriter:
    """A Saver in a thread of its own: first in, first out, at most one save waiting and one being written.

    The owner calls it from one thread of rank 0. A failed write leaves older checkpoints alone; training goes on, and wait() tells.
    So at most three states are alive: the caller's, the waiting one and the one in work; none once all is written.
    """

    def __init__(self, folder: RunFolder, generation: int, resumed_from: CheckpointName | None = None, files: Files = DISK) -> None:
        self._saver = Saver(folder, generation, resumed_from, files)
        self._queue: deque[Save] = deque()
        self._busy = self._closed = False
        self._newest_is_durable = True  # vacuously, before the first save
        self._changed = threading.Condition()
        self._thread = start_narrow(self._run, "checkpoint-writer")

    @property
    def durable_step(self) -> int | None:
        """The step of the newest durable state; at first the one that was resumed from."""
        return self._saver.durable_step

    @property
    def last_error(self) -> Exception | None:
        """Of the latest save; None once a later one is durable."""
        return self._saver.last_error

    def save(self, state: TrainState, *, epoch_boundary: bool = False, best: bool = False, final: bool = False, stop: bool = False) -> None:
        """Queue a host copy that nobody changes any more. A save with a flag is never dropped.

        Takes the place of a waiting save without flags; waits for the place if that save has one.
        """
        assert state.step >= 0
        save = Save(state=state, epoch_boundary=epoch_boundary, best=best, final=final, stop=stop)
        with self._changed:
            assert not self._closed, "save after close"
            if self._queue and self._queue[0].is_periodic:
                dropped = self._queue.popleft()
                log.warning("checkpoint_skipped step=%d by=%d", dropped.state.step, state.step)
            self._changed.wait_for(lambda: not self._queue)
            self._queue.append(save)
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether the newest save is durable, after waiting for all of them, up to timeout seconds."""
        with self._changed:
            is_idle = self._changed.wait_for(lambda: not self._queue and not self._busy, timeout)
            return is_idle and self._newest_is_durable

    def close(self, timeout: float | None = None) -> bool:
        """wait(), then let the thread end once it has tidied up. The result is wait()'s."""
        result = self.wait(timeout)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if result:
            self._thread.join(timeout)
        return result

    def _run(self) -> None:
        self._saver.learn_older_files()  # deletes nothing yet: other ranks may still be reading what they start from
        while (save := self._next()) is not None:
            is_durable = self._saver.save(save)
            del save  # its memory serves the next copy; not held until that is made
            with self._changed:
                self._busy, self._newest_is_durable = False, is_durable
                self._changed.notify_all()
            if is_durable:  # after the report: a rank that is told to stop does not wait for deletions
                self._saver.tidy()

    def _next(self) -> Save | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return None
            self._busy = True
            save = self._queue.popleft()
            self._changed.notify_all()
            return save


def _commit(folder: RunFolder, payload: bytes, header: Header, files: Files, guard: Guard = None) -> CheckpointName:
    name = CheckpointName(generation=header.generation, step=header.step, digest=digest_of(payload))
    write_durably(folder.checkpoints / str(name), payload, files, guard)
    return name
