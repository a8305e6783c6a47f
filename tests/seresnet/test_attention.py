"""Every attention against a plain restatement of its paper, and against timm's module where there is one."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seresnet.attention import SimAM, build_attention, eca_kernel_size
from seresnet.config import ModelConfig
from seresnet.models import build_model, count_parameters, initialise

CHANNELS = 32


def made(name: str, reduction: int = 4) -> torch.nn.Module:
    attention = build_attention(ModelConfig(attention=name, reduction=reduction), CHANNELS)  # type: ignore[arg-type]
    assert attention is not None
    initialise(attention, seed=5)
    return attention.double()


def images() -> Tensor:
    return torch.randn(3, CHANNELS, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def eca(w: dict[str, Tensor], x: Tensor) -> Tensor:
    pooled, kernel = F.pad(x.flatten(2).mean(2), (1, 1)), w["conv.weight"].flatten()
    gate = sum(kernel[k] * pooled[:, k : k + CHANNELS] for k in range(3))
    return x * sigmoid(gate)[:, :, None, None]


def se(w: dict[str, Tensor], x: Tensor, prefix: str = "") -> Tensor:
    squeezed = x.flatten(2).mean(2)
    hidden = (squeezed @ w[prefix + "reduce.weight"].flatten(1).T + w[prefix + "reduce.bias"]).clamp(min=0)
    return x * sigmoid(hidden @ w[prefix + "expand.weight"].flatten(1).T + w[prefix + "expand.bias"])[:, :, None, None]


def cbam(w: dict[str, Tensor], x: Tensor) -> Tensor:
    def bottleneck(pooled: Tensor) -> Tensor:
        return (pooled @ w["reduce.weight"].flatten(1).T).clamp(min=0) @ w["expand.weight"].flatten(1).T

    x = x * sigmoid(bottleneck(x.flatten(2).mean(2)) + bottleneck(x.flatten(2).max(2).values))[:, :, None, None]
    seen = F.conv2d(torch.stack((x.mean(1), x.max(1).values), 1), w["places.weight"], padding=3)
    seen = (seen - seen.mean()) / torch.sqrt(seen.var(unbiased=False) + 1e-5)
    return x * sigmoid(seen * w["norm.weight"] + w["norm.bias"])


def scse(w: dict[str, Tensor], x: Tensor) -> Tensor:
    of_places = sigmoid(torch.einsum("nchw,c->nhw", x, w["places.weight"].flatten()) + w["places.bias"])
    return se(w, x, "channels.") + x * of_places[:, None]


def simam(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Equation 5 of the paper, its minimal energy e, and the gate sigmoid(1 / e)."""
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
    energy = 4 * (variance + 1e-4) / ((x - mean) ** 2 + 2 * variance + 2e-4)
    return x * sigmoid(1 / energy)


RESTATED: dict[str, Callable[[dict[str, Tensor], Tensor], Tensor]] = {"se": se, "eca": eca, "cbam": cbam, "scse": scse, "simam": simam}


@pytest.mark.parametrize("name", RESTATED)
def test_attention_equals_its_restatement_in_values_and_gradients(name: str) -> None:
    attention, x = made(name), images().requires_grad_()
    weights = {key: value.detach().clone().requires_grad_() for key, value in attention.named_parameters()}
    found, expected = attention(x), RESTATED[name](weights, x)
    # SimAM squares in float32 on purpose.
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if name == "simam" else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(found, expected, **tolerance)
    own, plain = (torch.autograd.grad(value.pow(3).sum(), x, retain_graph=True)[0] for value in (found, expected))
    torch.testing.assert_close(own, plain, rtol=1e-4 if name == "simam" else 1e-8, atol=1e-4 if name == "simam" else 1e-9)


def test_cbam_and_eca_equal_timms_modules() -> None:
    layers = pytest.importorskip("timm.layers")
    x = images()
    ours, theirs = made("eca"), layers.EcaModule(CHANNELS).double()
    theirs.conv.weight.data.copy_(ours.conv.weight)
    torch.testing.assert_close(ours(x), theirs(x))
    ours, theirs = made("cbam"), pytest.importorskip("timm.layers.cbam").CbamModule(CHANNELS, rd_ratio=1 / 4).double()
    names = {"reduce.weight": "channel.fc1.weight", "expand.weight": "channel.fc2.weight", "places.weight": "spatial.conv.conv.weight"}
    state = theirs.state_dict()
    state.update({there: ours.state_dict()[here] for here, there in names.items()})
    theirs.load_state_dict(state)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("channels", [16, 64, 128, 256, 512, 2048])
def test_ecas_kernel_is_timms(channels: int) -> None:
    layers = pytest.importorskip("timm.layers")
    expected = layers.EcaModule(channels).conv.kernel_size[0]
    assert eca_kernel_size(channels) == expected, f"{channels} channels: {eca_kernel_size(channels)}, timm has {expected}"


#: Of the report's network: 4 blocks of 64 channels, 4 of 128, 3 of 256; by hand.
ADDED = {
    "se": sum(n * (2 * c * (c // 16) + c // 16 + c) for n, c in ((4, 64), (4, 128), (3, 256))),
    "eca": 4 * 3 + 4 * 5 + 3 * 5,
    "cbam": sum(n * (2 * c * (c // 16) + 2 * 49 + 2) for n, c in ((4, 64), (4, 128), (3, 256))),
    "scse": sum(n * (2 * c * (c // 16) + c // 16 + c + c + 1) for n, c in ((4, 64), (4, 128), (3, 256))),
    "simam": 0,
}


@pytest.mark.parametrize("name", ADDED)
def test_parameters_added_to_the_reports_baseline_are_the_counted_ones(name: str) -> None:
    found = count_parameters(build_model(ModelConfig(attention=name), 10, seed=0)) - 4_697_162  # type: ignore[arg-type]
    assert found == ADDED[name], f"{name} adds {found}"


def test_simam_of_one_pixel_and_of_a_flat_image_is_finite() -> None:
    one, flat = SimAM()(torch.ones(2, 3, 1, 1)), SimAM()(torch.full((2, 3, 4, 4), 7.0))
    gate = 1 / (1 + math.exp(-0.5))
    assert torch.allclose(one, torch.full_like(one, gate)) and torch.allclose(flat, torch.full_like(flat, 7 * gate))
