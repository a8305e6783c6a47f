"""Host memory for copies of a state that live shortly, one after the other: a copy's memory serves again once nobody holds it.

Fresh memory costs a page fault every 4 KiB, and on a GPU the pinning: more than the copy itself. What is copied is the engine's
business. One invariant: memory is given to a new copy only after the last tensor of the old one is gone, whoever held it.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: One state is being written, one waits (CheckpointWriter has no third), and one is being made.
KEPT = 3

#: Each tensor begins on a cache line.
_ALIGNMENT = 64

_Block = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a tensor lies in a block; dense, in the order of elements that it has on the device, so that copying is moving bytes."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int  # in elements


class HostCopies:
    """Copies of the tensors of one engine. Their names, types and shapes stay the same from copy to copy, or memory is taken anew.

    Memory: as many blocks as copies are alive at once, and of those that are free at most KEPT are kept.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._places: dict[str, _Place] = {}
        self._bytes = 0
        self._free: list[_Block] = []  # appended to by whichever thread drops a copy last, popped by the owner's: both atomic
        self.blocks_made = 0

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are now, on the host. Waits for the device, and on the host for nothing."""
        if not self._fits(tensors):
            self._lay_out(tensors)
        flat = self._lease()
        typed = {dtype: flat.view(dtype) for dtype in {place.dtype for place in self._places.values()}}
        copies = {name: typed[at.dtype].as_strided(at.shape, at.stride, at.offset) for name, at in self._places.items()}
        with torch.no_grad():
            for name, copy in copies.items():
                copy.copy_(tensors[name], non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return copies

    def _fits(self, tensors: Mapping[str, Tensor]) -> bool:
        places = self._places
        return places.keys() == tensors.keys() and all(
            (at.dtype, at.shape) == (tensors[n].dtype, tensors[n].shape) for n, at in places.items()
        )

    def _lay_out(self, tensors: Mapping[str, Tensor]) -> None:
        self._places, self._bytes, self._free = {}, 0, []
        for name, value in tensors.items():
            dense = torch.empty_like(value, device="meta")  # strides of its own where value is a slice of something
            offset = self._bytes // value.element_size()
            self._places[name] = _Place(dtype=value.dtype, shape=value.shape, stride=dense.stride(), offset=offset)
            self._bytes += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT

    def _lease(self) -> Tensor:
        """A block as a flat tensor. It is free again when the array made here dies, which every view of the tensor holds."""
        block = self._free.pop() if self._free else self._make()
        array = block[:]
        weakref.finalize(array, self._give_back, block).atexit = False
        return torch.from_numpy(array)

    def _make(self) -> _Block:
        self.blocks_made += 1
        block: _Block = torch.empty(self._bytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda").numpy()
        return block

    def _give_back(self, block: _Block) -> None:
        if len(self._free) < KEPT and len(block) == self._bytes:
            self._free.append(block)
