"""The schedule against torch's own schedulers and the report's numbers; momentum from step 0 against torch's lazy buffers."""

import copy

import pytest
import torch

from seresnet.config import OptimConfig
from seresnet.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate


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


def test_restarts_equal_torchs_cosine_with_warm_restarts() -> None:
    config = OptimConfig(lr=0.1, warmup_epochs=0, schedule="restarts", restart_epochs=5, restart_factor=2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=5, T_mult=2)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    assert [learning_rate(config, 40, epoch) for epoch in range(40)] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_steps_equal_torchs_multi_step() -> None:
    config = OptimConfig(lr=0.1, warmup_epochs=0, schedule="steps", step_epochs=(3, 7), step_factor=0.2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    torchs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 7], gamma=0.2)
    expected = []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    assert [learning_rate(config, 10, epoch) for epoch in range(10)] == pytest.approx(expected)


def test_the_first_restart_comes_after_warmup_and_the_first_cosine() -> None:
    config = OptimConfig(lr=1.0, warmup_epochs=2, schedule="restarts", restart_epochs=3, restart_factor=1)
    assert [epoch for epoch in range(12) if learning_rate(config, 12, epoch) == 1.0] == [1, 2, 5, 8, 11]


@pytest.mark.parametrize("fused", [False, True])
def test_decay_on_weights_alone_equals_torchs_groups(fused: bool) -> None:
    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(36, 2))

    ours, theirs = network(), network()
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    decayed, others = [theirs[0].weight, theirs[3].weight], [theirs[0].bias, *theirs[1].parameters(), theirs[3].bias]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizers = (
        build_optimizer(ours, OptimConfig(lr=0.1, weight_decay=0.1, decay_on="weights"), fused=fused),
        torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=fused),
    )
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(images).pow(2).sum().backward()
            optimizer.step()
    for (name, own), plain in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(own, plain), f"{name}: {(own - plain).abs().max()}"


def test_clipped_gradients_have_the_norm_and_the_direction() -> None:
    model = torch.nn.Linear(3, 2)
    model(torch.full((4, 3), 5.0)).pow(2).sum().backward()
    before = torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])
    clip_gradients(model, 0.5)
    after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(after, before / before.norm() * 0.5)
    clip_gradients(model, 100.0)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), after)
