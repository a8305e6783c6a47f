"""torch's SGD kernels behind the little of torch.optim that is needed here: groups, state, step, zero_grad.

Only for the start: constructing any torch.optim.Optimizer imports torch._dynamo, 1.7 s of CPU time (torch 2.14). The arithmetic is
torch.optim.sgd.sgd, the public function that torch.optim.SGD itself calls. One invariant: equal bits to torch.optim.SGD, step by step.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from seresnet.config import OptimConfig


class Sgd:
    """SGD with weight decay where config.decay_on says, and momentum buffers that exist from step 0.

    A buffer of zeros and torch's absent buffer give the same first update, but only the former can be saved before it.
    torch.amp.GradScaler takes it for an optimiser: it reads param_groups, and hands a fused step its scale instead of waiting for it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimConfig, *, fused: bool) -> None:
        own = list(parameters)
        self._config, self._fused = config, fused
        self.param_groups: list[dict[str, Any]] = [
            {"params": group, "lr": config.lr, "weight_decay": decay} for group, decay in _decayed(own, config) if group
        ]
        self.state: dict[Tensor, dict[str, Tensor]] = {p: {"momentum_buffer": torch.zeros_like(p)} if config.momentum else {} for p in own}
        self._step_supports_amp_scaling = fused  # GradScaler's question; it then sets the two below, and deletes them after the step
        self.grad_scale: Tensor | None
        self.found_inf: Tensor | None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        moving = [p for p in group["params"] if p.grad is not None]
        sgd(
            moving,
            [p.grad for p in moving],
            [self.state[p].get("momentum_buffer") for p in moving],
            fused=self._fused or None,  # None: for each on CUDA, one by one on the CPU, as torch.optim.SGD chooses
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            weight_decay=group["weight_decay"],
            momentum=self._config.momentum,
            lr=group["lr"],
            dampening=0.0,
            nesterov=self._config.nesterov,
            maximize=False,
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or fill them with zeros where they are views that must stay."""
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()


def _decayed(parameters: list[nn.Parameter], config: OptimConfig) -> list[tuple[list[nn.Parameter], float]]:
    """(parameters, their weight decay). Biases and batch norm's scales are what has one dimension."""
    if config.decay_on == "all":
        return [(parameters, config.weight_decay)]
    weights, others = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    return [(weights, config.weight_decay), (others, 0.0)]
