"""Each corruption against an independent restatement: scipy's, pillow's or a plain loop over pixels; draws belong to images."""

import colorsys
import io
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from seresnet import corruptions as own
from seresnet.corruption_draws import gaussian, poisson, uniform_rows
from seresnet.errors import ConfigError

CPU = torch.device("cpu")
INDICES = np.arange(6)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """(6, 3, 32, 32) uint8, smooth as photographs are, with a black and a white one."""
    noise = np.random.default_rng(0).random((6, 3, 32, 32))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    smooth = (smooth - smooth.min((2, 3), keepdims=True)) / np.ptp(smooth, (2, 3), keepdims=True)
    smooth[4], smooth[5] = 0, 1
    return torch.from_numpy((smooth * 255).astype(np.uint8))


@pytest.mark.parametrize("name", own.OPERATIONS)
def test_an_images_corruption_depends_on_no_other_image_and_on_no_call(name: str, images: torch.Tensor) -> None:
    whole = own.corrupt(name, images, INDICES, 3)
    part = own.corrupt(name, images[[4, 1]], np.array([4, 1]), 3)
    assert whole.dtype == torch.uint8 and whole.shape == images.shape
    assert (part.int() - whole[[4, 1]].int()).abs().max() <= 1  # sums of floats in another order


@pytest.mark.parametrize("name", own.OPERATIONS)
def test_severities_go_further_from_the_image(name: str, images: torch.Tensor) -> None:
    distance = [(own.corrupt(name, images[:4], INDICES[:4], s).float() - images[:4].float()).abs().mean().item() for s in (1, 5)]
    # As published: elastic's first severity moves the image most, and frost's last is darker, with more of the frost.
    assert distance[0] > 0 and (distance[1] > distance[0] or name in ("elastic_transform", "frost")), distance


def test_an_unknown_name_lists_the_valid_ones(images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"fogg is no corruption. There are: gaussian_noise"):
        own.corrupt("fogg", images, INDICES, 1)


def test_draws_have_the_distributions_that_they_are_named_after() -> None:
    normal = gaussian("test", 0, np.arange(50), 4000, CPU).numpy()
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.01
    flat = uniform_rows("test", 0, np.arange(50), 4000, CPU).numpy()
    assert flat.min() >= 0 and flat.max() < 1 and abs(flat.mean() - 0.5) < 0.005 and abs(flat.std() - 12**-0.5) < 0.005
    counts = poisson("test", 0, np.arange(50), torch.full((50, 4000), 3.5)).numpy()
    assert abs(counts.mean() - 3.5) < 0.02 and abs(counts.var() - 3.5) < 0.06
    assert abs((counts == 2).mean() - 3.5**2 / 2 * math.exp(-3.5)) < 0.005
    assert poisson("test", 0, np.arange(1), torch.zeros(1, 5)).sum() == 0


@pytest.mark.parametrize("level", range(5))
def test_defocus_is_scipys_convolution_with_the_disk(level: int, images: torch.Tensor) -> None:
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]
    place = np.arange(-8, 9)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(float)
    edge = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * sigma**2))
    disk = scipy.ndimage.convolve(disk / disk.sum(), np.outer(edge, edge) / edge.sum() ** 2, mode="constant")
    x = images.double().numpy() / 255
    expected = np.stack([[scipy.ndimage.correlate(channel, disk, mode="mirror") for channel in image] for image in x])
    found = own.OPERATIONS["defocus_blur"](images.float() / 255, INDICES, level).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("factor", [1.01, 1.06, 1.25, 2.25])
def test_zoom_is_scipys(factor: float, images: torch.Tensor) -> None:
    x = images.double().numpy() / 255
    crop = math.ceil(32 / factor)
    top = (32 - crop) // 2
    large = scipy.ndimage.zoom(x[0, 0, top : top + crop, top : top + crop], factor, order=1)
    trim = (large.shape[0] - 32) // 2
    np.testing.assert_allclose(own.zoomed(images.float() / 255, factor)[0, 0].numpy(), large[trim : trim + 32, trim : trim + 32], atol=1e-5)


