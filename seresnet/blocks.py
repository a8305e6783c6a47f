"""Residual blocks and channel attention, as plain modules. How many, how wide and where is models.py's business.

Invariant: what is written here in another form than the papers', for speed, has the papers' values and gradients (tests, in float64).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, attention before the shortcut is added.

    Source: He et al. 2016, figure 2 and option B (1x1 convolution and batch norm where the shape changes).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, attention: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.attention = attention or nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W); returns (N, channels, H / stride, W / stride)."""
        residual = torch.relu_(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        if type(self.attention) is SqueezeExcite:  # a subclass may compute something else
            return self.attention.add_and_relu(residual, self.shortcut(x))
        return torch.relu_(self.attention(residual) + self.shortcut(x))
