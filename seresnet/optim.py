"""SGD, and the learning rate as a pure function of the epoch: nothing here remembers anything but the momentum buffers."""

import math

import torch
from torch import nn

from seresnet.config import OptimConfig
from seresnet.sgd import Sgd


def learning_rate(config: OptimConfig, horizon: int, epoch: int) -> float:
    """Rate of all steps of this epoch (from 0), for a schedule that ends after horizon epochs.

    Linear warm-up lr x (e + 1) / warmup_epochs, then a half cosine over the rest (Loshchilov & Hutter 2017, without restarts).
    As in the report's code the last epoch's rate is small but not 0.
    """
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1) / config.warmup_epochs
    if config.schedule == "constant":
        return config.lr
    progress = (epoch - config.warmup_epochs) / (horizon - config.warmup_epochs)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(model: nn.Module, config: OptimConfig, fused: bool) -> Sgd:
    """SGD over all parameters with weight decay on each of them, and momentum buffers that exist from step 0."""
    return Sgd(model.parameters(), config, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer | Sgd, lr: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
