"""The report's own learning curve, and which arms it may be laid over.

paper_curve.csv: Yifei Xu, "SE-ResNet for CIFAR-10" (NYU), the training log in its public code: the first 900 epochs of a cosine over
1,000, one run, all 50,000 training images of the original files. Columns: epoch, train_loss (mixed images), test_loss, test_acc (%).
One invariant: it is laid over nothing but runs of its network and its recipe.
"""

import csv
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc.gather import RunRow
from seresnet.config import KeyClass, ModelConfig, RunConfig, iter_keys, to_dict

#: The report calls it 900 epochs; its log is the beginning of a cosine over 1,000.
_HORIZONS = (900, 1000)

#: Compared on their own, or free: seeds are what arms are averaged over, and whoever chooses between arms holds images out.
_FREE = ("train.seed", "data.split_seed", "data.val_images", "optim.schedule_epochs", "train.epochs", "train.micro_batch_size")

#: Our key of an epoch -> the report's column.
COLUMNS = {"train_loss": "train_loss", "test_loss": "test_loss", "test_top1_pct": "test_acc"}


def read(key: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, values) of one of COLUMNS."""
    with open(Path(__file__).with_name("paper_curve.csv"), newline="") as file:
        lines = list(csv.DictReader(file))
    return np.array([int(line["epoch"]) for line in lines]), np.array([float(line[COLUMNS[key]]) for line in lines])


def applies(rows: Sequence[RunRow]) -> bool:
    """Whether one of these runs is the report's SE-ResNet, trained as the report does; held-out images are not held against it."""
    return any(_is_the_reports(row) for row in rows)


def label(rows: Sequence[RunRow]) -> str:
    """For a legend. The images are named unless all runs are known to have had the same ones."""
    names = {row.result.data_name for row in rows if row.result}
    return "the report (n = 1)" if names == {"CIFAR-10"} else "the report, original images (n = 1)"


def _is_the_reports(row: RunRow) -> bool:
    if not _has_only_known_keys(row):
        return False
    for (section, key), (wanted, default) in _identity().items():
        # A config from before a key was there says nothing of it, and ran by its default.
        if ((row.config or {}).get(section) or {}).get(key, default) != wanted:
            return False
    horizon = row.setting("optim", "schedule_epochs") or row.setting("train", "epochs")
    return horizon in _HORIZONS and row.setting("train", "micro_batch_size") in (None, RunConfig().train.global_batch_size)


@functools.cache
def _identity() -> dict[tuple[str, str], tuple[Any, Any]]:
    """(section, key) -> what the report has and what the default is, of every key that makes it another experiment."""
    wanted = RunConfig(model=ModelConfig(attention="se"))
    as_written, defaults = to_dict(wanted), to_dict(RunConfig())
    keys = [dotted.split(".") for dotted, rule, _, _ in iter_keys(wanted) if rule.key_class is KeyClass.IDENTITY and dotted not in _FREE]
    # A section that stands in no record, as program's does without a program, has nothing but defaults.
    return {(section, key): (as_written.get(section, {}).get(key), defaults.get(section, {}).get(key)) for section, key in keys}


@functools.cache
def _known_keys() -> frozenset[str]:
    return frozenset(dotted for dotted, *_ in iter_keys(RunConfig()))


def _has_only_known_keys(row: RunRow) -> bool:
    """A key of a newer version, or of somebody else's program, may make it another experiment."""
    known = _known_keys()
    return bool(row.config) and all(
        isinstance(part, dict) and f"{section}.{key}" in known for section, part in (row.config or {}).items() for key in part
    )
