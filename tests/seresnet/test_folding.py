"""A folded network computes what its source computes, follows it, and leaves alone what is not known to be a convolution and its norm."""

import copy
from typing import Any

import pytest
import torch
from small_engine import config, engine, splits
from torch import nn

from seresnet.blocks import BasicBlock
from seresnet.config import ModelConfig
from seresnet.evaluation import evaluate
from seresnet.folding import FoldedNetwork, foldable
from seresnet.models import ResNet, build_model

IMAGES = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(attention: Any = "se", width: int = 16) -> ResNet:
    """Statistics and affine parameters that are not 0 and 1, one of them negative."""
    model = build_model(ModelConfig(width=width, blocks=(2, 1, 1), attention=attention), 10, 0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.01, 3),
                (module.weight, -1, 2),
                (module.bias, -1, 1),
            ):
                assert value is not None
                value.data.uniform_(low, high, generator=generator)
    return model.eval()


def folded(model: nn.Module) -> FoldedNetwork:
    made = FoldedNetwork(model)
    made.refresh()
    return made


@pytest.mark.parametrize("attention", ["none", "se"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@torch.no_grad()
def test_folded_equals_unfolded(attention: str, layout: torch.memory_format) -> None:
    model = trained(attention).to(memory_format=layout)
    images = IMAGES.contiguous(memory_format=layout)
    found, expected = folded(model).network(images), model(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@torch.no_grad()
def test_under_bf16_folding_is_no_further_from_float32_than_unfolded() -> None:
    model, made = trained(), folded(trained())
    exact = model(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        plain, ours = model(IMAGES), made.network(IMAGES)
    far, near = (float((logits.float() - exact).pow(2).mean().sqrt()) for logits in (plain, ours))
    assert near < 1.25 * far, f"folded is {near:.4g} from float32, unfolded {far:.4g}"


def test_every_norm_of_our_networks_is_folded() -> None:
    model = build_model(ModelConfig(width=4), 10, 0)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sorted(norm for _, norm in foldable(model)) == sorted(norms) and len(norms) == 25
    left = [name for name, module in folded(model).network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert not left, left


def test_the_source_is_untouched_and_its_training_is_followed_in_place() -> None:
    model = trained()
    before = copy.deepcopy(model.state_dict())
    made = folded(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    places = {name: value.data_ptr() for name, value in made.network.named_parameters()}
    model.train()(IMAGES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
        made.refresh()
        torch.testing.assert_close(made.network(IMAGES), model.eval()(IMAGES), rtol=1e-4, atol=1e-3)
    assert {name: value.data_ptr() for name, value in made.network.named_parameters()} == places, "memory was allocated anew"
    assert not made.network.training and made.network.head.weight is model.head.weight


class Reversed(BasicBlock):
    """Norm first: nothing of it may be folded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1(torch.relu(self.bn1(x))) + x


class Own(nn.Module):
    """Somebody's network: looks like ours, is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.block = Reversed(4, 4, 1, None)
        self.known = BasicBlock(4, 4, 1, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.known(self.block(self.stem[1](self.stem[0](x)) + self.stem[0](x)))


@torch.no_grad()
def test_of_a_network_that_is_not_ours_only_our_blocks_are_folded() -> None:
    model = Own().eval()
    assert [norm for _, norm in foldable(model)] == ["known.bn1", "known.bn2"]
    torch.testing.assert_close(folded(model).network(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)


def test_what_is_shared_hooked_or_of_another_kind_is_left_alone() -> None:
    shared, hooked, replaced = (BasicBlock(4, 4, 1, None).eval() for _ in range(3))
    shared.bn2 = shared.bn1
    hooked.conv1.register_forward_hook(lambda module, given, result: result * 2)
    replaced.bn1 = nn.SyncBatchNorm(4)  # type: ignore[assignment]
    found = [[norm for _, norm in foldable(block)] for block in (shared, hooked, replaced)]
    assert found == [[], ["bn2"], ["bn2"]], found


def test_an_evaluation_is_that_of_the_unfolded_network() -> None:
    ours = engine(config())
    for _ in range(4):
        ours.train_step()
    found = evaluate(ours, splits(ours.config).test)
    ours._evaluated = FoldedNetwork(nn.Sequential(ours.model))
    ours._evaluated._pairs = []  # nothing folded
    ours._evaluated.network = ours.model.eval()
    expected = evaluate(ours, splits(ours.config).test)
    assert found is not None and expected is not None
    assert found.confusion == expected.confusion and found.loss == pytest.approx(expected.loss, rel=1e-5)
