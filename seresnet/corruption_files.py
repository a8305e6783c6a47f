"""The two corruptions that are what pillow does to a picture: box-resized to fewer pixels and back, and stored as JPEG. On the host."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pixelate(x: Tensor, share: float) -> Tensor:
    """x: (N, 3, H, W) in [0, 1]; resized to this share of its pixels a side and back."""

    def change(image: Image.Image) -> Image.Image:
        small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.BOX)

    return _each(x, change)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """x: (N, 3, H, W) in [0, 1]; written as JPEG of this quality and read again."""

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(x, change)


def _each(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(image)), dtype=np.float32) for image in pixels])
    # A hair above, so that cutting to uint8 gives the same value back.
    return ((torch.from_numpy(changed) + 0.25) / 255).permute(0, 3, 1, 2).to(x.device)
