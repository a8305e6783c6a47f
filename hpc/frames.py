"""`hpc.load`: sweeps as two pandas tables, for notebooks. Reads as collect does (hpc.gather), and judges nothing.

One invariant: every planned run is a row of `runs`, whatever became of it; `history` has an epoch of a run once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seresnet.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from hpc.gather import RunRow

#: Columns of an epoch that are whole numbers, and always there.
_WHOLE = ("epoch", "step", "generation", "skipped_steps")


class Loaded(NamedTuple):
    """What load gives: `runs, history = load(...)`, or by name."""

    runs: "pd.DataFrame"
    history: "pd.DataFrame"


def load(*sweeps: str | Path) -> Loaded:
    """The runs of one or several sweeps (folders, or archives of hpc.archive), and all their epochs.

    runs: one row a run, finished or not, as in runs.csv, then device_hours (GPU-hours of a cuda run, core-hours of a cpu run), restarts,
    seconds_per_epoch, and every config key as "section.key". history: one row an epoch and run: sweep, run_id, arms, seed, and every
    number of the journal; NaN is "not measured". Of several sweeps arms are "sweep/arm", and a run that is finished in more than one of
    them with the same bits is one row; arms of a run that is in several are joined by "; ".

    >>> import hpc
    >>> runs, history = hpc.load("runs/ablation")
    >>> runs.groupby("arms")["last_test_top1_pct"].agg(["count", "mean", "std"]).round(2)
              count   mean   std
    arms
    baseline      2  88.83  0.22
    se            2  90.15  0.35
    >>> last = history[history["epoch"] == history["epoch"].max()]
    >>> last.pivot(index="seed", columns="arms", values="test_top1_pct").eval("se - baseline").round(2).tolist()
    [0.91, 1.72]

    Writes .collect/ into each sweep's folder, where it can, so that the next call takes less. Raises ConfigError for a folder that is no
    sweep, for two sweeps of one name, and where pandas is not installed.
    """
    if not sweeps:
        raise ConfigError("no sweep was given. Name at least one: hpc.load('runs/ablation').")
    try:
        import pandas  # noqa: F401 - before anything is read
    except ModuleNotFoundError as error:
        advice = "Use the Python of the training environment (make setup): it has all that tables need."
        raise ConfigError(f"{error.name} is not installed here. {advice}") from error
    from hpc.archive import folders
    from hpc.gather import gather

    with folders(list({Path(sweep).resolve(): Path(sweep) for sweep in sweeps}.values())) as found:
        rows = gather(found).rows
        return Loaded(runs=_runs(rows), history=_history(rows))


def _runs(rows: "Sequence[RunRow]") -> "pd.DataFrame":
    import pandas as pd

    from hpc.stats import runs_frame

    found = runs_frame(rows)
    found["device_hours"] = pd.Series([row.device_hours for row in rows], index=found.index, dtype="float64")
    found["restarts"] = pd.Series([row.restarts for row in rows], index=found.index, dtype="int64")
    found["seconds_per_epoch"] = pd.Series([row.history.seconds_per_epoch for row in rows], index=found.index, dtype="float64")
    settings = [_settings(row) for row in rows]
    keys = dict.fromkeys(key for row in settings for key in row)
    return found.join(pd.DataFrame({key: _typed([row.get(key) for row in settings]) for key in keys}, index=found.index))


def _settings(row: "RunRow") -> dict[str, object]:
    sections = (row.config or {}).items()
    return {f"{section}.{key}": value for section, keys in sections if isinstance(keys, dict) for key, value in keys.items()}


def _typed(values: list[object]) -> "pd.Series[Any]":
    """As whole numbers, truths or numbers where all that are there are such; else as they are."""
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    names = {frozenset({int}): "Int64", frozenset({bool}): "boolean", frozenset({float}): "float64", frozenset({int, float}): "float64"}
    return pd.Series(values, dtype=names.get(frozenset(kinds), "object"))


def _history(rows: "Sequence[RunRow]") -> "pd.DataFrame":
    import numpy as np
    import pandas as pd

    from hpc.history import COLUMNS

    rows = [row for row in rows if len(row.history)]
    lengths = [len(row.history) for row in rows]

    def told(values: list[str]) -> "pd.Categorical[str]":
        # A text for each of nine million epochs would take more memory than all their numbers.
        names = list(dict.fromkeys(values))
        places = {name: place for place, name in enumerate(names)}
        codes = np.repeat(np.array([places[value] for value in values], dtype=np.int64), lengths)
        return pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype=object))

    found: dict[str, object] = {"sweep": told([row.sweep for row in rows]), "run_id": told([row.run_id for row in rows])}
    found["arms"] = told(["; ".join(row.arms) for row in rows])
    found["seed"] = pd.Series([row.seed for row in rows], dtype="Int64").repeat(lengths).reset_index(drop=True)
    for key in COLUMNS:
        values = np.concatenate([row.history.column(key) for row in rows]) if rows else np.array([], dtype=np.float64)
        found[key] = values.astype(np.int64) if key in _WHOLE else values
    return pd.DataFrame(found)
