"""Crop, flip, AutoAugment or AugMix, noise and normalisation of a batch at once, on the device that holds the images.

Draws are made on the host (randomness) and come as arrays with a row per sample; nothing here draws, loops over samples or waits
for the device. Order and results are those of torchvision's transforms on PIL images, sample by sample; AugMix's are in augmix.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seresnet.augmix import AugMixDraws, augmix, augmix_table, draw_augmix
from seresnet.autoaugment import apply_operations, draw_operations, policy_table, to_device
from seresnet.config import AugmentConfig
from seresnet.noise import NoiseDraws, add_noise, draw_noise
from seresnet.randomness import Integers, integers, uniform, words


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What is drawn for each sample of one epoch; each array has a row per index in the full array."""

    top: Integers
    left: Integers
    flip: npt.NDArray[np.bool_]
    operations: Integers | None
    """(rows, 2) AutoAugment's operations as rows of its table; None without AutoAugment."""
    augmix: AugMixDraws | None = None
    noise: NoiseDraws | None = None

    def of(self, indices: Integers) -> "Draws":
        """The rows of these samples, in this order."""
        return Draws(
            top=self.top[indices],
            left=self.left[indices],
            flip=self.flip[indices],
            operations=self.operations[indices] if self.operations is not None else None,
            augmix=self.augmix.of(indices) if self.augmix else None,
            noise=self.noise.of(indices) if self.noise else None,
        )


def draw(seed: int, epoch: int, rows: int, config: AugmentConfig) -> Draws:
    """All sample-level draws of an epoch, for a full array of this many rows."""
    offsets = integers(words(seed, "crop", epoch, rows, 2), 2 * config.crop_padding + 1)
    flip = (uniform(words(seed, "flip", epoch, rows)[:, 0]) < 0.5) & config.flip
    return Draws(
        top=offsets[:, 0],
        left=offsets[:, 1],
        flip=flip,
        operations=draw_operations(seed, epoch, rows) if config.autoaugment == "cifar10" else None,
        augmix=draw_augmix(seed, epoch, rows, config.augmix_width, config.augmix_depth) if config.augmix_severity else None,
        noise=draw_noise(seed, epoch, rows, config.noise_std) if config.noise_std else None,
    )


def augment(images: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Crop, flip, AutoAugment or AugMix, noise: (n, 3, H, W) uint8 to the same; draws has n rows, row i for image i."""
    images = crop_and_flip(images, draws, config.crop_padding)
    if draws.operations is not None:
        table = policy_table(*images.shape[2:], images.device)
        for position in range(2):
            images = apply_operations(images, draws.operations[:, position], table)
    if draws.augmix:
        images = augmix(images, draws.augmix, augmix_table(config.augmix_severity, *images.shape[2:], images.device))
    return add_noise(images, draws.noise) if draws.noise else images


def crop_and_flip(images: Tensor, draws: Draws, padding: int) -> Tensor:
    """Crop H x W out of the image padded by zeros, then mirror left to right where flip says so.

    images: (n, C, H, W); top and left are offsets into the padded image, 0..2 * padding. As torchvision's RandomCrop(padding) and
    RandomHorizontalFlip do.
    """
    n, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4) if padding else images
    top, left, flip = to_device(np.stack((draws.top, draws.left, draws.flip)), images.device).unsqueeze(2)
    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    # One gather for both: flipping is reading the columns backwards.
    columns = left + torch.where(flip > 0, width - 1 - x, x)
    index = ((top + y) * padded.shape[3]).unsqueeze(2) + columns.unsqueeze(1)
    return padded.flatten(2).gather(2, index.view(n, 1, height * width).expand(n, channels, height * width)).view(images.shape)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (n, 3, H, W) to float32, (x / 255 - mean) / std by channel, the same bits as torchvision's ToTensor and Normalize."""
    return images.float().div_(255).sub_(mean.view(1, 3, 1, 1)).div_(std.view(1, 3, 1, 1))


def channel_statistics(mean: npt.ArrayLike, std: npt.ArrayLike, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std as normalise wants them: (3,) float32 on the device."""
    mean_t, std_t = (torch.tensor(np.asarray(values), dtype=torch.float32, device=device) for values in (mean, std))
    return mean_t, std_t
