"""Copies of a state on the host: they keep their values, their memory is used again, and a slow disk does not add up to more of it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from seresnet.checkpoint_writer import CheckpointWriter
from seresnet.durable import Files
from seresnet.host_copies import KEPT, HostCopies
from seresnet.run_folder import RunFolder
from seresnet.state import TrainState, state_digest

CPU = torch.device("cpu")


def tensors(value: float) -> dict[str, torch.Tensor]:
    """Of several types and layouts, among them what a network has: NHWC weights, a scalar counter, a slice."""
    return {
        "nhwc": torch.full((4, 3, 2, 2), float(value)).contiguous(memory_format=torch.channels_last),
        "counter": torch.tensor(int(value)),
        "slice": torch.full((6, 4), float(value), requires_grad=True)[::2, 1:3],
        "half": torch.full((5,), value, dtype=torch.bfloat16),
        "bytes": torch.full((3,), int(value), dtype=torch.uint8),
        "nothing": torch.empty(0),
    }


def test_a_copy_has_the_bits_of_the_tensors_and_shares_no_memory_with_them() -> None:
    own = tensors(7.0)
    before = state_digest(TrainState(tensors=own, scalars={}))
    copy = HostCopies(CPU).copy(own)
    with torch.no_grad():
        for value in own.values():
            value.zero_()
    assert state_digest(TrainState(tensors=copy, scalars={})) == before
    assert all(not value.requires_grad for value in copy.values())


def test_memory_serves_again_once_nobody_holds_the_copy() -> None:
    copies = HostCopies(CPU)
    for value in range(10):
        copies.copy(tensors(value))
    assert copies.blocks_made == 1


def test_memory_is_not_touched_while_one_tensor_of_the_copy_is_held() -> None:
    copies = HostCopies(CPU)
    held = copies.copy(tensors(1.0))["nhwc"][0]
    others = [copies.copy(tensors(value)) for value in (2.0, 3.0)]
    assert bool((held == 1.0).all()), held
    assert [float(other["half"][0]) for other in others] == [2.0, 3.0]


def test_free_memory_beyond_what_a_writer_needs_is_let_go() -> None:
    copies = HostCopies(CPU)
    many = [copies.copy(tensors(value)) for value in range(KEPT + 2)]
    del many
    assert len(copies._free) == KEPT


def test_a_tensor_that_comes_later_or_changes_its_shape_is_copied_too() -> None:
    copies, own = HostCopies(CPU), tensors(1.0)
    old = copies.copy(own)
    own |= {"late": torch.ones(3), "half": torch.full((70,), 2.0, dtype=torch.bfloat16)}
    new = copies.copy(own)
    assert new.keys() == own.keys() and all(torch.equal(new[name], own[name]) for name in own)
    assert old.keys() == tensors(1.0).keys() and bool((old["half"] == 1.0).all())


class BlockedDisk(Files):
    """Files whose fsync waits until the test lets it."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def sync(self, file: BinaryIO) -> None:
        assert self.open.wait(60)
        super().sync(file)


@pytest.fixture
def disk() -> Iterator[BlockedDisk]:
    disk = BlockedDisk()
    yield disk
    disk.open.set()


def test_saves_on_a_disk_that_hangs_take_three_copies_of_the_state_and_no_more(tmp_path: Path, disk: BlockedDisk) -> None:
    folder, copies = RunFolder(path=tmp_path), HostCopies(CPU)
    folder.create()
    writer = CheckpointWriter(folder, 1, files=disk)
    for step in range(1, 21):
        writer.save(TrainState(tensors=copies.copy(tensors(step)), scalars={"step": step}))
    assert copies.blocks_made <= KEPT, f"{copies.blocks_made} copies for 20 saves"
    disk.open.set()
    assert writer.close(60) and writer.durable_step == 20
