import hashlib
import json
import sys

import numpy as np
import pytest
import torch

from seresnet import randomness
from seresnet.errors import ToolkitError
from seresnet.randomness import beta, integers, permutation, shares, some_words, uniform, uniform_like, words

MASK = 2**64 - 1


def philox_4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 in plain Python; Salmon et al. 2011, constants from the Random123 distribution."""
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [(b >> 64) ^ counter[1] ^ key[0], b & MASK, (a >> 64) ^ counter[3] ^ key[1], a & MASK]
        key = [(key[0] + 0x9E3779B97F4A7C15) & MASK, (key[1] + 0xBB67AE8584CAA73B) & MASK]
    return counter


def test_the_reference_cipher_gives_the_published_vector_of_random123():
    # Random123's kat_vectors, philox4x64 10, all-zero counter and key.
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox_4x64([0, 0, 0, 0], [0, 0]) == expected


def test_words_are_philox_blocks_under_a_key_of_schema_seed_purpose_and_epoch():
    digest = hashlib.sha256(json.dumps([1, 7, "crop", 3], separators=(",", ":")).encode()).digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")]
    # numpy counts up before it enciphers: the first block is number 1.
    expected = [word for block in (1, 2, 3) for word in philox_4x64([block, 0, 0, 0], key)]
    assert words(7, "crop", 3, 6, 2).ravel().tolist() == expected


def test_known_words_never_change():
    assert words(0, "order", 0, 2, 2).tolist() == [
        [1121043867772126618, 17610751672542868812],
        [13204954410002224479, 15826059687096062110],
    ], words(0, "order", 0, 2, 2).tolist()


def test_more_rows_leave_the_first_rows_as_they_were():
    assert np.array_equal(words(0, "flip", 1, 1000, 3)[:10], words(0, "flip", 1, 10, 3))


def test_some_rows_are_the_rows_of_the_whole_table_in_any_order():
    rows = np.array([3, 999, 0, 7, 7, 8])
    assert np.array_equal(some_words(5, "noise.pixels", 2, rows, 12), words(5, "noise.pixels", 2, 1000, 12)[rows])


@pytest.mark.parametrize("other", [(1, "a", 0), (0, "b", 0), (0, "a", 1)])
def test_seed_purpose_and_epoch_each_change_every_word(other):
    assert not np.any(words(0, "a", 0, 100) == words(*other, 100))


def test_the_global_generators_are_neither_read_nor_seeded():
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    raw = words(0, "x", 0, 100)
    first = uniform(raw), integers(raw, 7), permutation(raw[:, 0]), beta(raw, 0.2), uniform_like(0, "w", (3, 4), 0.1)
    after = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    np.random.seed(1)
    torch.manual_seed(1)
    assert np.array_equal(first[0], uniform(words(0, "x", 0, 100)))


def test_permutation_sorts_the_words_and_ties_keep_their_order():
    raw = np.array([5, 1, 5, 0, 1], dtype=np.uint64)
    assert permutation(raw).tolist() == [3, 1, 4, 0, 2]
    assert permutation(raw).dtype == np.int64


def test_every_position_of_a_permutation_is_equally_likely_for_every_value():
    orders = permutation(words(0, "order", 0, 6000, 6))
    counts = np.array([[np.sum(orders[:, place] == value) for place in range(6)] for value in range(6)])
    assert np.all(orders.sum(axis=1) == 15)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 5 / 6), counts


def test_uniform_of_the_extreme_words_stays_in_the_half_open_interval():
    values = uniform(np.array([0, 2**11 - 1, 2**11, MASK], dtype=np.uint64))
    assert values.tolist() == [0.0, 0.0, 2.0**-53, 1.0 - 2.0**-53]


def test_uniform_has_the_moments_and_the_spread_of_a_uniform():
    values = np.sort(uniform(words(0, "u", 0, 100_000))[:, 0])
    distance = np.abs(values - (np.arange(100_000) + 0.5) / 100_000).max()
    assert distance < 1.95 / np.sqrt(100_000), distance  # Kolmogorov-Smirnov, 0.1 %


def test_integers_cover_their_range_and_no_value_is_preferred():
    counts = np.bincount(integers(words(0, "i", 0, 90_000), 9)[:, 0])
    chi_squared = np.sum((counts - 10_000) ** 2 / 10_000)
    assert len(counts) == 9
    assert chi_squared < 26.1, counts  # 8 degrees of freedom, 0.1 %


def test_integers_of_the_extreme_words_are_the_ends_of_the_range():
    assert integers(np.array([0, MASK], dtype=np.uint64), 9).tolist() == [0, 8]


def test_beta_of_one_is_exactly_the_uniform():
    raw = words(0, "b", 0, 1000)
    assert np.array_equal(beta(raw, 1.0), uniform(raw))


@pytest.mark.parametrize("alpha", [0.2, 0.5, 2.0])
def test_beta_has_the_moments_of_the_symmetric_beta_distribution(alpha):
    values = beta(words(0, "b", 0, 40_000), alpha)
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(values.mean() - 0.5) < 4 * np.sqrt(variance / 40_000), values.mean()
    assert values.var() == pytest.approx(variance, rel=0.02)


def test_shares_are_the_gaps_between_sorted_uniforms_and_follow_the_flat_dirichlet():
    raw = words(0, "s", 0, 40_000, 3)
    found = shares(raw)
    ends = np.sort(np.concatenate([np.zeros((40_000, 1)), uniform(raw), np.ones((40_000, 1))], axis=1), axis=1)
    assert np.array_equal(found, ends[:, 1:] - ends[:, :-1])
    assert np.abs(found.sum(axis=1) - 1).max() < 1e-15
    # A share of four has the distribution function 1 - (1 - x)^3.
    distance = np.abs(1 - (1 - np.sort(found, axis=0)) ** 3 - (np.arange(40_000)[:, None] + 0.5) / 40_000).max()
    assert distance < 1.95 / 200, distance  # Kolmogorov-Smirnov, 0.1 %
    assert shares(words(0, "s", 0, 2, 0)).tolist() == [[1.0], [1.0]]


def test_without_scipy_only_other_alphas_than_one_are_refused_and_the_message_names_the_keys(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    raw = words(0, "b", 0, 3)
    assert beta(raw, 1.0).shape == (3, 1)
    with pytest.raises(ToolkitError, match=r"augment\.mixup_alpha.*scipy"):
        beta(raw, 0.3)


def test_initial_values_are_float32_within_the_bound_and_keyed_by_name():
    first, second = uniform_like(0, "stem.weight", (64, 3, 3, 3), 0.2), uniform_like(0, "head.weight", (64, 3, 3, 3), 0.2)
    assert first.shape == (64, 3, 3, 3) and first.dtype == np.float32
    assert np.abs(first).max() <= np.float32(0.2) and abs(first.std() - 0.2 / 3**0.5) < 0.005, first.std()
    assert not np.any(first == second)
    expected = (2 * uniform(words(0, "init/stem.weight", 0, 1728)) - 1) * 0.2
    assert np.array_equal(first.ravel(), expected.ravel().astype(np.float32))


def test_the_schema_is_part_of_the_key(monkeypatch):
    before = words(0, "a", 0, 4)
    monkeypatch.setattr(randomness, "RANDOMNESS_SCHEMA", randomness.RANDOMNESS_SCHEMA + 1)
    assert not np.any(words(0, "a", 0, 4) == before)
