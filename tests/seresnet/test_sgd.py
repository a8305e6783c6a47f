"""Our SGD against torch.optim.SGD, bit by bit, also below a GradScaler."""

import copy
import math

import pytest
import torch

from seresnet.config import OptimConfig
from seresnet.sgd import Sgd


def twins() -> tuple[torch.nn.Linear, torch.nn.Linear]:
    ours = torch.nn.Linear(3, 2)
    return ours, copy.deepcopy(ours)


def optimizers(ours: torch.nn.Module, theirs: torch.nn.Module, config: OptimConfig, fused: bool) -> tuple[Sgd, torch.optim.SGD]:
    kernels = {"momentum": config.momentum, "weight_decay": config.weight_decay, "nesterov": config.nesterov, "fused": fused}
    other = torch.optim.SGD(theirs.parameters(), lr=config.lr, **kernels)
    if config.momentum:
        # Left to itself torch's fused kernel keeps uninitialised memory as momentum where the scaler skips its first step (seen, 2.14).
        for parameter in theirs.parameters():
            other.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return Sgd(ours.parameters(), config, fused=fused), other


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("config", [OptimConfig(lr=0.1), OptimConfig(lr=0.1, nesterov=True), OptimConfig(lr=0.1, momentum=0.0)])
def test_updates_have_the_bits_of_torchs(config: OptimConfig, fused: bool) -> None:
    ours, theirs = twins()
    for step in range(4):
        if step == 0:
            mine, other = optimizers(ours, theirs, config, fused)
        for model, optimizer in ((ours, mine), (theirs, other)):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.zero_grad()
            model(torch.full((4, 3), step - 1.5)).pow(2).sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight), (ours.weight - theirs.weight).abs().max()
    assert torch.equal(ours.bias, theirs.bias), (ours.bias - theirs.bias).abs().max()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("factor", [1.0, math.inf])
def test_a_grad_scaler_takes_it_for_torchs(factor: float, fused: bool) -> None:
    ours, theirs = twins()
    before = ours.weight.detach().clone()
    for model, optimizer in zip((ours, theirs), optimizers(ours, theirs, OptimConfig(lr=0.1), fused), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for scale in (factor, 1.0):
            scaler.scale(model(torch.ones(4, 3)).sum() * scale).backward()
            scaler.step(optimizer)  # type: ignore[arg-type]
            scaler.update()
            if scale == math.inf:
                assert torch.equal(model.weight, before), "a step whose gradients are not finite was not skipped"
            optimizer.zero_grad()
        assert scaler.get_scale() == (512.0 if factor == math.inf else 1024.0)
    assert not torch.equal(ours.weight, before)
    assert torch.equal(ours.weight, theirs.weight), (ours.weight - theirs.weight).abs().max()


def test_a_parameter_without_gradient_stays() -> None:
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Sgd([used, unused], OptimConfig(lr=0.1), fused=False)
    used.sum().backward()
    optimizer.step()
    assert unused.tolist() == [1.0, 1.0]
    assert used.tolist() != [1.0, 1.0]
