"""AugMix (Hendrycks et al. 2020) on a batch of uint8 images: chains of operations, mixed with each other and with the image.

Operations, strengths and draws are those of the released code's augmentations.py, but for three things: pixels move by the nearest
filter, not bilinear; a level is the middle of one of LEVELS equal cells; the mix is rounded to uint8, once. The JSD loss is left out.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seresnet.autoaugment import OperationTable, apply_operations, operation_table, to_device
from seresnet.randomness import Integers, integers, shares, uniform, words

OPERATIONS = ("autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y", "translate_x", "translate_y")

#: Cells that [0.1, severity], from which the released code draws a level, is divided into. At severity 3 one moves a corner by 0.09 pixels.
LEVELS = 30

#: Row of augmix_table that stands for "leave the image as it is": a chain's places beyond its depth.
IDENTITY = len(OPERATIONS) * LEVELS * 2

#: Deepest chain where the depth is drawn.
_DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class AugMixDraws:
    """What is drawn for each sample of one epoch; each array has a row per index in the full array."""

    operations: Integers
    """(rows, width, depth) rows of augmix_table: a chain's operations, first to last."""
    shares: npt.NDArray[np.float32]
    """(rows, 1 + width) of the image itself and of each chain in the mix; a row sums to 1."""

    def of(self, indices: Integers) -> "AugMixDraws":
        """The rows of these samples, in this order."""
        return AugMixDraws(operations=self.operations[indices], shares=self.shares[indices])


def draw_augmix(seed: int, epoch: int, rows: int, width: int, depth: int | None) -> AugMixDraws:
    """depth: None = 1 to 3, drawn for each chain. No draw depends on the severity."""
    longest = depth or _DEPTH
    drawn = integers(words(seed, "augmix.operation", epoch, rows, width * longest), IDENTITY).reshape(rows, width, longest)
    if depth is None:
        depths = 1 + integers(words(seed, "augmix.depth", epoch, rows, width), _DEPTH)
        drawn = np.where(np.arange(longest) < depths[:, :, None], drawn, IDENTITY)
    # Beta(1, 1) is the uniform.
    mixed = uniform(words(seed, "augmix.mixed", epoch, rows))
    chains = shares(words(seed, "augmix.shares", epoch, rows, width - 1))
    return AugMixDraws(operations=drawn, shares=np.concatenate((1 - mixed, mixed * chains), axis=1).astype(np.float32))


@functools.cache
def augmix_table(severity: int, height: int, width: int, device: torch.device) -> OperationTable:
    """Every operation at every level: row (operation * LEVELS + level) * 2 + negative, then IDENTITY."""
    levels = 0.1 + (severity - 0.1) * (np.arange(LEVELS) + 0.5) / LEVELS
    operations = [
        (name, value * sign)
        for name in OPERATIONS
        for value in (_value(name, level, height, width) for level in levels.tolist())
        for sign in ((1, -1) if name in _SIGNED else (1, 1))
    ]
    return operation_table([*operations, ("identity", 0.0)], height, width, device)


_SIGNED = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}


def _value(name: str, level: float, height: int, width: int) -> float:
    """What the released code makes of a level of 0.1 to 10: bits, degrees, a threshold, pixels or a slope."""
    if name.startswith("shear"):
        return level * 0.3 / 10
    most = {"posterize": 4.0, "rotate": 30.0, "solarize": 256.0, "translate_x": width / 3, "translate_y": height / 3}.get(name, 0.0)
    whole = int(level * most / 10)
    return float({"posterize": 4 - whole, "solarize": 256 - whole}.get(name, whole))


def augmix(images: Tensor, draws: AugMixDraws, table: OperationTable) -> Tensor:
    """(n, 3, H, W) uint8 to the same; draws has n rows. Sums are in float32 in the order of the chains, rounded half to even at the end."""
    weights = to_device(np.ascontiguousarray(draws.shares.T), images.device).view(-1, len(images), 1, 1, 1)
    mixed = images * weights[0]
    for chain in range(draws.operations.shape[1]):
        done = images
        for position in range(draws.operations.shape[2]):
            done = apply_operations(done, draws.operations[:, chain, position], table)
        # Two kernels, not addcmul: one rounding more or less would be another pixel on another device.
        mixed.add_(done * weights[chain + 1])
    return mixed.round_().clamp_(0, 255).to(torch.int16).to(torch.uint8)
