"""The CIFAR-10 policy of AutoAugment (Cubuk et al. 2019) on a batch of uint8 images, in torch operations only.

Every operation has PIL's arithmetic in integers or in the same float steps, so results equal torchvision's AutoAugment on PIL images
bit for bit. Which operation an image gets is drawn on the host, so each one runs over just the images that drew it, without a wait.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seresnet.randomness import Integers, integers, uniform, words

#: (operation, probability, magnitude bin of 0..9), twice a sub-policy; torchvision's AutoAugmentPolicy.CIFAR10, table 7 of the paper.
POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 0)),
)

#: Row of the operation table that stands for "leave the image as it is".
IDENTITY = 4 * len(POLICY)


@dataclass(frozen=True, kw_only=True)
class OperationTable:
    """Operations with their magnitudes worked out for one image size, a row per operation; all but kind on the images' device."""

    kind: npt.NDArray[np.uint8]
    """(K,) which of KINDS does it, on the host."""
    lookup: Tensor
    """(K, 256) uint8, new value of each old one, for kind "lookup"."""
    factor: Tensor
    """(K,) float32, PIL's enhancement factor, 1 = unchanged, for contrast, color and sharpness."""
    move: Tensor
    """(K,) int64, row of source and inside, for kind "affine"."""
    source: Tensor
    """(A, H * W) int64, from which pixel each pixel comes; 0 where it comes from outside."""
    inside: Tensor
    """(A, H * W) uint8, 1 where the source is inside the image, else 0."""


def draw_operations(seed: int, epoch: int, rows: int) -> Integers:
    """(rows, 2) rows of policy_table: what each sample gets first and second."""
    policy = integers(words(seed, "autoaugment.policy", epoch, rows), len(POLICY))
    negative = integers(words(seed, "autoaugment.sign", epoch, rows, 2), 2)
    probability = np.array([[p for _, p, _ in sub] for sub in POLICY]).take(policy[:, 0], axis=0)
    applied = uniform(words(seed, "autoaugment.apply", epoch, rows, 2)) < probability
    return np.where(applied, (policy * 2 + np.arange(2)) * 2 + negative, IDENTITY)


@functools.cache
def policy_table(height: int, width: int, device: torch.device) -> OperationTable:
    """Every operation of the policy: row (sub-policy * 2 + position) * 2 + negative, then IDENTITY."""
    operations = [
        (name, magnitude(name, level, height, width) * (-1 if negative and name in _SIGNED else 1))
        for sub in POLICY
        for name, _, level in sub
        for negative in (False, True)
    ]
    return operation_table([*operations, ("identity", 0.0)], height, width, device)


def operation_table(operations: Sequence[tuple[str, float]], height: int, width: int, device: torch.device | None = None) -> OperationTable:
    """Rows for these (name, signed magnitude), magnitudes as torchvision's AutoAugment means them. device: None = the CPU."""
    kinds = [_KIND.get(name, name) for name, _ in operations]
    lookup = np.zeros((len(operations), 256), dtype=np.uint8)
    move = np.zeros(len(operations), dtype=np.int64)
    sources = [np.zeros(height * width, dtype=np.int64)]  # of what does not move: stacking needs one
    known: dict[tuple[str, float], int] = {}
    for row, (name, value) in enumerate(operations):
        if kinds[row] == "lookup":
            lookup[row] = _lookup_row(name, value)
        elif kinds[row] == "affine":
            if (name, value) not in known:
                known[name, value] = len(sources)
                sources.append(_source(_fixed_point(_inverse_affine(name, value, height, width)), height, width))
            move[row] = known[name, value]
    upload = functools.partial(to_device, device=device or torch.device("cpu"))
    source = np.stack(sources)
    return OperationTable(
        kind=np.array([list(KINDS).index(kind) for kind in kinds], dtype=np.uint8),
        lookup=upload(lookup),
        factor=upload(np.array([1.0 + value for _, value in operations], dtype=np.float32)),
        move=upload(move),
        source=upload(np.maximum(source, 0)),
        inside=upload((source >= 0).astype(np.uint8)),
    )


def magnitude(name: str, level: int, height: int, width: int) -> float:
    """Unsigned magnitude of a bin, 0..9; in float32 as torchvision has it, because factors are compared in their last bit."""
    if name == "posterize":
        return float(8 - round(level / (9 / 4)))
    first, last = {
        "shear_x": (0.0, 0.3),
        "shear_y": (0.0, 0.3),
        "translate_x": (0.0, 150.0 / 331.0 * width),
        "translate_y": (0.0, 150.0 / 331.0 * height),
        "rotate": (0.0, 30.0),
        "solarize": (255.0, 0.0),
    }.get(name, (0.0, 0.9))
    return torch.linspace(first, last, 10)[level].item()


