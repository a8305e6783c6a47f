"""Random values of sweeps: within their bounds, by their law, and each a function of seed, key and index alone."""

import math
import random

import pytest

from hpc.sweep_draws import Law, draw_choices, draw_numbers

LR = Law(kind="log_uniform", low=0.01, high=1.0)
DECAY = Law(kind="uniform", low=0.0, high=1e-3)


def largest_gap(shares: list[float]) -> float:
    """The Kolmogorov-Smirnov distance to the uniform law on [0, 1]."""
    ordered = sorted(shares)
    return max(max((place + 1) / len(ordered) - share, share - place / len(ordered)) for place, share in enumerate(ordered))


def test_more_draws_change_no_earlier_one() -> None:
    assert draw_numbers(LR, 0, "optim.lr", 200)[:7] == draw_numbers(LR, 0, "optim.lr", 7)
    assert draw_choices(5, 0, "model.reduction", 200)[:7] == draw_choices(5, 0, "model.reduction", 7)


def test_another_seed_or_key_draws_other_values() -> None:
    draws = [draw_numbers(LR, seed, key, 20) for seed, key in ((0, "optim.lr"), (1, "optim.lr"), (0, "optim.momentum"))]
    assert len({tuple(drawn) for drawn in draws}) == 3


def test_log_uniform_draws_have_uniform_logs() -> None:
    drawn = draw_numbers(LR, 3, "optim.lr", 4000)
    assert min(drawn) >= 0.01 and max(drawn) <= 1.0
    # log(x / low) / log(high / low) of a log-uniform x is uniform on [0, 1]. 1.95 / sqrt(n): one in a thousand seeds is beyond.
    gap = largest_gap([math.log(value / 0.01) / math.log(100) for value in drawn])
    assert gap < 1.95 / math.sqrt(4000), gap
    assert largest_gap([(value - 0.01) / 0.99 for value in drawn]) > 0.4, "uniform draws would pass too"


def test_uniform_draws_are_uniform() -> None:
    drawn = draw_numbers(DECAY, 3, "optim.weight_decay", 4000)
    assert min(drawn) >= 0 and max(drawn) <= 1e-3
    gap = largest_gap([value / 1e-3 for value in drawn])
    assert gap < 1.95 / math.sqrt(4000), gap


@pytest.mark.parametrize("kind", ["uniform", "log_uniform"])
def test_whole_numbers_are_drawn_from_the_first_to_the_last(kind: str) -> None:
    law = Law(kind="uniform" if kind == "uniform" else "log_uniform", low=2, high=5, whole=True)
    drawn = draw_numbers(law, 0, "model.width", 4000)
    assert {type(value) for value in drawn} == {int}
    share = {number: drawn.count(number) / 4000 for number in sorted(set(drawn))}
    expected = dict.fromkeys(range(2, 6), 0.25) if kind == "uniform" else {n: math.log((n + 1) / n) / math.log(3) for n in range(2, 6)}
    assert share == pytest.approx(expected, abs=0.03)


def test_choices_are_equally_likely() -> None:
    drawn = draw_choices(4, 0, "model.reduction", 4000)
    assert {index: drawn.count(index) / 4000 for index in range(4)} == pytest.approx(dict.fromkeys(range(4), 0.25), abs=0.03)


def test_draws_have_four_digits_and_never_leave_their_bounds() -> None:
    pick = random.Random(0)
    for _ in range(300):
        low = 10 ** pick.uniform(-6, 3)
        law = Law(kind=pick.choice(["uniform", "log_uniform"]), low=low, high=low * 10 ** pick.uniform(0.1, 4))
        for value in draw_numbers(law, pick.randrange(100), "optim.lr", 20):
            assert law.low <= value <= law.high, (law, value)
            assert value in (law.low, law.high) or len(f"{value:e}".split("e")[0].rstrip("0").replace(".", "")) <= 5, (law, value)


def test_a_narrow_range_is_not_rounded_to_one_value() -> None:
    assert len(set(draw_numbers(Law(kind="uniform", low=100, high=100.01), 0, "optim.lr", 50))) > 40


def test_draws_are_the_same_on_every_machine() -> None:
    """Written down once, the first line also by hand from raw words of Philox: another value would be another sweep."""
    assert draw_numbers(LR, 0, "optim.lr", 4) == [0.4821, 0.1735, 0.03406, 0.05121]
    assert draw_choices(3, 0, "model.reduction", 8) == [0, 1, 2, 2, 1, 2, 2, 2]
