"""Every draw of a run as a pure function of (seed, purpose, epoch), so that no generator state exists to save or to lose.

numpy's raw Philox words only: its bit streams are fixed across versions, the distributions of Generator are not (ADR 3).
Words are turned into values here, by inverse CDF. Neither numpy's nor torch's global generator is read or seeded.
"""

import hashlib
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from seresnet.durable import canonical_json
from seresnet.errors import ToolkitError

#: Raised when the meaning of a draw changes: every sample of every run is another one after that.
RANDOMNESS_SCHEMA = 1

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def words(seed: int, purpose: str, epoch: int, rows: int, columns: int = 1) -> Words:
    """A (rows, columns) table of uniform 64-bit words. More rows never change the rows that were there.

    Ask for a row per index in the full array and select afterwards, so that a subset sees the same draws as the whole.
    Draws that belong to a step, not to an epoch, pass the global step as epoch under a purpose of their own.
    """
    raw: Words = _philox(seed, purpose, epoch).random_raw(rows * columns)
    return raw.reshape(rows, columns)


def some_words(seed: int, purpose: str, epoch: int, rows: npt.NDArray[np.int64], columns: int) -> Words:
    """words(...)[rows] without the table's other rows, for tables too large to be made whole. columns: a multiple of 4."""
    assert columns % 4 == 0, f"{columns} columns: a row must begin with a block of the cipher, which is 4 words"
    philox, raw, position = _philox(seed, purpose, epoch), np.empty((len(rows), columns), dtype=np.uint64), 0
    for place, row in enumerate(rows.tolist()):
        philox.advance(row * columns // 4 - position)
        raw[place] = philox.random_raw(columns)
        position = (row + 1) * columns // 4
    return raw


def _philox(seed: int, purpose: str, epoch: int) -> np.random.Philox:
    key = hashlib.sha256(canonical_json([RANDOMNESS_SCHEMA, seed, purpose, epoch]).encode()).digest()[:16]
    return np.random.Philox(key=int.from_bytes(key, "little"), counter=0)


def permutation(raw: Words) -> Integers:
    """The order that sorts a row of words, stable: (..., n) -> (..., n) int64, each row a permutation of 0..n-1."""
    # astype: argsort returns the platform's intp, and the bits of an index must not depend on the platform.
    return np.argsort(raw, axis=-1, kind="stable").astype(np.int64)


def uniform(raw: Words) -> Floats:
    """float64 in [0, 1), a multiple of 2**-53, from the top 53 bits."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(raw: Words, n: int) -> Integers:
    """int64 in [0, n), n at most 2**32; from the top 32 bits, so no value is likelier than another by more than n / 2**32."""
    assert 1 <= n <= 2**32, f"integers() draws from 1 to 2**32 values, not {n}"
    return (((raw >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)).astype(np.int64)


def beta(raw: Words, alpha: float) -> Floats:
    """Beta(alpha, alpha) by inverse CDF; for alpha = 1, the report's, exactly uniform() and without scipy."""
    if alpha == 1:
        return uniform(raw)
    special = _scipy_special(f"Beta({alpha:g}, {alpha:g}), asked for by augment.mixup_alpha or augment.cutmix_alpha,")
    return np.asarray(special.betaincinv(alpha, alpha, _open_uniform(raw)), dtype=np.float64)


def shares(raw: Words) -> Floats:
    """Dirichlet(1, ..., 1): (n, k - 1) words -> (n, k) shares that sum to 1, the gaps between k - 1 sorted uniforms and the ends.

    Not -log(u), normalised: a logarithm's last bit differs between processors, sorting and subtracting do not.
    """
    return np.diff(np.sort(uniform(raw), axis=1), axis=1, prepend=0.0, append=1.0)


def uniform_like(seed: int, name: str, shape: tuple[int, ...], bound: float) -> npt.NDArray[np.float32]:
    """Initial value of the parameter called name: float32 of that shape, uniform in [-bound, bound].

    Keyed by name, so a layer more or fewer changes no other layer's start.
    """
    raw = words(seed, f"init/{name}", 0, int(np.prod(shape, dtype=np.int64)))
    return ((2.0 * uniform(raw) - 1.0) * bound).astype(np.float32).reshape(shape)


def _open_uniform(raw: Words) -> Floats:
    """As uniform, but in the middle of each of 2**52 cells: never 0 and never 1, where an inverse CDF is infinite."""
    # 52 bits, not 53: (2**53 - 1 + 0.5) * 2**-53 rounds to 1.0.
    return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _scipy_special(purpose: str) -> Any:
    try:
        import scipy.special
    except ImportError as error:
        raise ToolkitError(f"{purpose} needs scipy, which is not installed. Install scikit-learn or scipy, or use alpha 1.") from error
    module: ModuleType = scipy.special
    return module