def apply_operations(images: Tensor, rows: Integers, table: OperationTable) -> Tensor:
    """One operation for each image. images: (n, 3, H, W) uint8; rows: (n,) on the host. The result has the same shape."""
    kinds = table.kind[rows]
    order = np.argsort(kinds, kind="stable")
    counts = np.bincount(kinds, minlength=len(KINDS)).tolist()
    # Gathered back by the inverse order, not scattered into a copy: a scatter is sorted first in deterministic mode.
    there, numbers, back = to_device(np.stack((order, rows[order], np.argsort(order, kind="stable"))), images.device)
    parts = zip(KINDS.values(), images.index_select(0, there).split(counts), numbers.split(counts), strict=True)
    done = [function(part, number, table) for function, part, number in parts if len(part)]
    return torch.cat(done).index_select(0, back) if done else images


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace every value by its entry. tables: (n, 3, 256) uint8, or (n, 1, 256) for one table for all channels of an image."""
    n, channels = images.shape[:2]
    first = torch.arange(0, n * channels * 256, 256, dtype=torch.int32, device=images.device).view(n, channels, 1)
    # One flat index in 32 bits: gather wants 64, and moving them took a third longer.
    index = (images.flatten(2) + first).flatten()
    return tables.expand(-1, channels, -1).reshape(-1).index_select(0, index).view(images.shape)


def blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """base + factor * (images - base), clipped and cut off to uint8; the float32 steps of PIL's Image.blend, in its order."""
    base = base.float()
    mixed = (images.float() - base).mul_(factor).add_(base).clamp_(0, 255)
    # By way of int16, the same cut in a fifth of the time: torch's own kernel from float to uint8 is not vectorised on a CPU.
    return mixed.to(torch.int16).to(torch.uint8)


