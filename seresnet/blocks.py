"""Residual blocks, as plain modules. How many, how wide and where is models.py's business, attention is attention.py's.

Invariant: equal weights give the values of the papers' blocks, whatever attention they hold.
"""

import torch
from torch import Tensor, nn

from seresnet.attention import SqueezeExcite


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, attention before the shortcut is added.

    Source: He et al. 2016, figure 2 and option B (1x1 convolution and batch norm where the shape changes).
    """

    #: Output channels for each of `channels`.
    EXPANSION = 1

    def __init__(self, in_channels: int, channels: int, stride: int, attention: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.attention = attention or nn.Identity()
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x: (N, in_channels, H, W); returns (N, channels, H / stride, W / stride). keep: see joined."""
        residual = torch.relu_(self.bn1(self.conv1(x)))
        return joined(self.bn2(self.conv2(residual)), self.attention, self.shortcut(x), keep)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm, four times as wide outside as inside; attention before the shortcut is added.

    Source: He et al. 2016, figure 5; the stride is in the 3x3 convolution, as in torchvision's. SE where Hu et al. 2018 have it.
    """

    EXPANSION = 4

    def __init__(self, in_channels: int, channels: int, stride: int, attention: nn.Module | None) -> None:
        super().__init__()
        outside = channels * self.EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.attention = attention or nn.Identity()
        self.shortcut = _shortcut(in_channels, outside, stride)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """x: (N, in_channels, H, W); returns (N, 4 * channels, H / stride, W / stride). keep: see joined."""
        residual = torch.relu_(self.bn1(self.conv1(x)))
        residual = torch.relu_(self.bn2(self.conv2(residual)))
        return joined(self.bn3(self.conv3(residual)), self.attention, self.shortcut(x), keep)


def joined(residual: Tensor, attention: nn.Module, shortcut: Tensor, keep: Tensor | None) -> Tensor:
    """relu(attention(residual) * keep + shortcut), (N, C, H, W) each.

    keep: (N,) factors of stochastic depth, 0 or 1 / (1 - rate); None for 1. Source: Huang et al. 2016, with the scaling at training
    time instead of at test time.
    """
    if keep is not None:
        return torch.relu_(attention(residual) * keep.to(residual.dtype)[:, None, None, None] + shortcut)
    if type(attention) is SqueezeExcite:  # a subclass may compute something else
        return attention.add_and_relu(residual, shortcut)
    return torch.relu_(attention(residual) + shortcut)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))
