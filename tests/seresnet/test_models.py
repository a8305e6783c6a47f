"""Networks against exact parameter counts and an independent plain re-statement of their forward pass."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seresnet.blocks import BasicBlock, SqueezeExcite
from seresnet.config import ModelConfig
from seresnet.models import build_model, count_parameters, initialise


def restated_forward(weights: dict[str, Tensor], config: ModelConfig, with_attention: set[int], x: Tensor) -> Tensor:
    """The report's network in plain functions over a flat dict of weights: no module, no code of the package."""

    def norm(name: str, y: Tensor) -> Tensor:
        mean = y.mean((0, 2, 3), keepdim=True)
        var = ((y - mean) ** 2).mean((0, 2, 3), keepdim=True)
        scale, shift = weights[f"{name}.weight"].view(1, -1, 1, 1), weights[f"{name}.bias"].view(1, -1, 1, 1)
        return (y - mean) / torch.sqrt(var + 1e-5) * scale + shift

    x = F.relu(norm("stem.1", F.conv2d(x, weights["stem.0.weight"], padding=1)))
    block = 0
    for stage, depth in enumerate(config.blocks):
        for index in range(depth):
            p, stride = f"stages.{stage}.{index}", 2 if stage > 0 and index == 0 else 1
            y = F.relu(norm(f"{p}.bn1", F.conv2d(x, weights[f"{p}.conv1.weight"], stride=stride, padding=1)))
            y = norm(f"{p}.bn2", F.conv2d(y, weights[f"{p}.conv2.weight"], padding=1))
            if block in with_attention:
                s = y.sum((2, 3)) / (y.shape[2] * y.shape[3])
                s = F.relu(s @ weights[f"{p}.attention.reduce.weight"].flatten(1).T + weights[f"{p}.attention.reduce.bias"])
                s = s @ weights[f"{p}.attention.expand.weight"].flatten(1).T + weights[f"{p}.attention.expand.bias"]
                y = y * (1 / (1 + torch.exp(-s)))[:, :, None, None]
            if stride == 2:
                x = norm(f"{p}.shortcut.1", F.conv2d(x, weights[f"{p}.shortcut.0.weight"], stride=2))
            x = F.relu(x + y)
            block += 1
    return x.mean(3).mean(2) @ weights["head.weight"].T + weights["head.bias"]


SMALL = {"width": 8, "blocks": (2, 1, 2), "reduction": 4}
PLACES = {
    "none": (ModelConfig(**SMALL), set()),
    "every": (ModelConfig(**SMALL, attention="se"), {0, 1, 2, 3, 4}),
    "every_other": (ModelConfig(**SMALL, attention="se", attention_at="every_other"), {1, 3}),
    "stages": (ModelConfig(**SMALL, attention="se", attention_at=(1, 3)), {0, 1, 3, 4}),
}


@pytest.mark.parametrize("place", PLACES)
def test_forward_and_gradients_equal_the_restatement(place: str) -> None:
    config, with_attention = PLACES[place]
    model = build_model(config, 10, seed=3).double()
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    logits, expected = model(images), restated_forward(weights, config, with_attention, images)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    logits.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("attention", "expected"), [("none", 4_697_162), ("se", 4_733_610)])
def test_parameter_counts_are_the_reports(attention: str, expected: int) -> None:
    found = count_parameters(build_model(ModelConfig(attention=attention), 10, seed=0))
    assert found == expected, f"{attention}: {found} parameters, the report has {expected}"


def test_weights_depend_on_the_seed_alone_and_not_on_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model(ModelConfig(**SMALL), 10, seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "building the network drew from torch's global generator"
    torch.manual_seed(2)
    second, other = build_model(ModelConfig(**SMALL), 10, seed=7).state_dict(), build_model(ModelConfig(**SMALL), 10, seed=8).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def test_initial_weights_have_the_spread_of_torchs_own_layers() -> None:
    model = build_model(ModelConfig(width=32), 10, seed=0)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() == 4:
            own = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2]).weight
            bound = 1 / math.sqrt(weight[0].numel())
            assert weight.abs().max() <= bound, f"{name}: {weight.abs().max()} is over {bound}"
            assert abs(weight.std() / own.std() - 1) < 0.15, f"{name}: std {weight.std():.4f}, torch's layer has {own.std():.4f}"


def test_a_layer_without_a_rule_for_its_weights_is_refused() -> None:
    with pytest.raises(TypeError, match=r"0: no rule for the initial weights of ConvTranspose2d"):
        initialise(torch.nn.Sequential(torch.nn.ConvTranspose2d(1, 1, 1)), 0)


def test_batch_norm_starts_from_identity() -> None:
    norm = build_model(ModelConfig(**SMALL), 10, seed=0).stem[1]
    assert torch.equal(norm.weight, torch.ones(8)) and torch.equal(norm.running_mean, torch.zeros(8))
    assert torch.equal(norm.running_var, torch.ones(8)) and int(norm.num_batches_tracked) == 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_in_fewer_passes_has_the_values_and_gradients_of_the_plain_form(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    attention = SqueezeExcite(8, 4).double().to(memory_format=layout)
    x, shortcut = (torch.randn(3, 8, 5, 7, dtype=torch.float64).to(memory_format=layout).requires_grad_() for _ in range(2))
    inputs = (x, shortcut, *attention.parameters())
    weights = torch.randn(3, 8, 5, 7, dtype=torch.float64)
    found, expected = attention.add_and_relu(x, shortcut), torch.relu(attention(x) + shortcut)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    for own, plain, of in zip(gradients, torch.autograd.grad((expected * weights).sum(), inputs), inputs, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-10, atol=1e-12)
        assert own.stride() == of.stride(), f"{tuple(of.shape)}: gradient has strides {own.stride()}, the tensor {of.stride()}"


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_attention_in_half_precision_stays_close_to_the_plain_form_in_float32(amp: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = SqueezeExcite(8, 4)
    x, shortcut = (torch.randn(3, 8, 6, 6).to(amp).requires_grad_() for _ in range(2))
    with torch.autocast("cpu", dtype=amp):
        found = attention.add_and_relu(x, shortcut)
    expected = torch.relu(attention(x.float()) + shortcut.float())
    assert found.dtype == amp, found.dtype
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    own = torch.autograd.grad(found.float().sum(), (x, *attention.parameters()))
    for mine, plain in zip(own, torch.autograd.grad(expected.sum(), (x, *attention.parameters())), strict=True):
        torch.testing.assert_close(mine.float(), plain.float(), rtol=5e-2, atol=5e-2 * float(plain.abs().max()))


class Doubled(SqueezeExcite):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_attention_of_ones_own_is_what_a_block_computes_even_where_it_extends_squeeze_and_excitation() -> None:
    torch.manual_seed(0)
    block, x = BasicBlock(8, 8, 1, Doubled(8, 4)).eval(), torch.randn(2, 8, 4, 4)
    residual = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(2 * residual + x))
