"""Gaussian noise on uint8 images as a training augmentation (as a baseline in Lopes et al. 2019): each image has a strength of its own.

Added to pixels in [0, 1], clipped there and rounded to uint8. A pixel's noise depends on seed, epoch and image alone; it is drawn when
its image is needed, because a table of an epoch would take 6 KB an image of 32 x 32.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seresnet.autoaugment import to_device
from seresnet.randomness import Floats, Integers, some_words, uniform, words


@dataclass(frozen=True, kw_only=True)
class NoiseDraws:
    """Strength and place of the noise of each sample of one epoch."""

    seed: int
    epoch: int
    indices: Integers
    """(rows,) in the full array: the row of a sample's pixels in the epoch's table."""
    std: Floats
    """(rows,) of pixels in [0, 1]."""

    def of(self, indices: Integers) -> "NoiseDraws":
        """The rows of these samples, in this order."""
        return NoiseDraws(seed=self.seed, epoch=self.epoch, indices=self.indices[indices], std=self.std[indices])


def draw_noise(seed: int, epoch: int, rows: int, most: float) -> NoiseDraws:
    """Strengths uniform in [0, most)."""
    std = uniform(words(seed, "noise.std", epoch, rows))[:, 0] * most
    return NoiseDraws(seed=seed, epoch=epoch, indices=np.arange(rows), std=std)


def add_noise(images: Tensor, draws: NoiseDraws) -> Tensor:
    """(n, 3, H, W) uint8 to the same; draws has n rows."""
    values = math.prod(images.shape[1:])
    columns = 4 * math.ceil(values / 16)  # 4 values a word
    raw = some_words(draws.seed, "noise.pixels", draws.epoch, draws.indices, columns).astype("<u8", copy=False)
    # Signed, because torch has little for unsigned 16 bits: -32768 is the table's first entry.
    places = to_device(raw.view("<i2")[:, :values].astype(np.int16), images.device)
    std = to_device((255 * draws.std).astype(np.float32), images.device).view(-1, 1, 1, 1)
    normal = _normal(images.device).index_select(0, places.flatten().int().add_(32768)).view(images.shape)
    return normal.mul_(std).add_(images).round_().clamp_(0, 255).to(torch.int16).to(torch.uint8)


@functools.cache
def _normal(device: torch.device) -> Tensor:
    """(65536,) float32, the normal distribution by inverse CDF at the middle of as many equal cells; the ends are -4.33 and 4.33."""
    normal: Tensor = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16)
    return normal.float().to(device)
