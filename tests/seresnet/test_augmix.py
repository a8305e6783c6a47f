"""AugMix against a plain loop with PIL's operations and the released code's formulas, image by image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from seresnet.augment import augment, draw
from seresnet.augmix import IDENTITY, LEVELS, OPERATIONS, AugMixDraws, augmix, augmix_table, draw_augmix
from seresnet.autoaugment import apply_operations
from seresnet.config import AugmentConfig
from seresnet.noise import add_noise

CPU = torch.device("cpu")
SIGNED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


@pytest.fixture(scope="module")
def pictures():
    """(24, 3, 24, 32) uint8: patches of photographs, noise and one flat image."""
    rng = np.random.default_rng(0)
    photos = [photo[y : y + 24, x : x + 32] for photo in load_sample_images().images for y, x in rng.integers(0, 390, (10, 2))]
    every = np.concatenate([photos, rng.integers(0, 256, (3, 24, 32, 3), dtype=np.uint8), np.full((1, 24, 32, 3), 77, dtype=np.uint8)])
    return torch.from_numpy(every.transpose(0, 3, 1, 2).copy())


def by_pil(image: Image.Image, name: str, level: float, sign: int) -> Image.Image:
    """augmentations.py of the AugMix authors, restated with the nearest filter; level is what its sample_level returned."""
    width, height = image.size
    affine = {
        "shear_x": (1, sign * level * 0.3 / 10, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * level * 0.3 / 10, 1, 0),
        "translate_x": (1, 0, -sign * int(level * (width / 3) / 10), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -sign * int(level * (height / 3) / 10)),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name], resample=Image.Resampling.NEAREST)
    if name == "rotate":
        return image.rotate(sign * int(level * 30 / 10), resample=Image.Resampling.NEAREST)
    if name == "posterize":
        return ImageOps.posterize(image, 4 - int(level * 4 / 10))
    if name == "solarize":
        return ImageOps.solarize(image, 256 - int(level * 256 / 10))
    return {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize}[name](image)


def operation(row: int, severity: int) -> tuple[str, float, int]:
    """Name, level and sign of a row; a level is the middle of one of 30 cells of [0.1, severity]."""
    edges = np.linspace(0.1, severity, LEVELS + 1)
    level = row // 2 % LEVELS
    return OPERATIONS[row // 2 // LEVELS], (edges[level] + edges[level + 1]) / 2, -1 if row % 2 else 1


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("severity", [1, 3, 10])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_at_every_level_equals_pil(pictures, name, severity):
    table = augmix_table(severity, 24, 32, CPU)
    for row in range(OPERATIONS.index(name) * LEVELS * 2, (OPERATIONS.index(name) + 1) * LEVELS * 2):
        some = pictures[[row % len(pictures), (row + 7) % len(pictures), -1]]
        expected = torch.stack([from_pil(by_pil(to_pil(image), *operation(row, severity))) for image in some])
        assert torch.equal(apply_operations(some, np.full(3, row), table), expected), operation(row, severity)


def mixed_by_loop(image, chains, shares, severity):
    """cifar.py's aug(): each chain in turn on the PIL image, then the weighted sum in float32, rounded at the end."""
    mixed = np.asarray(image).astype(np.float32) * shares[0]
    for chain, share in zip(chains, shares[1:], strict=True):
        done = image
        for row in chain:
            done = done if row == IDENTITY else by_pil(done, *operation(row, severity))
        mixed += np.asarray(done).astype(np.float32) * share
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("width", "depth", "severity"), [(3, None, 3), (1, 2, 1), (4, 1, 10)])
def test_chains_and_their_mix_equal_a_loop_over_pil_images(pictures, width, depth, severity):
    draws = draw_augmix(5, 2, len(pictures), width, depth)
    found = augmix(pictures, draws, augmix_table(severity, 24, 32, CPU))
    for i, image in enumerate(pictures):
        expected = mixed_by_loop(to_pil(image), draws.operations[i].tolist(), draws.shares[i], severity)
        assert np.array_equal(found[i].permute(1, 2, 0).numpy(), expected), (i, draws.operations[i])


def test_chains_that_do_nothing_leave_every_value_as_it_is(pictures):
    draws = draw_augmix(0, 0, len(pictures), 3, None)
    idle = AugMixDraws(operations=np.full_like(draws.operations, IDENTITY), shares=draws.shares)
    assert torch.equal(augmix(pictures, idle, augmix_table(3, 24, 32, CPU)), pictures)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_shares_sum_to_one_and_follow_a_beta_and_a_dirichlet(width):
    shares = draw_augmix(0, 0, 40_000, width, None).shares.astype(np.float64)
    assert np.abs(shares.sum(axis=1) - 1).max() < 2e-7 and shares.min() >= 0
    own = np.sort(shares[:, 0])  # 1 - m, and m is Beta(1, 1)
    assert np.abs(own - (np.arange(40_000) + 0.5) / 40_000).max() < 1.95 / 200  # Kolmogorov-Smirnov, 0.1 %
    among = shares[:, 1:] / (1 - shares[:, :1])
    assert among.mean(axis=0) == pytest.approx([1 / width] * width, abs=0.006), among.mean(axis=0)
    assert among.var(axis=0) == pytest.approx([(width - 1) / (width**2 * (width + 1))] * width, rel=0.05, abs=1e-9)


