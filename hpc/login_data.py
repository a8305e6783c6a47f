"""Data before jobs: paths made absolute, and the array prepared where the launcher runs if its source is at hand.

Compute nodes may have no network, and forty tasks must not prepare the same archive. Building is seresnet.prepare's job, torch-free.
A data set of somebody else's code (data.target) is never made here: the first run that needs it calls it, and the others wait.
"""

import contextlib
import importlib.util
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpc.site import Site
from hpc.sweep import PlannedRun
from seresnet import prepare
from seresnet.args import show_args
from seresnet.config import DataConfig
from seresnet.data_progress import shown
from seresnet.errors import DataError


def with_absolute_data(run: PlannedRun, site: Site) -> PlannedRun:
    """The run with data.path and data.dir absolute: its tasks start in the code snapshot, where relative paths mean nothing."""
    data = run.config.data
    if run.config.program.command:
        return run  # a script's data is its own business
    folder = Path(data.dir).expanduser() if data.dir else site.folder("data_dir") or prepare.data_dir(data, os.environ)
    path = str(Path(data.path).expanduser().absolute()) if data.path else None
    return replace(run, config=replace(run.config, data=replace(data, dir=str(folder.absolute()), path=path)))


def distinct_data(runs: Sequence[PlannedRun]) -> list[DataConfig]:
    """One config for each source and folder; splits and subsets are cut from the same array."""
    ours = [run.config.data for run in runs if not run.config.program.command]
    return list({(data.name, data.path, data.dir, data.target, data.args): data for data in ours}.values())


def data_text(config: DataConfig) -> str:
    """Where this data lies or will lie, in one line; raises DataError for a source that is not there."""
    if config.target is not None:
        return _own_text(config)
    found = prepare.find_prepared(config, _folder(config))
    if found is not None:
        return f"{config.name}: {_relative(found)}"
    if config.path and not Path(config.path).exists():
        raise DataError(f"data.path: {config.path} does not exist, and no array file was made from it. Correct the path.")
    if _is_at_hand(config):
        return f"{config.name}: will be prepared in {_relative(_folder(config))} before anything is sent"
    return f"{config.name}: not prepared in {_relative(_folder(config))}, and no data.path says where it is; `{_command(config)}` makes it"


def _own_text(config: DataConfig) -> str:
    named = f"{config.target} {show_args(config.args)}" if config.args else config.target
    gone = f"; data.path {config.path} is not there for this machine" if config.path and not Path(config.path).exists() else ""
    return f"{named}: called by the first run that needs it, not by the launcher, and kept in {_relative(_folder(config))}{gone}"


def ensure_prepared(runs: Sequence[PlannedRun]) -> None:
    """Prepare what is missing, with progress; raises DataError with the command to run where the source is elsewhere."""
    for config in distinct_data(runs):
        if config.target is not None or prepare.find_prepared(config, _folder(config)) is not None:
            continue
        if not _is_at_hand(config):
            raise DataError(
                f"data {config.name} is not prepared in {_folder(config)}, and no data.path says where it is. "
                f"Run `{_command(config)}` where there is a network, or say data.path=ARCHIVE_OR_FOLDER. Nothing was sent."
            )
        with shown() as report:
            prepare.prepare(config, _folder(config), progress=report)


def _command(config: DataConfig) -> str:
    return f"python -m seresnet.prepare {config.name} --data-dir {shlex.quote(_relative(_folder(config)))}"


def _folder(config: DataConfig) -> Path:
    assert config.dir is not None, "with_absolute_data comes first"
    return Path(config.dir)


def _is_at_hand(config: DataConfig) -> bool:
    return config.path is not None or (config.name == "digits" and importlib.util.find_spec("sklearn") is not None)


def _relative(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
