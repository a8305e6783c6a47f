"""Draws of the corruptions: a row an image, whatever other images are asked for, and the same for every run."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seresnet.randomness import Words, uniform, words

#: All runs are tested on the same corrupted images, so the seed of a run has no part in it.
_SEED = 0


def uniform_rows(purpose: str, level: int, indices: npt.NDArray[np.int64], columns: int, device: torch.device) -> Tensor:
    """(N, columns) float32 in [0, 1); row i belongs to image indices[i] of the full array."""
    # From the top 24 bits: a float32 of more would round to 1.0 now and then.
    drawn: npt.NDArray[np.float32] = (_rows(purpose, level, indices, columns) >> np.uint64(40)).astype(np.float32)
    return torch.mul(torch.from_numpy(drawn).to(device), 2.0**-24)


def gaussian(purpose: str, level: int, indices: npt.NDArray[np.int64], columns: int, device: torch.device) -> Tensor:
    """(N, columns) standard normal, by inverse CDF."""
    normal: Tensor = torch.special.ndtri(uniform_rows(purpose, level, indices, columns, device).double() + 2.0**-25)
    return normal.float()


def poisson(purpose: str, level: int, indices: npt.NDArray[np.int64], rates: Tensor) -> Tensor:
    """Counts of the shape of rates (N, ...), by inverse CDF on the host (scipy's)."""
    from scipy.special import pdtrik

    chance = uniform(_rows(purpose, level, indices, rates[0].numel())).reshape(rates.shape)
    mean = rates.double().cpu().numpy()
    counts = np.ceil(np.maximum(pdtrik(chance, np.maximum(mean, 1e-12)), 0))
    return torch.from_numpy(np.where(mean > 0, counts, 0)).float().to(rates.device)


def _rows(purpose: str, level: int, indices: npt.NDArray[np.int64], columns: int) -> Words:
    drawn = [words(_SEED, f"corrupt.{purpose}.{level}", int(index), 1, columns) for index in indices]
    return np.concatenate(drawn) if drawn else np.empty((0, columns), dtype=np.uint64)
