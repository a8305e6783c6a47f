"""Random values of a sweep, pure: a draw depends on (seed, key, index) alone, so more keys or more draws change no earlier one.

Which keys are drawn and whether a value is legal is sweep_axes' business. Words come from seresnet.randomness, values by inverse CDF.
One invariant: every number lies within its bounds and has few digits, because names of arms and run ids are made from it.
"""

import math
from dataclasses import dataclass
from typing import Literal

SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Law:
    """What a number is drawn from, both bounds inclusive; low < high, and low > 0 for log_uniform. whole: only whole numbers."""

    kind: Literal["uniform", "log_uniform"]
    low: float
    high: float
    whole: bool = False

    def value(self, share: float) -> float:
        """The value below which that share of draws lies, share in [0, 1); not rounded."""
        # A whole number n stands for [n, n + 1), so that both bounds are as likely as the formula says.
        low, high = self.low, self.high + self.whole
        if self.kind == "uniform":
            return low + share * (high - low)
        # math, not numpy: numpy's exp has other last bits on other CPUs.
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))

    def rounded(self, value: float) -> float:
        """value as it is used: a whole number, or one of few digits; never outside the bounds."""
        short = math.floor(value) if self.whole else float(f"{value:.{self._digits()}g}")
        return min(max(short, self.low), self.high)

    def _digits(self) -> int:
        """Four; more where the range is narrow, as all of [100, 100.01] would be 100."""
        digits, span = SIGNIFICANT_DIGITS, 10 * (self.high - self.low)
        while self.kind == "uniform" and span < max(abs(self.low), abs(self.high)) and digits < 15:
            digits, span = digits + 1, span * 10
        return digits


def draw_numbers(law: Law, seed: int, key: str, count: int) -> list[float]:
    """count numbers by law, in the order of their indices."""
    from seresnet import randomness  # here: numpy takes longer to import than --help may take

    shares = randomness.uniform(randomness.words(seed, _purpose(key), 0, count)).ravel().tolist()
    return [law.rounded(law.value(share)) for share in shares]


def draw_choices(options: int, seed: int, key: str, count: int) -> list[int]:
    """count indices, each of 0 .. options - 1 equally likely."""
    from seresnet import randomness

    drawn: list[int] = randomness.integers(randomness.words(seed, _purpose(key), 0, count), options).ravel().tolist()
    return drawn


def _purpose(key: str) -> str:
    return f"sweep/{key}"  # no purpose of a run's own draws begins so
