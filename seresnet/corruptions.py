"""The 15 corruptions of CIFAR-10-C at five severities, computed in batches on the device. Source: Hendrycks & Dietterich 2019, and the
constants and order of operations of their make_cifar_c.py.

Draws are pure functions of corruption, severity and image, so every run is tested on the same images. What differs from the published
arrays: the generator, and frost, whose photographs are not ours to ship (its texture is a fractal here). Evaluating is robustness.py's
job. One invariant: uint8 in, uint8 out, and no image changes another's result.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from seresnet.corruption_draws import gaussian, poisson, uniform_rows
from seresnet.corruption_files import jpeg, pixelate
from seresnet.errors import ConfigError

#: (images (N, 3, H, W) in [0, 1], indices (N,), severity 1..5) -> (N, 3, H, W), not clipped.
Operation = Callable[[Tensor, npt.NDArray[np.int64], int], Tensor]


def corrupt(name: str, images: Tensor, indices: npt.NDArray[np.int64], severity: int) -> Tensor:
    """images: (N, 3, H, W) uint8; indices: (N,) of each in the full test array, which decide its draws. Returns the same shape and type.

    Raises ConfigError for an unknown name.
    """
    if name not in OPERATIONS:
        raise ConfigError(f"{name} is no corruption. There are: {', '.join(OPERATIONS)}.")
    assert severity in range(1, 6), f"severity {severity}"
    changed = OPERATIONS[name](images.float() / 255, indices, severity - 1)
    # Cut and not rounded, as the published arrays are.
    return (changed.clamp(0, 1) * 255).to(torch.uint8)


def _gaussian_noise(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[level]
    return x + scale * gaussian("gaussian_noise", level, indices, x[0].numel(), x.device).view_as(x)


def _shot_noise(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    photons = (500, 250, 100, 75, 50)[level]
    return poisson("shot_noise", level, indices, x * photons) / photons


def _impulse_noise(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    drawn = uniform_rows("impulse_noise", level, indices, x[0].numel(), x.device).view_as(x)
    return torch.where(drawn < amount / 2, 0.0, torch.where(drawn < amount, 1.0, x))


def _defocus_blur(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]
    return _filtered(x, disk(radius, sigma).to(x.device))


def disk(radius: float, sigma: float) -> Tensor:
    """(17, 17): a disk of this radius in pixels, its edge smoothed by a 3x3 Gaussian; sums to 1 but for what the border takes."""
    place = torch.arange(-8.0, 9.0)
    inside = ((place[:, None] ** 2 + place**2) <= radius**2).float()
    edge = torch.exp(-(torch.arange(-1.0, 2.0) ** 2) / (2 * sigma**2))
    edge = edge / edge.sum()
    smooth = F.conv2d((inside / inside.sum())[None, None], (edge[:, None] * edge)[None, None], padding=1)
    return smooth[0, 0]


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlation of every channel with the kernel, the border mirrored without its last pixel (OpenCV's default)."""
    half = kernel.shape[0] // 2
    channels = x.shape[1]
    padded = _mirrored(x, half)
    return F.conv2d(padded, kernel.expand(channels, 1, *kernel.shape).contiguous(), groups=channels)


def _mirrored(x: Tensor, margin: int) -> Tensor:
    height, width = x.shape[2:]
    rows, columns = _mirror(height, margin, x.device), _mirror(width, margin, x.device)
    return x.index_select(2, rows).index_select(3, columns)


def _mirror(length: int, margin: int, device: torch.device) -> Tensor:
    """Indices -margin .. length + margin - 1, mirrored at 0 and length - 1 as often as it takes."""
    period = max(1, 2 * (length - 1))
    place = torch.arange(-margin, length + margin, device=device).remainder(period)
    return torch.minimum(place, period - place)


def _smoothed(x: Tensor, sigma: float) -> Tensor:
    """Gaussian filter cut at 4 sigma, the border repeated (scikit-image's)."""
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return x
    weights = torch.exp(-(torch.arange(-radius, radius + 1.0, device=x.device) ** 2) / (2 * sigma**2))
    return _separable(F.pad(x, (radius,) * 4, mode="replicate"), weights / weights.sum())


def _separable(padded: Tensor, weights: Tensor) -> Tensor:
    channels = padded.shape[1]
    down = F.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1).contiguous(), groups=channels)
    return F.conv2d(down, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1).contiguous(), groups=channels)


