"""From a ModelConfig to a network with weights drawn by the randomness law; the global generators are never touched.

Defaults give the report's baseline (4,697,162 parameters at ten classes); attention: se gives its SE-ResNet (4,733,610).
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from seresnet.attention import build_attention
from seresnet.blocks import BasicBlock, Bottleneck
from seresnet.config import ModelConfig
from seresnet.randomness import uniform_like
from seresnet.targets import build_network

#: By the words of model.block.
BLOCKS: Mapping[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """A residual network for small images: 3x3 stem without pooling, stages that halve the size and double the width."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, config.width, 3, padding=1, bias=False), nn.BatchNorm2d(config.width), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(*(_stage(config, stage) for stage in range(len(config.blocks))))
        self.head = nn.Linear(_out_channels(config, len(config.blocks) - 1), num_classes)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """images: (N, 3, H, W) normalised; returns logits (N, num_classes).

        keep: (blocks, N), stochastic depth's factor of every block and image (see survival); None: every block counts.
        """
        features: Tensor = self.stem(images)
        for number, block in enumerate(_blocks(self.stages)):
            features = block(features) if keep is None else block(features, keep[number])
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def _blocks(stages: nn.Sequential) -> Iterator[nn.Module]:
    for stage in stages:
        assert isinstance(stage, nn.Sequential)
        yield from stage


def build_model(config: ModelConfig, num_classes: int, seed: int | None) -> nn.Module:
    """The network on the CPU in float32; equal (config, num_classes, seed) give equal weights on every machine.

    seed: None for one whose weights do not matter, and hold anything. Raises ConfigError for a model.target that gives no network.
    """
    if config.target is not None:
        return build_network(config, num_classes, seed or 0)
    # On meta first: the layers' own initialisers draw from the global generator otherwise.
    with torch.device("meta"):
        model = ResNet(config, num_classes)
    allocate(model)
    if seed is not None:
        initialise(model, seed)
    return model


def allocate(model: nn.Module) -> None:
    """Give a network on meta CPU memory in place, not filled: to_empty() without its 0.4 s, in which torch imports sympy for strides."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def initialise(model: nn.Module, seed: int) -> None:
    """Fill weights and buffers in place with the distributions of torch's own layers.

    Conv1d, Conv2d and Linear: uniform within 1 / sqrt(fan_in) for weight and bias (torch's reset_parameters); BatchNorm2d: 1 and 0,
    running mean 0 and variance 1. Raises TypeError for a layer with parameters that it does not know.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for key, parameter in module.named_parameters(recurse=False):
                draws = uniform_like(seed, f"{name}.{key}", tuple(parameter.shape), bound)
                parameter.data.copy_(torch.from_numpy(draws))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # constants only
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"{name}: no rule for the initial weights of {type(module).__name__}; add one to models.initialise")


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters, buffers not counted."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def survival(config: ModelConfig) -> list[float]:
    """Of every block, the probability that it counts: from nearly 1 down to 1 - drop_path in the last, linear in depth.

    Source: Huang et al. 2016, equation 4.
    """
    count = sum(config.blocks)
    return [1 - config.drop_path * (number + 1) / count for number in range(count)]


def _stage(config: ModelConfig, stage: int) -> nn.Sequential:
    channels, first_block = config.width * 2**stage, sum(config.blocks[:stage])
    out_channels = _out_channels(config, stage)
    blocks = []
    for index in range(config.blocks[stage]):
        shrinks = stage > 0 and index == 0
        in_channels = out_channels if index else _out_channels(config, stage - 1) if stage else config.width
        attention = build_attention(config, out_channels) if _has_attention(config, stage, first_block + index) else None
        blocks.append(BLOCKS[config.block](in_channels, channels, 2 if shrinks else 1, attention))
    return nn.Sequential(*blocks)


def _out_channels(config: ModelConfig, stage: int) -> int:
    expansion = BLOCKS[config.block].EXPANSION
    return expansion * config.width * (1 << stage)


def _has_attention(config: ModelConfig, stage: int, block: int) -> bool:
    """stage and block count from 0, block over the whole network; every_other starts with the second block."""
    if config.attention == "none":
        return False
    if config.attention_at == "every":
        return True
    if config.attention_at == "every_other":
        return block % 2 == 1
    return stage + 1 in config.attention_at
