"""Averaged weights: an exponential moving average of weights and batch-norm statistics, moved in one pass after each optimiser step.

When a step is over is engine.py's business. One invariant: the averages after a step are a pure function of the averages before it, the
weights after it, and its number.
"""

import copy

import torch
from torch import Tensor, nn


def ema_decay(decay: float, step: int) -> float:
    """Decay of the average after a step, counted from 0: min(decay, (1 + step) / (10 + step)).

    The first steps count less of the first weights, which are random. Source: TensorFlow's ExponentialMovingAverage (num_updates).
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """The averaged twin of a network: what is evaluated. It begins with the network's weights of now.

    Floating-point parameters and buffers are averaged. Counters, such as num_batches_tracked, are the network's own tensors, so they
    agree without being copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """model: on its device, in its layout; its tensors stay the same objects from now on."""
        assert 0 < decay < 1, f"a decay of {decay} averages nothing"
        self.decay = decay
        own = model.state_dict(keep_vars=True)
        counters = {id(value): value for value in own.values() if not value.is_floating_point()}
        self.model = copy.deepcopy(model, counters).requires_grad_(False).eval()
        #: The averages, where they are, under the names of the network's state_dict.
        self.tensors: dict[str, Tensor] = self.model.state_dict()
        averaged = [(value, own[name].detach()) for name, value in self.tensors.items() if value.is_floating_point()]
        self._averages, self._weights = (list(values) for values in zip(*averaged, strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights that this step, counted from 0, has left. Waits for nothing.

        A step that fp16 scaling skipped has left the weights before it: they count once more, as any step's do.
        """
        # One call for all tensors, a few kernels on a GPU. Against lerp_ in a Python loop and torch's AveragedModel: bench/evaluate.py.
        torch._foreach_lerp_(self._averages, self._weights, 1 - ema_decay(self.decay, step))
