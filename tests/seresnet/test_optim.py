"""The schedule against torch's own schedulers and the report's numbers; momentum from step 0 against torch's lazy buffers."""

import copy

import pytest
import torch

from seresnet.config import OptimConfig
from seresnet.optim import build_optimizer, learning_rate, set_learning_rate


def test_schedule_equals_torchs_linear_warmup_and_cosine() -> None:
    config = OptimConfig(lr=0.1, warmup_epochs=10)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=890)
    expected = [0.1 * (epoch + 1) / 10 for epoch in range(10)]
    for _ in range(890):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    found = [learning_rate(config, 900, epoch) for epoch in range(900)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_last_epoch_of_the_cosine_is_small_but_not_zero() -> None:
    last = learning_rate(OptimConfig(), 900, 899)
    assert 0 < last < 1e-6, last


def test_no_warmup_starts_at_the_full_rate() -> None:
    assert learning_rate(OptimConfig(lr=0.2, warmup_epochs=0), 10, 0) == 0.2


def test_constant_schedule_keeps_the_rate_after_warmup() -> None:
    config = OptimConfig(lr=0.2, warmup_epochs=2, schedule="constant")
    assert [learning_rate(config, 5, epoch) for epoch in range(5)] == [0.1, 0.2, 0.2, 0.2, 0.2]


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_buffers_of_zeros_give_torchs_own_updates(nesterov: bool) -> None:
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    config = OptimConfig(lr=0.1, nesterov=nesterov)
    optimizers = (
        build_optimizer(ours, config, fused=False),
        torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=nesterov),
    )
    for step in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_learning_rate(optimizer, 0.1 / (step + 1))
            optimizer.zero_grad()
            model(torch.full((4, 3), float(step))).pow(2).sum().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight), (ours.weight - theirs.weight).abs().max()


def test_every_parameter_has_a_buffer_before_the_first_step() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimConfig(), fused=False)
    assert all("momentum_buffer" in optimizer.state[parameter] for parameter in model.parameters())