def test_depths_are_one_to_three_and_operations_levels_and_signs_are_equally_likely():
    rows = draw_augmix(0, 0, 40_000, 3, None).operations
    depths = (rows != IDENTITY).sum(axis=2)
    assert (np.diff((rows != IDENTITY).astype(int), axis=2) <= 0).all(), "an operation after a chain's end"
    shares = np.bincount(depths.ravel()) / depths.size
    assert shares == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.006), shares
    drawn = np.bincount(rows[rows != IDENTITY], minlength=IDENTITY)
    mean = drawn.sum() / IDENTITY
    assert np.sum((drawn - mean) ** 2 / mean) < 648, drawn  # chi squared, 539 degrees of freedom, 0.1 %


def test_levels_give_whole_degrees_and_pixels_as_often_as_the_released_code_does():
    """Its sample_level is uniform in [0.1, severity]; ours has 30 values, so a share is off by a thirtieth at most."""
    drawn = np.random.default_rng(0).uniform(0.1, 3, 100_000)
    ours = np.array([operation(2 * level, 3)[1] for level in range(LEVELS)])
    for most in (4, 30, 256, 32 / 3):
        theirs, found = ((values * most / 10).astype(int) for values in (drawn, ours))
        for value in range(theirs.max() + 1):
            assert abs(np.mean(theirs == value) - np.mean(found == value)) < 1 / LEVELS, (most, value)


def test_fixed_depth_has_that_many_operations_in_every_chain():
    assert (draw_augmix(0, 0, 100, 2, 4).operations != IDENTITY).all()


def test_an_image_gets_the_same_whatever_batch_it_is_in(pictures):
    config = AugmentConfig(autoaugment="none", augmix_severity=3, noise_std=0.1)
    draws = draw(0, 0, len(pictures), config)
    whole, some = augment(pictures, draws, config), np.array([20, 3, 7])
    assert torch.equal(augment(pictures[some], draws.of(some), config), whole[some])
    assert not torch.equal(whole, augment(pictures, draw(0, 1, len(pictures), config), config)), "epochs draw the same"


@pytest.mark.parametrize("other", [(1, 0), (0, 1)])
def test_another_seed_and_another_epoch_draw_everything_anew(other):
    config = AugmentConfig(augmix_severity=3, noise_std=0.1)
    first, second = (draw(*place, 300, config) for place in ((0, 0), other))
    full = [(draws.augmix.operations != IDENTITY).sum(axis=2) for draws in (first, second)]
    assert np.mean(full[0] == full[1]) < 0.45, "depths"  # a third by chance
    assert np.mean((first.augmix.operations == second.augmix.operations)[:, :, 0]) < 0.02, "operations"
    assert not np.any(first.augmix.shares[:, 0] == second.augmix.shares[:, 0]), "how much is mixed"
    among = [draws.augmix.shares[:, 1:] / draws.augmix.shares[:, 1:].sum(axis=1, keepdims=True) for draws in (first, second)]
    assert np.mean(np.isclose(*among)) < 0.02, "the chains' shares"
    assert not np.any(first.noise.std == second.noise.std), "strengths of noise"
    grey = torch.full((300, 3, 8, 8), 128, dtype=torch.uint8)
    equal_strengths = replace(second.noise, std=first.noise.std)
    assert (add_noise(grey, first.noise) == add_noise(grey, equal_strengths))[first.noise.std > 0.05].float().mean() < 0.1, "noise"


def test_switching_augmix_and_noise_on_moves_no_crop_and_no_flip():
    plain, more = (draw(0, 3, 500, AugmentConfig(**on)) for on in ({}, {"augmix_severity": 3, "noise_std": 0.1}))
    for name in ("top", "left", "flip", "operations"):
        assert np.array_equal(getattr(plain, name), getattr(more, name)), name
    assert plain.augmix is None and plain.noise is None


@pytest.mark.gpu
def test_a_gpu_gives_the_same_pixels_as_the_cpu(pictures):
    config = AugmentConfig(autoaugment="none", augmix_severity=3, noise_std=0.1)
    draws = draw(0, 0, len(pictures), config)
    assert torch.equal(augment(pictures.cuda(), draws, config).cpu(), augment(pictures, draws, config))
