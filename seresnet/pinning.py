"""What must not change in silence once a run has started: its experiment, its numeric keys, its data, and what tier T1 rests on.

The first start writes them into run.yaml, later ones compare. One invariant: a start that is refused has not changed run.yaml.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from seresnet.claims import refuse_if_fenced
from seresnet.config import RunConfig, identity, numeric_keys, run_id, to_dict
from seresnet.config_file import config_from_dict
from seresnet.errors import ConfigError, DataError
from seresnet.run_folder import RunFolder, RunRecord

#: Raised when our own arithmetic changes the bits of a run: no package's version tells. 2: SE, sum and ReLU in one function, evaluation
#: with batch norm folded in.
NUMERICS_SCHEMA = 2

#: What a pin without the key means. Of any other key nothing is known to differ: it came later and had its default before.
_ABSENT = {"numerics": 1}


def expected_id(record: RunRecord, config: RunConfig) -> str:
    """The id that a run with this config and this record's parent has."""
    return run_id(config, record.parent.state_digest if record.parent else None)


def refuse_other_run(folder: RunFolder, record: RunRecord, run_id: str) -> None:
    """Raise ConfigError if a sweep's folder holds another run than the sweep's plan says: mostly a fork that was put there by hand."""
    if record.run_id != run_id:
        what = f"a fork of {record.parent}" if record.parent else f"{record.slug}"
        raise ConfigError(
            f"{folder.run_yaml}: the folder holds run {record.run_id} ({what}), the plan says {run_id}. "
            "Rename the folder: a fork is a run of its own, outside of a sweep."
        )


def refuse_other_experiment(folder: RunFolder, record: RunRecord, config: RunConfig) -> None:
    """Raise ConfigError with a diff of the identity keys if the config is not the run that the folder was made for."""
    wanted = expected_id(record, config)
    if record.run_id == wanted:
        return
    old, new = identity(config_from_dict(record.config, str(folder.run_yaml))), identity(config)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    diff = [f"  {key}: {old.get(key, 'default')} -> {new.get(key, 'default')}" for key in keys]
    if not diff:
        diff = ["  the identity keys in run.yaml itself are no longer those that the id was made from"]
    raise ConfigError(
        f"{folder.run_yaml}: the folder holds run {record.run_id}, the config says {wanted}:\n"
        + "\n".join(diff)
        + "\nRestore the config, or choose another folder; with --fork that one begins with what this run has learnt: "
        + f"--run-dir NEW --fork {folder.path}"
    )


def refuse_numeric_change(folder: RunFolder, record: RunRecord, config: RunConfig) -> None:
    """Raise ConfigError if a started run is asked to go on with other numeric keys."""
    pinned = record.pinned or {}
    lines = [f"{key}: {pinned[key]} -> {value}" for key, value in numeric_keys(config).items() if pinned.get(key, value) != value]
    if lines:
        raise ConfigError(
            f"{folder.run_yaml}: this run was started with other numeric keys ({'; '.join(lines)}). They change bits, not the experiment. "
            "Restore them, or pass --allow-numeric-change: the run then counts as tier T2."
        )


def with_config(record: RunRecord, config: RunConfig) -> RunRecord:
    """The record with operational and extendable keys as the config has them; what is pinned stays."""
    return replace(record, config=to_dict(config))


def pin(folder: RunFolder, record: RunRecord, config: RunConfig, generation: int, facts: Mapping[str, Any], *, write: bool) -> RunRecord:
    """Write down what the run is started with, or mark as T2 what has changed since.

    facts: data_digest, world_size, device, versions; our own arithmetic's is added. Raises DataError for other data; the rest may
    change, with a mark; and OwnedElsewhereError, with run.yaml as it was, where a newer attempt owns the run.
    """
    now = {**numeric_keys(config), **facts, "numerics": NUMERICS_SCHEMA}
    if record.pinned is None:
        pinned = replace(record, pinned=now)
    else:
        _refuse_other_data(folder, record.pinned.get("data_digest"), facts["data_digest"], config.data.target)
        before = {key: record.pinned.get(key, _ABSENT.get(key, value)) for key, value in now.items()}
        changed = {key: (before[key], value) for key, value in now.items() if before[key] != value}
        marks = [f"{key}: {old} -> {new} at attempt {generation}" for key, (old, new) in sorted(changed.items())]
        pinned = replace(record, pinned={**record.pinned, **now}, marks=(*record.marks, *marks))
    if write and pinned != record:
        pinned.write(folder, guard=lambda: refuse_if_fenced(folder, generation))
    return pinned


def _refuse_other_data(folder: RunFolder, pinned: str | None, found: str, target: str | None) -> None:
    if pinned != found and target is not None:
        raise DataError(
            f"{folder.run_yaml}: this run was started on data {pinned}, {target} now gives {found}. Its code or what data.path names was "
            "edited, or it gives other bytes each time. Restore that, or start a new sweep."
        )
    if pinned != found:
        raise DataError(
            f"{folder.run_yaml}: this run was started on data {pinned}, data.path and data.dir now give {found}. "
            "Point data.path at the first data set, or start a new sweep."
        )