def _glass_blur(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    """Smoothed, pixels replaced by neighbours one place after the other, smoothed again.

    Replaced and not swapped: so the published arrays were made, whose code assigns one view to another.
    """
    sigma, reach, rounds = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[level]
    height, width = x.shape[2:]
    x = ((_smoothed(x, sigma)).clamp(0, 1) * 255).floor() / 255
    flat = x.flatten(2).clone()
    places = [(h, w) for _ in range(rounds) for h in range(height - reach, reach, -1) for w in range(width - reach, reach, -1)]
    drawn = uniform_rows("glass_blur", level, indices, 2 * len(places), x.device)
    steps = (drawn * 2 * reach).floor().long() - reach  # from -reach to reach - 1, as numpy's randint
    for number, (h, w) in enumerate(places):
        across, down = steps[:, 2 * number], steps[:, 2 * number + 1]
        other = (h + down) * width + w + across
        flat[:, :, h * width + w] = flat.gather(2, other[:, None, None].expand(-1, flat.shape[1], 1))[:, :, 0]
    return _smoothed(flat.view_as(x), sigma)


def _motion_blur(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[level]
    angle = (uniform_rows("motion_blur", level, indices, 1, x.device)[:, 0] - 0.5) * 90
    return motion(x, radius, sigma, angle)


def motion(x: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """One-sided Gaussian along a direction, in degrees for each image; places are rounded, the border is repeated (ImageMagick's)."""
    steps = torch.arange(2 * radius + 1, device=x.device, dtype=torch.float32)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    height, width = x.shape[2:]
    turn = angle.double() * math.pi / 180
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    result, flat = torch.zeros_like(x), x.flatten(2)
    for number, weight in enumerate(weights.tolist()):
        across = torch.ceil(number * torch.cos(turn) - 0.5).long()[:, None]
        down = torch.ceil(number * torch.sin(turn) - 0.5).long()[:, None]
        y, z = (rows + down).clamp(0, height - 1), (columns + across).clamp(0, width - 1)
        place = (y[:, :, None] * width + z[:, None, :]).flatten(1)[:, None].expand(-1, x.shape[1], -1)
        result += weight * flat.gather(2, place).view_as(x)
    return result


def _zoom_blur(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    count = (6, 11, 16, 21, 26)[level]
    total = x.clone()
    for number in range(count):
        total += zoomed(x, 1 + 0.01 * number)
    return total / (count + 1)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of the images enlarged to their size, bilinear between the corner pixels' centres (scipy.ndimage.zoom, order 1)."""
    height = x.shape[2]
    crop = math.ceil(height / factor)
    top = (height - crop) // 2
    out = round(crop * factor)
    large = F.interpolate(x[:, :, top : top + crop, top : top + crop], size=(out, out), mode="bilinear", align_corners=True)
    trim = (out - height) // 2
    return large[:, :, trim : trim + height, trim : trim + height]


def _snow(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    constants = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )
    mean, scale, factor, threshold, radius, sigma, share = constants[level]
    height, width = x.shape[2:]
    flakes = mean + scale * gaussian("snow", level, indices, height * width, x.device).view(-1, 1, height, width)
    flakes = zoomed(flakes, factor)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angle = -135 + 90 * uniform_rows("snow.angle", level, indices, 1, x.device)[:, 0]
    flakes = motion(flakes, int(radius), sigma, angle)
    grey = (x * torch.tensor((0.299, 0.587, 0.114), device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    bright = share * x + (1 - share) * torch.maximum(x, grey * 1.5 + 0.5)
    return bright + flakes + flakes.rot90(2, (2, 3))


def _frost(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    own, of_frost = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[level]
    crystals = plasma("frost", level, indices, x.shape[2], 1.6, x.device)
    tint = torch.tensor((0.75, 0.86, 0.95), device=x.device).view(1, 3, 1, 1)
    return own * x + of_frost * crystals[:, None] * tint


def _fog(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    amount, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[level]
    largest = x.amax((1, 2, 3), keepdim=True)
    return (x + amount * plasma("fog", level, indices, x.shape[2], decay, x.device)[:, None]) * largest / (largest + amount)


def plasma(purpose: str, level: int, indices: npt.NDArray[np.int64], size: int, decay: float, device: torch.device) -> Tensor:
    """(N, size, size) fractals in [0, 1] by the diamond-square algorithm, periodic; its roughness falls by decay a step."""
    side = 1 << max(1, (size - 1).bit_length())
    drawn = uniform_rows(purpose, level, indices, side * side, device) * 2 - 1
    field = torch.zeros(len(indices), side, side, device=device)
    used, step, wibble = 0, side, 100.0
    while step >= 2:
        half, cells = step // 2, (side // step) ** 2
        parts = [drawn[:, used + k * cells : used + (k + 1) * cells].view(-1, side // step, side // step) for k in range(3)]
        used += 3 * cells
        corners = field[:, ::step, ::step]
        squares = corners + corners.roll(-1, 1)
        squares = squares + squares.roll(-1, 2)
        middles = squares / 4 + wibble * wibble * parts[0]
        field[:, half::step, half::step] = middles
        field[:, ::step, half::step] = (middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)) / 4 + wibble * wibble * parts[1]
        field[:, half::step, ::step] = (middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)) / 4 + wibble * wibble * parts[2]
        step, wibble = half, wibble / decay
    field = field - field.amin((1, 2), keepdim=True)
    return (field / field.amax((1, 2), keepdim=True).clamp(min=1e-12))[:, :size, :size]


def _brightness(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    """The V of HSV raised: all three channels by one factor; black becomes grey."""
    value = x.amax(1, keepdim=True)
    raised = (value + (0.05, 0.1, 0.15, 0.2, 0.3)[level]).clamp(0, 1)
    return torch.where(value > 0, x * raised / value.clamp(min=1e-12), raised)


def _contrast(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[level] + mean


def _elastic_transform(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    """A random affine map of three points, then every pixel moved along a smooth random field."""
    size = x.shape[2]
    strength, sigma, shift = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))[level]
    moved = (uniform_rows("elastic.points", level, indices, 6, x.device).view(-1, 3, 2) * 2 - 1) * shift * size
    x = _sampled(x, _affine_places(size, moved))
    field = uniform_rows("elastic.field", level, indices, 2 * size * size, x.device).view(-1, 2, size, size) * 2 - 1
    offsets = _softened(field, sigma * size) * strength * size
    rows, columns = torch.meshgrid(*(torch.arange(size, device=x.device),) * 2, indexing="ij")
    return _sampled(x, torch.stack((columns + offsets[:, 0], rows + offsets[:, 1]), -1))


def _softened(field: Tensor, sigma: float) -> Tensor:
    """Gaussian filter cut at 3 sigma, the border mirrored with its last pixel."""
    radius = int(3 * sigma + 0.5)
    if radius == 0:
        return field
    weights = torch.exp(-(torch.arange(-radius, radius + 1.0, device=field.device) ** 2) / (2 * sigma**2))
    size = field.shape[2]
    place = torch.arange(-radius, size + radius, device=field.device).remainder(2 * size)
    place = torch.minimum(place, 2 * size - 1 - place)
    return _separable(field.index_select(2, place).index_select(3, place), weights / weights.sum())


def _affine_places(size: int, moved: Tensor) -> Tensor:
    """(N, size, size, 2) places (x, y) in the source for each pixel, where three points around the middle have moved by these."""
    middle, third = size // 2, size // 3
    before = torch.tensor(
        [[middle + third, middle + third], [middle + third, middle - third], [middle - third, middle - third]],
        device=moved.device, dtype=torch.float64,
    )  # fmt: skip
    after = torch.cat((before + moved.double(), torch.ones(len(moved), 3, 1, device=moved.device, dtype=torch.float64)), 2)
    # Backwards at once: which source a pixel of the result has.
    inverse = torch.linalg.solve(after, before.expand(len(moved), 3, 2))
    rows, columns = torch.meshgrid(*(torch.arange(size, device=moved.device, dtype=torch.float64),) * 2, indexing="ij")
    return torch.stack((columns, rows, torch.ones_like(rows)), -1).view(1, -1, 3).matmul(inverse).view(-1, size, size, 2).float()


def _sampled(x: Tensor, places: Tensor) -> Tensor:
    """Bilinear values at places (x, y) in pixels, the border mirrored without its last pixel."""
    return F.grid_sample(x, places * (2 / (x.shape[2] - 1)) - 1, mode="bilinear", padding_mode="reflection", align_corners=True)


def _pixelate(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    return pixelate(x, (0.95, 0.9, 0.85, 0.75, 0.65)[level])


def _jpeg_compression(x: Tensor, indices: npt.NDArray[np.int64], level: int) -> Tensor:
    return jpeg(x, (80, 65, 58, 50, 40)[level])


#: In the order of the paper's tables.
OPERATIONS: Mapping[str, Operation] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "frost": _frost,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
