"""A network that knows nothing of this toolkit: a small MLP-Mixer (Tolstikhin et al. 2021) with dropout."""

from torch import Tensor, nn


class _Mixer(nn.Module):
    def __init__(self, patches: int, width: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Dropout(drop), nn.Linear(2 * patches, patches))
        self.within = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(drop), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.across(self.norm1(tokens).transpose(1, 2)).transpose(1, 2)
        return tokens + self.within(self.norm2(tokens))


class MlpMixer(nn.Module):
    """(N, 3, size, size) to (N, num_classes)."""

    def __init__(self, num_classes: int, size: int = 32, patch: int = 8, width: int = 32, depth: int = 2, drop: float = 0.1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.blocks = nn.Sequential(*(_Mixer((size // patch) ** 2, width, drop) for _ in range(depth)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.blocks(tokens).mean(1))
        return logits
