"""Residual blocks and channel attention, as plain modules. How many, how wide and where is models.py's business."""

import torch
from torch import Tensor, nn


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
        residual = torch.relu(self.bn1(self.conv1(x)))
        residual = self.attention(self.bn2(self.conv2(residual)))
        return torch.relu(residual + self.shortcut(x))
