import numpy as np
import pytest
import torch

from seresnet.noise import add_noise, draw_noise
from seresnet.randomness import words


def noise_of(draws, value=128, size=(32, 32)):
    """What is added to flat grey images, as pixels in [0, 1]."""
    flat = torch.full((len(draws.indices), 3, *size), value, dtype=torch.uint8)
    return (add_noise(flat, draws).double() - value) / 255


def test_strength_is_uniform_up_to_the_most_and_noise_has_that_strength():
    draws = draw_noise(0, 0, 400, 0.1)
    assert np.abs(np.sort(draws.std) - 0.1 * (np.arange(400) + 0.5) / 400).max() < 0.1 * 1.95 / 20  # Kolmogorov-Smirnov, 0.1 %
    found = noise_of(draws).flatten(1).std(1).numpy()
    # Rounding to uint8 adds a uniform of one step; 3,072 pixels estimate a std to 1.3 % (one sigma).
    strong = draws.std > 0.02
    assert found[strong] == pytest.approx(np.sqrt(draws.std**2 + 1 / 12 / 255**2)[strong], rel=0.06)


def test_noise_is_normal_and_its_pixels_are_independent():
    scipy_stats = pytest.importorskip("scipy.stats")
    draws = draw_noise(1, 2, 60, 0.12)
    values = noise_of(draws) / torch.from_numpy(np.maximum(draws.std, 1e-9)).view(-1, 1, 1, 1)
    values = values[draws.std > 0.05]
    distance, _ = scipy_stats.kstest(values.flatten().numpy(), "norm")
    assert distance < 0.02, distance  # a step of uint8 is up to 0.08 sigma here
    for axis in (0, 1, 2, 3):
        neighbours = (values * values.roll(1, axis)).mean().item()
        assert abs(neighbours) < 5 / values.numel() ** 0.5, (axis, neighbours)


def test_a_pixel_gets_the_normal_value_of_its_word_in_a_table_of_all_images():
    """The law of randomness restated: row = image, column = word, four values of 16 bits in a word, lowest first."""
    from statistics import NormalDist

    draws, size = draw_noise(3, 4, 5, 0.3), (5, 7)
    table = words(3, "noise.pixels", 4, 5, 28)  # 3 x 5 x 7 values need 27 words, and rows are whole blocks of 4
    found = noise_of(draws.of(np.array([4, 1])), size=size).flatten(1) * 255
    for place, image in enumerate((4, 1)):
        for value in range(3 * 5 * 7):
            bits = int(table[image, value // 4]) >> (16 * (value % 4)) & 0xFFFF
            bits = (bits + 2**15) % 2**16  # read as signed
            expected = 255 * draws.std[image] * NormalDist().inv_cdf((bits + 0.5) / 2**16)
            assert found[place, value].item() == pytest.approx(max(-128, min(127, round(expected))), abs=0.5001), (image, value)


def test_values_are_clipped_and_no_strength_changes_nothing():
    draws = draw_noise(0, 0, 20, 1.0)
    for value in (0, 255):
        noisy = add_noise(torch.full((20, 3, 8, 8), value, dtype=torch.uint8), draws)
        assert 0.4 < (noisy == value).float().mean() < 0.65, value
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(add_noise(images, draw_noise(0, 0, 20, 0.0)), images)