def luma(images: Tensor) -> Tensor:
    """PIL's conversion to "L", (n, 3, H, W) uint8 to (n, 1, H, W) int32: ITU-R 601-2 in 16-bit fixed point."""
    red, green, blue = (images[:, channel : channel + 1].int() for channel in range(3))
    return red.mul_(19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(0x8000).bitwise_right_shift_(16)


def move(images: Tensor, source: Tensor, inside: Tensor) -> Tensor:
    """Each pixel from its source, or 0. images: (n, C, H, W) uint8; source: (n, H * W) int64; inside: (n, H * W) uint8, 1 or 0."""
    index = source.unsqueeze(1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).mul_(inside.unsqueeze(1)).view(images.shape)


def _lookup(images: Tensor, rows: Tensor, table: OperationTable) -> Tensor:
    return look_up(images, table.lookup.index_select(0, rows).unsqueeze(1))


def _contrast(images: Tensor, rows: Tensor, table: OperationTable) -> Tensor:
    """Blend with the mean of the grey image, rounded half up."""
    grey, pixels = luma(images), images.shape[2] * images.shape[3]
    mean = (2 * grey.sum(dim=(2, 3)) + pixels) // (2 * pixels)
    values = torch.arange(256, device=images.device)
    return look_up(images, blend(mean, values, table.factor.index_select(0, rows).unsqueeze(1)).unsqueeze(1))


def _autocontrast(images: Tensor, rows: Tensor, table: OperationTable) -> Tensor:
    """Stretch each channel to 0..255; one that has a single value stays. In float64, as Python computes PIL's table."""
    low, high = (bound.unsqueeze(2).double() for bound in (images.flatten(2).amin(2), images.flatten(2).amax(2)))
    values = torch.arange(256, device=images.device, dtype=torch.float64)
    # Not 255.0 / tensor: torch computes that as reciprocal times 255, and one pixel in a thousand came out one lower.
    scale = torch.full_like(high, 255.0) / (high - low)
    stretched = (values * scale).add_(-low * scale).clamp_(0, 255)
    return look_up(images, torch.where(high > low, stretched, values).to(torch.int16).to(torch.uint8))


def _equalize(images: Tensor, rows: Tensor, table: OperationTable) -> Tensor:
    """Make each channel's histogram flat by PIL's integer rule; a channel with too few values to do so stays."""
    flat = images.flatten(2).long()
    histogram = torch.zeros(*flat.shape[:2], 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(2, flat, torch.ones((), dtype=torch.int32, device=images.device).expand_as(flat))
    last = histogram.gather(2, images.flatten(2).amax(2, keepdim=True).long())
    step = (flat.shape[2] - last) // 255
    below = histogram.cumsum(2, dtype=torch.int32) - histogram
    flattened = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255)
    values = torch.arange(256, dtype=torch.int32, device=images.device)
    return look_up(images, torch.where(step > 0, flattened, values).to(torch.uint8))


def _color(images: Tensor, rows: Tensor, table: OperationTable) -> Tensor:
    return blend(luma(images), images, table.factor.index_select(0, rows).view(-1, 1, 1, 1))


def _sharpness(images: Tensor, rows: Tensor, table: OperationTable) -> Tensor:
    """Blend with PIL's SMOOTH: 3x3 of ones around a five, over 13, rounded half up; the border stays."""
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images  # all border
    # All images as one row of pixels: what runs over an edge lands in the border, which stays. Long rows are what a CPU is fast at.
    x = images.flatten().to(torch.int16)
    three = x[:-2] + x[1:-1] + x[2:]
    total = three[: -2 * width] + three[width:-width] + three[2 * width :] + 4 * x[width + 1 : -width - 1]
    smooth = images.clone()
    # (total + 6.5) / 13 is never nearer than 1/26 to a whole number, so float32 cuts off as exact arithmetic would.
    inner = ((total + 6.5) / 13).to(torch.int16).to(torch.uint8)
    padded = torch.nn.functional.pad(inner, (width + 1, width + 1)).view(images.shape)
    smooth[:, :, 1:-1, 1:-1] = padded[:, :, 1:-1, 1:-1]
    return blend(smooth, images, table.factor.index_select(0, rows).view(-1, 1, 1, 1))


def _affine(images: Tensor, rows: Tensor, table: OperationTable) -> Tensor:
    moves = table.move.index_select(0, rows)
    return move(images, table.source.index_select(0, moves), table.inside.index_select(0, moves))


#: What does each kind of operation: (images that drew it, their rows, the table) -> images.
KINDS: dict[str, Callable[[Tensor, Tensor, OperationTable], Tensor]] = {
    "identity": lambda images, rows, table: images,
    "lookup": _lookup,
    "contrast": _contrast,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "color": _color,
    "sharpness": _sharpness,
    "affine": _affine,
}

_KIND = dict.fromkeys(("brightness", "posterize", "solarize", "invert"), "lookup") | dict.fromkeys(
    ("shear_x", "shear_y", "translate_x", "translate_y", "rotate"), "affine"
)

_SIGNED = {"shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness"}


def _lookup_row(name: str, value: float) -> npt.NDArray[np.uint8]:
    values = np.arange(256, dtype=np.uint8)
    if name == "brightness":
        black, factor = torch.zeros(256), torch.tensor(1.0 + value)
        return np.asarray(blend(black, torch.from_numpy(values), factor).numpy())
    if name == "posterize":
        return values & np.uint8(256 - 2 ** (8 - int(value)))
    return np.where(values < value, values, 255 - values) if name == "solarize" else 255 - values


def _inverse_affine(name: str, value: float, height: int, width: int) -> tuple[float, ...]:
    """(a, b, c, d, e, f): the output pixel (x, y) shows the input at (a x + b y + c, d x + e y + f)."""
    if name == "rotate":
        # Rounded to 15 digits as PIL does, so that FIX below meets the same numbers.
        cos, sin = round(math.cos(-math.radians(value)), 15), round(math.sin(-math.radians(value)), 15)
        x, y = width / 2, height / 2
        return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y
    return {
        "shear_x": (1.0, value, 0.0, 0.0, 1.0, 0.0),
        "shear_y": (1.0, 0.0, 0.0, value, 1.0, 0.0),
        "translate_x": (1.0, 0.0, float(-int(value)), 0.0, 1.0, 0.0),
        "translate_y": (1.0, 0.0, 0.0, 0.0, 1.0, float(-int(value))),
    }[name]


def _fixed_point(matrix: tuple[float, ...]) -> list[int]:
    """16.16 fixed point, half a pixel added to the offsets: PIL samples at pixel centres."""
    a, b, c, d, e, f = matrix
    centred = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return [math.floor(value * 65536.0 + 0.5) for value in centred]


def _source(matrix: Sequence[int], height: int, width: int) -> Integers:
    """(H * W,) the input pixel that each output pixel's centre maps into, -1 outside: PIL's nearest filter in 16.16 fixed point."""
    a, b, c, d, e, f = matrix
    x, y = np.arange(width), np.arange(height)[:, None]
    from_x, from_y = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return np.where(inside, from_y * width + from_x, -1).ravel()


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """A host array as a tensor on the device, copied without waiting where there is something to copy to."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
