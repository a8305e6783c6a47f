"""The epochs of one run as columns: what figures and tables compute from.

Reading the journal is hpc.journal_columns' business, keeping it hpc.collect_cache's. One invariant: a value that was not measured is NaN,
never 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpc.journal_columns import COLUMNS

__all__ = ["COLUMNS", "History"]


def _nothing(key: str) -> np.ndarray:
    return np.array([], dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """Merged records in the order of their steps; every column is float64 and of one length.

    Columns are fetched when they are asked for, from the cache of the sweep or from memory: 10,000 runs of 900 epochs are 1.5 GB.
    """

    length: int = 0
    last_epoch: int = 0  # the newest epoch, 0 before the first
    seconds_per_epoch: float | None = None  # median over the epochs, training and evaluation; None before the first
    fetch: Callable[[str], np.ndarray] = _nothing

    @classmethod
    def of(cls, values: np.ndarray) -> "History":
        """values: (columns, epochs) as hpc.journal_columns gives them; they are kept in memory."""
        length = values.shape[1]
        seconds = values[COLUMNS.index("seconds")]
        seconds = seconds[~np.isnan(seconds)]
        return cls(
            length=length,
            last_epoch=int(values[COLUMNS.index("epoch"), -1]) if length else 0,
            seconds_per_epoch=float(np.median(seconds)) if len(seconds) else None,
            fetch=lambda key: values[COLUMNS.index(key)],
        )

    def __len__(self) -> int:
        return self.length

    def column(self, key: str) -> np.ndarray:
        """One value an epoch, NaN where it was not measured; empty where there is no record. key: of COLUMNS."""
        assert key in COLUMNS, f"an epoch has no {key}"
        return self.fetch(key) if self.length else _nothing(key)

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, values) of the epochs in which it was measured."""
        values = self.column(key)
        is_there = ~np.isnan(values)
        return self.column("epoch")[is_there].astype(int), values[is_there]
