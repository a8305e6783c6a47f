"""Attention inside a residual branch: modules from (N, C, H, W) to the same shape, made by name. Where they stand is models.py's business.

Invariant: what is written here in another form than the papers', for speed, has the papers' values and gradients (tests, in float64).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seresnet.config import ModelConfig


def build_attention(config: ModelConfig, channels: int) -> nn.Module | None:
    """The attention that config.attention names, for so many channels; None for none."""
    if config.attention == "none":
        return None
    if config.attention == "eca":
        return EfficientChannelAttention(channels)
    if config.attention == "simam":
        return SimAM()
    kinds: dict[str, type[SqueezeExcite] | type[ChannelSpatialAttention] | type[ConcurrentSqueezeExcite]] = {
        "se": SqueezeExcite,
        "cbam": ChannelSpatialAttention,
        "scse": ConcurrentSqueezeExcite,
    }
    return kinds[config.attention](channels, config.reduction)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: per-channel gates from the global average of each channel."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, kernel_size=1)
        self.expand = nn.Conv2d(hidden, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Rescale channels by their global context.

        x: (N, C, H, W); the result has the same shape. The gate is a sigmoid, so each channel is scaled within (0, 1).
        Source: Hu et al. 2018, section 3; r = 16 as in their ImageNet runs. Both 1x1 convolutions have a bias.
        """
        pooled = x.mean((2, 3), keepdim=True)
        gate = torch.sigmoid(self.expand(torch.relu(self.reduce(pooled))))
        return x * gate

    def add_and_relu(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """relu(self(x) + shortcut) in fewer passes over memory, the gate in the weights' precision. Shapes and dtypes of both are equal."""
        reduce, expand = self.reduce, self.expand
        result: Tensor = _GatedSum.apply(x, shortcut, reduce.weight, reduce.bias, expand.weight, expand.bias)
        return result


class _GatedSum(torch.autograd.Function):
    """relu(x * gate + shortcut) with gate = sigmoid(W2 relu(W1 mean(x) + b1) + b2).

    Why not autograd: it writes the mean's gradient out as a whole (N, C, H, W), adds it to the gate's in a pass of its own, and runs
    1x1 convolutions on 1x1 maps. Step against autograd's, 2 CPU cores under load: 1.05x (width 64, float32, n = 5) to 1.2x (bf16).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shortcut: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            pooled = _sum_of_places(x, w1.dtype) / _places(x)
            hidden = torch.addmm(b1, pooled, w1.flatten(1).t()).relu_()
            gate = torch.addmm(b2, hidden, w2.flatten(1).t()).sigmoid_()
            result = torch.addcmul(shortcut, x, gate.to(x.dtype)[:, :, None, None]).relu_()
        ctx.save_for_backward(x, result, pooled, hidden, gate, w1, w2)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, result, pooled, hidden, gate, w1, w2 = ctx.saved_tensors
        of_sum = torch.ops.aten.threshold_backward(gradient, result, 0)
        of_z2 = _sum_of_places(of_sum * x, gate.dtype) * gate * (1 - gate)
        of_z1 = (of_z2 @ w2.flatten(1)) * (hidden > 0)
        of_mean = ((of_z1 @ w1.flatten(1)) / _places(x)).to(x.dtype)[:, :, None, None]
        of_x = torch.addcmul(of_mean, of_sum, gate.to(x.dtype)[:, :, None, None])
        # In the weights' own strides, which in NHWC name the same memory in another way: else the gradient would be copied once more.
        of_w1, of_w2 = ((of_z1.t() @ pooled).as_strided(w1.shape, w1.stride()), (of_z2.t() @ hidden).as_strided(w2.shape, w2.stride()))
        return of_x, of_sum, of_w1, of_z1.sum(0), of_w2, of_z2.sum(0)


def _places(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]


def _sum_of_places(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over height and width: (N, C) of this dtype."""
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        # dtype= would write a copy of x first (2.3 against 1.1 ms); the sum runs in float32 all the same and is rounded once, as x is.
        return x.sum((2, 3)).to(dtype)
    return x.sum((2, 3), dtype=dtype)


class EfficientChannelAttention(nn.Module):
    """ECA: gates from the channels' averages by one convolution over neighbouring channels; a handful of parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = eca_kernel_size(channels)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W); the result has the same shape. Source: Wang et al. 2020 (ECA-Net), section 3.3."""
        pooled = x.mean((2, 3))
        gate = torch.sigmoid(self.conv(pooled.unsqueeze(1))).squeeze(1)
        return x * gate[:, :, None, None]


def eca_kernel_size(channels: int) -> int:
    """Channels that a gate looks at: log2(C) / 2 + 1 / 2, cut to a whole number, made odd. Source: the authors' code (gamma 2, b 1)."""
    size = int(math.log2(channels) / 2 + 0.5)
    return max(1, size if size % 2 else size + 1)


class ChannelSpatialAttention(nn.Module):
    """CBAM: a gate for each channel, then a gate for each place."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, kernel_size=1, bias=False)
        self.expand = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)
        self.places = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W); the result has the same shape.

        Source: Woo et al. 2018, section 3. Both poolings go through one bottleneck; the 7x7 convolution sees the mean and the largest
        value over channels. Without biases and with batch norm after it, as in timm's form; the authors' code has biases in the bottleneck.
        """
        mean, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = x * torch.sigmoid(self._bottleneck(mean) + self._bottleneck(largest))
        over_channels = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        return x * torch.sigmoid(self.norm(self.places(over_channels)))

    def _bottleneck(self, pooled: Tensor) -> Tensor:
        result: Tensor = self.expand(torch.relu(self.reduce(pooled)))
        return result


class ConcurrentSqueezeExcite(nn.Module):
    """scSE: squeeze-and-excitation beside a gate for each place, added."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.channels = SqueezeExcite(channels, reduction)
        self.places = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W); the result has the same shape, each value scaled within (0, 2).

        Source: Roy et al. 2018, section 2; the sum of both, as there.
        """
        result: Tensor = self.channels(x) + x * torch.sigmoid(self.places(x))
        return result


class SimAM(nn.Module):
    """A gate for each value from how far it stands out in its channel. No parameters."""

    #: The regulariser lambda of the paper's energy.
    SMALLEST_VARIANCE = 1e-4

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W); the result has the same shape. Source: Yang et al. 2021, equation 5 and the code in their figure 3."""
        # Squares of bf16 lose what stands out.
        squares = (x.float() - x.float().mean((2, 3), keepdim=True)).square()
        variance = squares.sum((2, 3), keepdim=True) / max(1, x.shape[2] * x.shape[3] - 1)
        energy = squares / (4 * (variance + self.SMALLEST_VARIANCE)) + 0.5
        return x * torch.sigmoid(energy).to(x.dtype)
