"""MixUp and CutMix over a micro-batch of normalised images, with soft targets.

Mode, lambda and box belong to the step; partners are a permutation inside the micro-batch, so no rank needs another's samples.
With one micro-batch a step this is the report's whole-batch permutation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from seresnet.config import AugmentConfig
from seresnet.randomness import Integers, beta, integers, permutation, uniform, words


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How one step's samples are mixed. own_share is the weight of a sample's own label, its partner gets the rest."""

    mode: Literal["none", "mixup", "cutmix"]
    own_share: float = 1.0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """CutMix: top, bottom, left, right of what comes from the partner; half-open, in pixels."""


def draw_mix(seed: int, step: int, config: AugmentConfig, height: int, width: int) -> Mix:
    """The mix of one global step; every rank and every micro-batch of the step gets the same."""
    if uniform(words(seed, "mix.apply", step, 1)).item() >= config.mix_prob:
        return Mix(mode="none")
    raw_lambda = words(seed, "mix.lambda", step, 1)
    if uniform(words(seed, "mix.mode", step, 1)).item() >= config.cutmix_share:
        return Mix(mode="mixup", own_share=beta(raw_lambda, config.mixup_alpha).item())
    return _cutmix(beta(raw_lambda, config.cutmix_alpha).item(), seed, step, height, width)


def _cutmix(lam: float, seed: int, step: int, height: int, width: int) -> Mix:
    """A box of about 1 - lam of the image around a uniform centre, clipped at the border; Yun et al. 2019, section 3."""
    raw = words(seed, "mix.box", step, 1, 2)
    y, x = integers(raw[:, 0], height).item(), integers(raw[:, 1], width).item()
    radius = 0.5 * math.sqrt(1.0 - lam)
    half_h, half_w = int(radius * height), int(radius * width)
    top, bottom = max(y - half_h, 0), min(y + half_h, height)
    left, right = max(x - half_w, 0), min(x + half_w, width)
    # Not lam: the border cuts boxes off, and the label's share is the share of pixels.
    own_share = 1.0 - (bottom - top) * (right - left) / (height * width)
    return Mix(mode="cutmix", own_share=own_share, box=(top, bottom, left, right))


def draw_partners(seed: int, step: int, micro: int, micro_batch_size: int, samples: int) -> Integers:
    """Each sample's partner in micro-batch `micro` of a step: a permutation of 0..samples-1; a sample may be its own."""
    return permutation(words(seed, "mix.partner", step, micro + 1, micro_batch_size)[micro, :samples])


def mix_images(images: Tensor, partners: Tensor, mix: Mix) -> Tensor:
    """images: (n, C, H, W) float; partners: (n,) int64 positions in images. A new tensor of the same shape."""
    if mix.mode == "mixup":
        return images.mul(mix.own_share).add_(images[partners].mul_(1.0 - mix.own_share))
    assert mix.mode == "cutmix", f"nothing to mix in mode {mix.mode}"
    top, bottom, left, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
    return mixed


def soft_targets(labels: Sequence[Tensor], shares: Sequence[float], classes: int, label_smoothing: float) -> Tensor:
    """(n, classes) float32 rows that sum to 1: each label with its share, then smoothed.

    Smoothing is folded in as torch's cross_entropy does for class probabilities, t * (1 - s) + s / K, so the loss of a slot is
    plainly -(targets * log_softmax(logits)).sum() and must not be smoothed again.
    """
    targets = torch.zeros(len(labels[0]), classes, device=labels[0].device)
    for label, share in zip(labels, shares, strict=True):
        targets += torch.nn.functional.one_hot(label, classes) * share
    return targets.mul_(1.0 - label_smoothing).add_(label_smoothing / classes)


def dominant_labels(labels: Tensor, partners: Tensor, mix: Mix) -> Tensor:
    """The class with the larger share of each target, (n,) int64; what training accuracy is counted against."""
    return labels if mix.own_share >= 0.5 else labels[partners]
