"""SGD, and the learning rate as a pure function of the epoch: nothing here remembers anything but the momentum buffers."""

import math

import torch
from torch import nn

from seresnet.config import OptimConfig
from seresnet.sgd import Sgd


def learning_rate(config: OptimConfig, horizon: int, epoch: int) -> float:
    """Rate of all steps of this epoch (from 0), for a schedule that ends after horizon epochs.

    Linear warm-up lr x (e + 1) / warmup_epochs, then config.schedule over the rest. As in the report's code the rate is set once an
    epoch, and a cosine's last epoch is small but not 0.
    """
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1) / config.warmup_epochs
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "steps":
        return config.lr * config.step_factor ** sum(epoch >= at for at in config.step_epochs or ())
    since = epoch - config.warmup_epochs
    if config.schedule == "restarts":
        return _half_cosine(config.lr, *_place_in_cycle(since, config.restart_epochs, config.restart_factor))
    return _half_cosine(config.lr, since, horizon - config.warmup_epochs)


def _half_cosine(lr: float, epoch: int, epochs: int) -> float:
    """Source: Loshchilov & Hutter 2017, equation 5, down to 0."""
    return lr * 0.5 * (1 + math.cos(math.pi * (epoch / epochs)))


def _place_in_cycle(epoch: int, first: int, factor: int) -> tuple[int, int]:
    """(epoch within its cycle, length of that cycle); cycles are first, first x factor, ... epochs long."""
    length = first
    while epoch >= length:
        epoch, length = epoch - length, length * factor
    return epoch, length


def build_optimizer(model: nn.Module, config: OptimConfig, fused: bool) -> Sgd:
    """SGD over all parameters, with momentum buffers that exist from step 0; weight decay as config.decay_on says."""
    return Sgd(model.parameters(), config, fused=fused)


def clip_gradients(model: nn.Module, norm: float) -> None:
    """Scale all gradients so that their common L2 norm is at most this. Waits for nothing: a norm that is not finite scales to NaN,
    which the loss then shows. Source: Pascanu et al. 2013; torch's own function, whose bits do not depend on the number of ranks."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), norm)


def set_learning_rate(optimizer: torch.optim.Optimizer | Sgd, lr: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
