"""The epochs of one run as columns: what figures and tables compute from.

Reading the journal is seresnet.journal's business. One invariant: a value that was not measured is NaN, never 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from seresnet.journal import EpochRecord

#: Numbers of an epoch that can be asked for by name.
COLUMNS = tuple(key.name for key in fields(EpochRecord))


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """Merged records in the order of their steps; every column is float64 and of one length."""

    columns: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Sequence[EpochRecord]) -> "History":
        values = {key: [getattr(record, key) for record in records] for key in COLUMNS}
        return cls(columns={key: np.array(column, dtype=np.float64) for key, column in values.items()})

    def __len__(self) -> int:
        return len(self.columns["epoch"]) if self.columns else 0

    @property
    def last_epoch(self) -> int:
        """The newest epoch, 0 before the first."""
        return int(self.columns["epoch"][-1]) if len(self) else 0

    def column(self, key: str) -> np.ndarray:
        """One value an epoch, NaN where it was not measured; empty where there is no record. key: of COLUMNS."""
        assert key in COLUMNS, f"an epoch has no {key}"
        return self.columns[key] if len(self) else np.array([], dtype=np.float64)

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, values) of the epochs in which it was measured."""
        values = self.column(key)
        is_there = ~np.isnan(values)
        return self.column("epoch")[is_there].astype(int), values[is_there]

    @property
    def seconds_per_epoch(self) -> float | None:
        """Median over the epochs, training and evaluation; None before the first."""
        values = self.series("seconds")[1]
        return float(np.median(values)) if len(values) else None
