"""Checkpoints under attack: writers killed at random, flipped and missing bytes, errors of every system call."""

import errno
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from seresnet import checkpoint_files
from seresnet.checkpoint_files import Header
from seresnet.checkpoint_writer import CheckpointWriter, recover, write_checkpoint
from seresnet.claims import acquire, newest_claim, this_process
from seresnet.durable import Files
from seresnet.errors import CheckpointError
from seresnet.run_folder import CheckpointName, RunFolder
from seresnet.state import TrainState, state_digest

# Forked and not spawned: a start costs 10 ms instead of a second. The children only do what one thread can.
PROCESSES = multiprocessing.get_context("fork")
LIMIT_S = 60


def state(step: int, size: int = 64) -> TrainState:
    """A pure function of the step, so that what was recovered can be checked bit for bit."""
    values = torch.arange(size, dtype=torch.float32) + step
    return TrainState(tensors={"model/w": values, "momentum/w": -values}, scalars={"step": step})


def new_folder(path: Path) -> RunFolder:
    folder = RunFolder(path=path / "run")
    folder.create()
    return folder


def save(folder: RunFolder, step: int, generation: int = 1) -> CheckpointName:
    return write_checkpoint(folder, state(step), Header(generation=generation, step=step))


def recovered_step(folder: RunFolder, size: int = 64) -> int:
    claim = newest_claim(folder)
    found = recover(folder, claim.base if claim else None)
    assert found is not None
    assert state_digest(found[0]) == state_digest(state(found[1].step, size)), f"{found[1]}: other bits than were saved"
    return found[1].step


def _save_for_ever(path: str, size: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    folder = RunFolder(path=Path(path))
    claim = acquire(folder, this_process({}), observe_s=3600)
    found = recover(folder, claim.base)
    step, name = (0, None) if found is None else (found[1].step, found[1])
    writer = CheckpointWriter(folder, claim.generation, resumed_from=name)
    while True:
        step += 1
        writer.save(state(step, size), epoch_boundary=step % 7 == 0, best=step % 11 == 0)
        if writer.wait(LIMIT_S):
            os.write(pipe.fileno(), step.to_bytes(8, "little"))


def test_sigkill_during_saves_never_loses_what_was_reported_durable(tmp_path: Path) -> None:
    folder, draw, size = new_folder(tmp_path), random.Random(4), 100_000
    history = []
    for generation in range(1, 21):
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=_save_for_ever, args=(str(folder.path), size, theirs), daemon=True)
        process.start()
        assert ours.poll(LIMIT_S), "the writer never reported"
        time.sleep(draw.uniform(0, 0.06))
        process.kill()
        process.join()
        theirs.close()
        reports = os.read(ours.fileno(), 1 << 20)
        reported = int.from_bytes(reports[-8:], "little")
        found = recovered_step(folder, size)
        history.append((generation, reported, found))
        assert found >= reported, f"(generation, reported, recovered): {history}"
    assert len(list(folder.attempts.glob("*.end.json"))) == 19
    assert not folder.set_aside.exists(), "a kill alone must never leave a damaged file under a checkpoint's name"
    assert len(checkpoint_files.list_checkpoints(folder)) <= 20 + 7, "one base a claim, and what retention keeps"


def flip(payload: bytes, draw: random.Random) -> bytes:
    changed = bytearray(payload)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(payload: bytes, draw: random.Random) -> bytes:
    return payload[: draw.randrange(len(payload))]


def zero_fill(payload: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(payload) - 1)
    end = draw.randrange(start + 1, len(payload)) + 1
    changed = payload[:start] + bytes(end - start) + payload[end:]
    return changed if changed != payload else bytes(len(payload))


def append(payload: bytes, draw: random.Random) -> bytes:
    return payload + bytes(draw.randrange(1, 100))


@pytest.mark.parametrize("damage", [flip, truncate, zero_fill, append])
def test_a_damaged_file_is_never_loaded(tmp_path: Path, damage: Callable[[bytes, random.Random], bytes]) -> None:
    folder, draw = new_folder(tmp_path), random.Random(damage.__name__)
    paths = [folder.checkpoints / str(save(folder, step)) for step in (1, 2)]
    contents = [path.read_bytes() for path in paths]
    for _ in range(50):
        paths[0].write_bytes(contents[0])
        paths[1].write_bytes(damage(contents[1], draw))
        assert recovered_step(folder) == 1
        paths[0].write_bytes(damage(contents[0], draw))
        with pytest.raises(CheckpointError):
            recover(folder, None)


class FaultyFiles(Files):
    """The disk, with an error at the n-th call that changes something; sticky: and at every later one."""

    def __init__(self, number: int, at: int, sticky: bool) -> None:
        self.number, self.at, self.sticky, self.calls = number, at, sticky, 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.at or (self.sticky and self.calls > self.at):
            raise OSError(self.number, os.strerror(self.number))

    def create(self, path: Path) -> BinaryIO:
        self._count()
        return super().create(path)

    def sync(self, file: BinaryIO) -> None:
        self._count()
        super().sync(file)

    def sync_folder(self, folder: Path) -> None:
        self._count()
        super().sync_folder(folder)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._count()
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)


ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EACCES]


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "sticky"])
@pytest.mark.parametrize("number", ERRORS, ids=[errno.errorcode[number] for number in ERRORS])
def test_an_error_of_any_call_leaves_a_state_no_older_than_the_last_durable_one(tmp_path: Path, number: int, sticky: bool) -> None:
    at, was_reached = 0, True
    while was_reached:
        at += 1
        folder = new_folder(tmp_path / str(at))
        files = FaultyFiles(number, at, sticky)
        writer = CheckpointWriter(folder, 1, files=files)
        told = {}
        for step in range(1, 6):
            writer.save(state(step))
            told[step] = writer.wait(LIMIT_S)
        writer.close(LIMIT_S)
        was_reached = files.calls >= at
        durable = max((step for step, is_durable in told.items() if is_durable), default=0)
        assert writer.durable_step == (durable or None)
        assert durable == 0 or recovered_step(folder) >= durable, f"call {at}: {told}"
        assert sticky or sum(told.values()) >= 4, f"call {at}: one error cost more than one save: {told}"
    assert at > 15, f"only {at - 1} calls were reached"


@pytest.mark.parametrize("number", ERRORS, ids=[errno.errorcode[number] for number in ERRORS])
def test_an_error_of_any_call_of_a_claim_is_an_error_or_a_claim(tmp_path: Path, number: int) -> None:
    for at in range(1, 9):
        folder = new_folder(tmp_path / str(at))
        try:
            claim = acquire(folder, this_process({}), files=FaultyFiles(number, at, sticky=False))
        except OSError:
            assert newest_claim(folder) is None, f"call {at}: raised, and claimed all the same"
        else:
            assert newest_claim(folder) == claim, f"call {at}"
        visible = [path.name for path in folder.attempts.iterdir() if not path.name.startswith(".")]
        assert visible in ([], ["000001.json"])
