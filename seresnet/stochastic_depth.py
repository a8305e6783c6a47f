"""Stochastic depth: which residual blocks count for which image, as a pure function of seed, epoch and image.

What a block does with it is blocks.py's business. One invariant: a row belongs to an image of the full array, so neither ranks nor
micro-batches change what is dropped.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seresnet.randomness import uniform, words


def draw_keep(seed: int, epoch: int, rows: int, survival: Sequence[float]) -> npt.NDArray[np.float32]:
    """(rows, blocks): 0 where a block is left out, else 1 / its probability to survive, so that its mean over images stays the same."""
    drawn = uniform(words(seed, "drop_path", epoch, rows, len(survival)))
    chance = np.asarray(survival)
    return np.where(drawn < chance, 1 / chance, 0).astype(np.float32)
