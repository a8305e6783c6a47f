"""A network to evaluate in which batch norm is part of the convolution before it: the same function, one pass over memory less each.

What is evaluated, and when, is evaluate.py's business. One invariant: only a batch norm that is known to be fed by its convolution, and
by nothing else, is folded; all else of the network is the source's own tensors in modules of our own.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from seresnet.attention import ChannelSpatialAttention
from seresnet.blocks import BasicBlock, Bottleneck
from seresnet.models import ResNet

#: Which children of these very classes feed which. A subclass may compute something else, so it is not folded.
_KNOWN: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    ResNet: (("stem.0", "stem.1"),),
    BasicBlock: (("conv1", "bn1"), ("conv2", "bn2"), ("shortcut.0", "shortcut.1")),
    Bottleneck: (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("shortcut.0", "shortcut.1")),
    ChannelSpatialAttention: (("places", "norm"),),
}


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """A convolution and its batch norm in the source, and the convolution that stands for both."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    folded: nn.Conv2d


class FoldedNetwork:
    """A network for evaluation, made once; refresh() brings it to what its source has become.

    Its own memory are the weights of the folded convolutions. They stay where they are, so that a compiled network stays valid.
    """

    def __init__(self, source: nn.Module) -> None:
        """source: its tensors stay the same objects from now on. Nothing of it is changed."""
        shared = {id(value): value for value in itertools.chain(source.parameters(), source.buffers())}
        self.network = copy.deepcopy(source, shared).eval()
        # Found in the source: a module that it uses twice is one in the copy, too.
        self._pairs = [self._fold(*names) for names in list(foldable(source))]

    @property
    def folds(self) -> int:
        """How many batch norms are gone."""
        return len(self._pairs)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the source's weights and statistics as they are now; in float64, so that each folded weight is rounded once."""
        for pair in self._pairs:
            conv, norm = pair.conv, pair.norm
            values = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            weight, bias, mean, var, gamma, beta = (None if value is None else value.double() for value in values)
            assert weight is not None and mean is not None and var is not None
            fused_weight, fused_bias = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, gamma, beta)
            pair.folded.weight.copy_(fused_weight)
            assert pair.folded.bias is not None
            pair.folded.bias.copy_(fused_bias)

    def _fold(self, conv_name: str, norm_name: str) -> _Pair:
        conv, norm = self.network.get_submodule(conv_name), self.network.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        folded = _with_bias(conv)
        self.network.set_submodule(conv_name, folded)
        self.network.set_submodule(norm_name, nn.Identity())
        return _Pair(conv=conv, norm=norm, folded=folded)


def foldable(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of each convolution and of the batch norm that it alone feeds, in the modules whose forward is known here."""
    modules = dict(model.named_modules())
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        for names in _KNOWN.get(type(module), ()) if _is_plain(module) else ():
            first, second = (f"{name}.{child}" if name else child for child in names)
            conv, norm = modules.get(first), modules.get(second)
            if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
                continue
            if all(_is_plain(part) and uses[id(part)] == 1 for part in (conv, norm)):
                yield first, second


def _is_plain(module: nn.Module) -> bool:
    """Whether nobody looks at what it is given or gives, and its class says what it computes."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _with_bias(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the same shape, on the same device and in the same layout, with a bias; its values are yet to come."""
    made = copy.deepcopy(conv)
    made.weight.requires_grad_(False)
    made.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels), requires_grad=False)
    return made