def test_motion_blur_is_a_plain_loop_along_the_direction(images: torch.Tensor) -> None:
    x, angle = images.double().numpy()[0, 0] / 255, 30.0
    steps = np.arange(13)
    weights = np.exp(-(steps**2) / (2 * 2.0**2))
    weights /= weights.sum()
    expected = np.zeros((32, 32))
    for row in range(32):
        for column in range(32):
            for step, weight in zip(steps, weights, strict=True):
                across = math.ceil(step * math.cos(math.radians(angle)) - 0.5)
                down = math.ceil(step * math.sin(math.radians(angle)) - 0.5)
                expected[row, column] += weight * x[min(31, max(0, row + down)), min(31, max(0, column + across))]
    found = own.motion(images[:1].float() / 255, 6, 2.0, torch.tensor([angle]))[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_glass_blur_is_a_plain_loop_over_pixels(images: torch.Tensor) -> None:
    sigma, reach, rounds, level = 0.4, 1, 2, 4
    x = scipy.ndimage.gaussian_filter(images[0].double().numpy() / 255, (0, sigma, sigma), mode="nearest", truncate=4)
    x = np.floor(x.clip(0, 1).astype(np.float32) * 255) / 255
    places = [(h, w) for _ in range(rounds) for h in range(32 - reach, reach, -1) for w in range(32 - reach, reach, -1)]
    steps = np.floor(uniform_rows("glass_blur", level, INDICES[:1], 2 * len(places), CPU)[0].numpy() * 2 * reach).astype(int) - reach
    for number, (h, w) in enumerate(places):
        x[:, h, w] = x[:, h + steps[2 * number + 1], w + steps[2 * number]]
    expected = scipy.ndimage.gaussian_filter(x, (0, sigma, sigma), mode="nearest", truncate=4)
    found = own.OPERATIONS["glass_blur"](images[:1].float() / 255, INDICES[:1], level)[0].numpy()
    assert np.mean(np.abs(found - expected) > 1.5 / 255) < 0.01  # a value at the edge of two steps of 1 / 255 may fall on either side


def test_the_fractal_is_the_diamond_square_algorithm_cell_by_cell() -> None:
    side, decay = 8, 2.0
    drawn = uniform_rows("fog", 1, INDICES[:1], side * side, CPU)[0].double().numpy() * 2 - 1
    field, used, step, wibble = np.zeros((side, side)), 0, side, 100.0
    while step >= 2:
        half = step // 2
        cells = [(r, c) for r in range(0, side, step) for c in range(0, side, step)]
        for r, c in cells:
            corners = field[r, c] + field[(r + step) % side, c] + field[r, (c + step) % side] + field[(r + step) % side, (c + step) % side]
            field[r + half, c + half] = corners / 4 + wibble**2 * drawn[used]
            used += 1
        for r, c in cells:
            around = field[r + half, c + half] + field[(r - half) % side, c + half] + field[r, c] + field[r, (c + step) % side]
            field[r, c + half] = around / 4 + wibble**2 * drawn[used]
            used += 1
        for r, c in cells:
            around = field[r + half, c + half] + field[r + half, (c - half) % side] + field[r, c] + field[(r + step) % side, c]
            field[r + half, c] = around / 4 + wibble**2 * drawn[used]
            used += 1
        step, wibble = half, wibble / decay
    field = (field - field.min()) / np.ptp(field)
    np.testing.assert_allclose(own.plasma("fog", 1, INDICES[:1], side, decay, CPU)[0].numpy(), field, atol=1e-5)


def test_brightness_raises_the_value_of_hsv(images: torch.Tensor) -> None:
    found = own.OPERATIONS["brightness"](images.float() / 255, INDICES, 4).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    pixels = (images.double() / 255).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    for number in range(0, len(pixels), 97):
        h, s, v = colorsys.rgb_to_hsv(*pixels[number])
        np.testing.assert_allclose(found[number], colorsys.hsv_to_rgb(h, s, min(1, v + 0.3)), atol=1e-5)


def test_contrast_shrinks_each_channel_to_its_mean(images: torch.Tensor) -> None:
    x = images.double().numpy() / 255
    mean = x.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(own.OPERATIONS["contrast"](images.float() / 255, INDICES, 2).numpy(), (x - mean) * 0.4 + mean, atol=1e-6)


def test_impulses_are_black_and_white_in_equal_parts(images: torch.Tensor) -> None:
    many = images[:1].expand(50, -1, -1, -1).contiguous() // 2 + 60  # neither black nor white before
    found = own.corrupt("impulse_noise", many, np.arange(50), 5)
    black, white = ((found == value).float().mean().item() for value in (0, 255))
    assert abs(black - 0.035) < 0.004 and abs(white - 0.035) < 0.004, (black, white)


@pytest.mark.parametrize("level", [0, 4])
def test_elastic_places_are_those_of_an_affine_map_of_three_points(level: int) -> None:
    moved = torch.tensor([[[1.0, -2.0], [0.5, 1.5], [-1.0, 0.25]]])
    places = own._affine_places(32, moved)[0].double().numpy()
    before = np.array([[26, 26], [26, 6], [6, 6]], dtype=float)
    for point, shift in zip(before, moved[0].numpy(), strict=True):
        x, y = point + shift
        left, top = int(np.floor(x)), int(np.floor(y))
        corner = places[top : top + 2, left : left + 2]
        found = sum(corner[j, i] * (1 - abs(x - left - i)) * (1 - abs(y - top - j)) for i in (0, 1) for j in (0, 1))
        np.testing.assert_allclose(found, point, atol=1e-3)


def test_a_place_is_sampled_as_scipy_samples_it(images: torch.Tensor) -> None:
    x = images[:1].float() / 255
    places = torch.rand(1, 32, 32, 2, generator=torch.Generator().manual_seed(0)) * 40 - 4
    coordinates = [places[0, :, :, 1].numpy(), places[0, :, :, 0].numpy()]
    expected = scipy.ndimage.map_coordinates(x[0, 0].numpy(), coordinates, order=1, mode="mirror")
    np.testing.assert_allclose(own._sampled(x, places)[0, 0].numpy(), expected, atol=1e-4)


def test_jpeg_and_pixelate_are_pillows(images: torch.Tensor) -> None:
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=40)
    jpeg = np.asarray(Image.open(file))
    assert np.array_equal(own.corrupt("jpeg_compression", images, INDICES, 5)[0].permute(1, 2, 0).numpy(), jpeg)
    small = picture.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    assert np.array_equal(own.corrupt("pixelate", images, INDICES, 5)[0].permute(1, 2, 0).numpy(), np.asarray(small))
