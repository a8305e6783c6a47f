"""The whole of what training carries from one step to the next, on the CPU, and its digest.

Taking it from a network and giving it back is the engine's job. One invariant: equal content has an equal digest, whatever the
memory layout, the machine, the generation or the time.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seresnet.durable import canonical_json


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Tensors by name ("model/...", "momentum/...", "ema/...") and JSON scalars; scalars["step"] counts batches consumed."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]  # bool, int, finite float, str, None, and lists of them

    @property
    def step(self) -> int:
        step = self.scalars["step"]
        assert isinstance(step, int) and step >= 0, f"step is {step!r}"
        return step


def state_digest(state: TrainState) -> str:
    """SHA-256, 64 hex digits. This is what "same bits" means everywhere.

    Hashed are, for each tensor in the order of the names, the line ["name","dtype","shape"] as canonical JSON, a newline and the
    elements row by row, little-endian; then the scalars as one line of canonical JSON. The shape says how many bytes follow a
    line, so no two states share one text.
    """
    digest = hashlib.sha256()
    for name in sorted(state.tensors):
        tensor = state.tensors[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update((canonical_json([name, dtype, list(tensor.shape)]) + "\n").encode())
        digest.update(_row_major_bytes(tensor))
    digest.update((canonical_json(state.scalars) + "\n").encode())
    return digest.hexdigest()


def first_nonfinite(state: TrainState) -> str | None:
    """The first tensor, by name, that holds a NaN or an infinity."""
    for name in sorted(state.tensors):
        tensor = state.tensors[name]
        if tensor.is_floating_point() and tensor.numel() and not _is_finite(tensor):
            return name
    return None


def _is_finite(tensor: Tensor) -> bool:
    # One pass without temporaries, a quarter of isfinite().all()'s time (4.7 M parameters, CPU): both ends are NaN where any element is.
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor))


def _row_major_bytes(tensor: Tensor) -> memoryview:
    # reshape(-1) first: a 0-dim tensor cannot be viewed as another element size. No numpy dtype exists for bfloat16, hence bytes.
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
