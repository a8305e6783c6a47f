"""Residual blocks against torchvision's, and stochastic depth against what its paper says of rates and means."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.models.resnet import Bottleneck as TorchvisionBottleneck

from seresnet.accounting import multiply_adds
from seresnet.attention import SqueezeExcite
from seresnet.blocks import BasicBlock, Bottleneck
from seresnet.config import ModelConfig
from seresnet.folding import FoldedNetwork
from seresnet.models import build_model, count_parameters, survival
from seresnet.stochastic_depth import draw_keep

BOTTLENECKS = ModelConfig(width=8, blocks=(2, 1, 2), block="bottleneck", attention="se", reduction=4)


def torchvisions(ours: Bottleneck, in_channels: int, channels: int, stride: int) -> TorchvisionBottleneck:
    downsample = torch.nn.Sequential(torch.nn.Conv2d(in_channels, 4 * channels, 1, stride, bias=False), torch.nn.BatchNorm2d(4 * channels))
    theirs = TorchvisionBottleneck(in_channels, channels, stride, downsample if stride != 1 or in_channels != 4 * channels else None)
    theirs.load_state_dict({name.replace("shortcut", "downsample"): value for name, value in ours.state_dict().items()})
    return theirs


@pytest.mark.parametrize(("in_channels", "stride"), [(16, 1), (16, 2), (32, 1)])
def test_a_bottleneck_is_torchvisions(in_channels: int, stride: int) -> None:
    torch.manual_seed(0)
    ours = Bottleneck(in_channels, 8, stride, None)
    theirs, x = torchvisions(ours, in_channels, 8, stride), torch.randn(4, in_channels, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_network_of_bottlenecks_has_the_parameters_counted_by_hand() -> None:
    w = 8
    block = lambda inside, first: first * inside + 9 * inside * inside + 4 * inside * inside + 2 * (2 * inside + 4 * inside)  # noqa: E731
    se = lambda c: 2 * c * (c // 4) + c // 4 + c  # noqa: E731
    shortcut = lambda first, c: first * c + 2 * c  # noqa: E731
    expected = 27 * w + 2 * w  # stem
    expected += block(w, w) + shortcut(w, 4 * w) + se(4 * w) + block(w, 4 * w) + se(4 * w)
    expected += block(2 * w, 4 * w) + shortcut(4 * w, 8 * w) + se(8 * w)
    expected += block(4 * w, 8 * w) + shortcut(8 * w, 16 * w) + se(16 * w) + block(4 * w, 16 * w) + se(16 * w)
    expected += 10 * 16 * w + 10
    assert count_parameters(build_model(BOTTLENECKS, 10, seed=0)) == expected


@pytest.mark.parametrize("attention", ["none", "eca", "cbam", "scse", "simam"])
def test_a_folded_network_of_bottlenecks_has_the_values_of_its_source(attention: str) -> None:
    source = build_model(dataclasses.replace(BOTTLENECKS, attention=attention), 10, seed=1)  # type: ignore[arg-type]
    images = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        source(images)  # moves the running statistics
    folded = FoldedNetwork(source)
    folded.refresh()
    norms = 1 + 3 * 5 + 3 + (5 if attention == "cbam" else 0)  # stem, blocks, shortcuts, CBAM's
    assert folded.folds == norms, f"{folded.folds} of {norms} batch norms folded"
    torch.testing.assert_close(folded.network(images), source.eval()(images), rtol=1e-4, atol=1e-5)


def test_multiply_adds_of_a_bottleneck_network_are_those_counted_by_hand() -> None:
    config = ModelConfig(width=4, blocks=(1,), block="bottleneck")
    places = 8 * 8
    expected = places * (27 * 4 + 4 * 4 + 9 * 4 * 4 + 4 * 16 + 4 * 16) + 16 * 10
    assert multiply_adds(config, 10, (8, 8)) == expected


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_dropped_block_is_its_shortcut_and_a_kept_one_is_scaled(block: type[BasicBlock] | type[Bottleneck]) -> None:
    torch.manual_seed(0)
    channels = 8 * block.EXPANSION
    module = block(channels, 8, 1, SqueezeExcite(channels, 4)).eval()
    x = torch.randn(3, channels, 5, 5)
    plain = module(x)
    dropped, kept = module(x, torch.zeros(3)), module(x, torch.ones(3))
    assert torch.equal(dropped, torch.relu(x))
    torch.testing.assert_close(kept, plain)


def test_survival_is_linear_in_depth_down_to_the_rate_of_the_last_block() -> None:
    assert survival(ModelConfig(blocks=(2, 2), drop_path=0.4)) == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert survival(ModelConfig(blocks=(2, 2))) == [1, 1, 1, 1]


def test_what_is_kept_has_the_rates_asked_for_and_the_mean_one() -> None:
    chances = [0.9, 0.75, 0.5]
    keep = draw_keep(3, 1, 40_000, chances)
    rates, means = (keep > 0).mean(0), keep.mean(0)
    assert np.abs(rates - chances).max() < 0.01, rates
    assert np.abs(means - 1).max() < 0.02, means


def test_an_images_draws_depend_on_neither_the_array_behind_it_nor_on_other_epochs() -> None:
    assert np.array_equal(draw_keep(3, 1, 100, [0.5, 0.5])[:40], draw_keep(3, 1, 40, [0.5, 0.5]))
    assert not np.array_equal(draw_keep(3, 1, 100, [0.5]), draw_keep(3, 2, 100, [0.5]))
