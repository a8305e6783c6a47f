"""Somebody else's networks and losses, as model.target and train.loss_target find them in tests. Nothing here knows the package."""

import random

import numpy as np
import torch
from torch import Tensor, nn


class Dropping(nn.Module):
    """Flat layers with batch norm of one dimension, and every kind of draw: torch's, numpy's and Python's."""

    def __init__(self, width: int = 8, classes: int = 5, drop: float = 0.5, size: int = 16) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3 * size * size, width), nn.BatchNorm1d(width)
        self.drop, self.last = nn.Dropout(drop), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.drop(self.norm(self.first(images.flatten(1))).relu())
        if self.training:
            features = features * (1 + 0.01 * random.random()) * (1 + 0.01 * float(np.random.rand()))
        return self.last(features)


def linear(num_classes: int, size: int = 16, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, num_classes, bias=bias))


def catching(**options: object) -> nn.Module:
    return linear(int(str(options["num_classes"])))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = linear(5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(images), images


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.LazyLinear(5)


class Remembering(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}


def remembering() -> nn.Module:
    return nn.Sequential(nn.Flatten(), Remembering(768, 5))


def broken() -> nn.Module:
    raise LookupError("no such backbone")


def misshapen() -> nn.Module:
    return linear(5, size=99)


def no_network() -> dict[str, int]:
    return {"layers": 3}


def frozen() -> nn.Module:
    return linear(5).requires_grad_(False)


a_number = 3


def soft_cross_entropy(logits: Tensor, targets: Tensor, scale: float = 1.0) -> Tensor:
    """One number for each sample."""
    return -scale * (targets * torch.log_softmax(logits, dim=1)).sum(1)


class Smoothed:
    """Made once with its arguments."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -self.scale * (targets * torch.log_softmax(logits, dim=1)).sum()


class Trainable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))


def wrong_shape(logits: Tensor, targets: Tensor) -> Tensor:
    return logits - targets


def detached(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.detach().sum()


def noisy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * torch.log_softmax(logits + torch.randn(logits.shape), dim=1)).sum()
