"""--by KEY,...: the runs of a comparison grouped by values of their configs in place of arms.

Groups are named and put in order here; everything else treats them as arms. One invariant: every run that was in an arm is in exactly
one group, also where its config cannot be read.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hpc.gather import Gathered, RunRow
from seresnet.config_file import key_fix, key_specs
from seresnet.errors import ConfigError

#: The group of runs whose run.yaml is gone or damaged.
UNKNOWN = "config unknown"


def regroup(gathered: Gathered, keys: Sequence[str]) -> Gathered:
    """The same rows with groups as arms, in the order in which their first runs stand. Raises ConfigError for a key that no config has.

    A run that several sweeps have is in one row, the finished one: as two it would be a seed that occurs twice.
    """
    for key in keys:
        _check(key, gathered.rows)
    rows = [_regrouped(row, group_of(row, keys)) if row.arms else row for row in _once(gathered.rows)]
    arms = dict.fromkeys(row.arms[0] for row in rows if row.arms)
    arms = {arm: None for arm in arms if arm != UNKNOWN} | {arm: None for arm in arms if arm == UNKNOWN}
    return Gathered(arms=tuple(arms), rows=tuple(rows), skipped=gathered.skipped)


def group_of(row: RunRow, keys: Sequence[str]) -> str:
    """ "model.attention=se, optim.lr=0.1"."""
    if row.config is None:
        return UNKNOWN
    return ", ".join(f"{key}={show(row.setting(*_split(key)))}" for key in keys)


def show(value: Any) -> str:
    """A value as configs write it; a key that is absent or null is unset. 1.0 and 1 are one value, as in run ids."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"[{', '.join(map(show, value))}]" if isinstance(value, list | tuple) else str(value)


def _regrouped(row: RunRow, group: str) -> RunRow:
    return replace(row, arms=(group,), spans_elsewhere=tuple((None, spans) for _, spans in row.spans_elsewhere))


def _once(rows: Sequence[RunRow]) -> list[RunRow]:
    """Of rows with one run id the first that is finished, else the first, in the place of the first; it has the cost of all."""
    found: dict[str, RunRow] = {}
    for row in rows:
        known = found.get(row.run_id)
        if known is None:
            found[row.run_id] = row
            continue
        is_better = row.arms and (not known.arms or (known.state != "finished" and row.state == "finished"))
        kept, other = (row, known) if is_better else (known, row)
        cost = (*kept.spans_elsewhere, (None, other.spans), *other.spans_elsewhere) if other.arms else kept.spans_elsewhere
        found[row.run_id] = replace(kept, spans_elsewhere=cost)
    return list(found.values())


def _check(key: str, rows: Sequence[RunRow]) -> None:
    section, name = _split(key)
    *outer, last = name.split(".")  # args.lr
    holders = (row.setting(section, ".".join(outer)) if outer else (row.config or {}).get(section) for row in rows)
    if key in key_specs() or any(isinstance(holder, dict) and last in holder for holder in holders):
        return
    if key in ("arm", "arms", "sweep"):
        rule = "it stands for no key of a config, and groups are made of keys alone"
        raise ConfigError(
            f"--by {key}: {rule}. Name the keys in which the arms differ, such as model.attention; for a row an arm leave --by away."
        )
    raise ConfigError(f"--by {key}: no config has this key. {key_fix(key)}")


def _split(key: str) -> tuple[str, str]:
    section, _, name = key.partition(".")
    return section, name
