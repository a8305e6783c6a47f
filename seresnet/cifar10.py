"""The official CIFAR-10 files (Krizhevsky 2009): where they are published, and their batches as arrays.

The batches are pickles; safe_pickle reads them without running anything in them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seresnet.archives import FileTree, Report
from seresnet.array_file import LabelledImages
from seresnet.errors import DataError
from seresnet.safe_pickle import load_plain

BASE_URL = "https://www.cs.toronto.edu/~kriz"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"  # as published beside the file
ARCHIVE_BYTES = 170_498_071
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_FILES = (*TRAIN_BATCHES, "test_batch", "batches.meta")
_SIDE = 32


def official_files(path: Path, names: Sequence[str]) -> dict[str, str] | None:
    """Role -> name of the official files in a tree, or None if there is no batch in it. Raises DataError if some are missing."""
    found = {PurePosixPath(name).name: name for name in names if PurePosixPath(name).name in _FILES}
    if not found:
        return None
    if missing := [name for name in _FILES if name not in found]:
        raise DataError(f"{path}: has {sorted(found)[0]} but lacks {', '.join(missing)}. Unpack {ARCHIVE} again.")
    return found


def read_official(tree: FileTree, files: Mapping[str, str], report: Report) -> LabelledImages:
    """All batches in their published order. Raises DataError for a batch that is not what the format says."""
    batches = load_batches(tree, files, report)
    classes = read_names(f"{tree.path}: {files['batches.meta']}", batches["batches.meta"], "label_names")
    parts = {
        role: read_batch(f"{tree.path}: {files[role]}", batches[role], len(classes), "labels") for role in (*TRAIN_BATCHES, "test_batch")
    }
    return LabelledImages(
        title="CIFAR-10",
        classes=classes,
        train_images=np.concatenate([parts[role][0] for role in TRAIN_BATCHES]),
        train_labels=np.concatenate([parts[role][1] for role in TRAIN_BATCHES]),
        test_images=parts["test_batch"][0],
        test_labels=parts["test_batch"][1],
    )


def load_batches(tree: FileTree, files: Mapping[str, str], report: Report) -> dict[str, dict[Any, Any]]:
    """Role -> content of every file. files: role -> name. Raises DataError."""
    roles = {name: role for role, name in files.items()}
    batches: dict[str, dict[Any, Any]] = {}
    for name, load in tree.read(roles):
        batches[roles[name]] = load_plain(_load(tree.path / name, load), f"{tree.path}: {name}")
        report("read batches", len(batches), len(files))
    return batches


def _load(path: Path, load: Any) -> bytes:
    try:
        return bytes(load())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Correct its permissions.") from error


def read_names(place: str, meta: Mapping[Any, Any], key: str) -> tuple[str, ...]:
    """The classes' names in the meta file. Raises DataError."""
    names = _value(place, meta, key)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{place}: {key} is {names!r:.60}, not a list of names. Get the file again.")
    return tuple(name.decode() if isinstance(name, bytes) else name for name in names)


def read_batch(place: str, batch: Mapping[Any, Any], classes: int, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 32, 32, 3) and labels (N,) of one batch: rows are 1,024 red, then green, then blue values, each row by row.

    key: under which the labels are. Raises DataError.
    """
    rows, labels = _value(place, batch, "data"), _value(place, batch, key)
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3 * _SIDE * _SIDE:
        found = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise DataError(f"{place}: data is {found}, not uint8 (N, 3072). Get the file again.")
    # Checked one by one before numpy sees them: nested lists that share their parts unfold without end.
    is_list = isinstance(labels, list) and len(labels) == len(rows) > 0
    if not is_list or not all(type(label) is int and 0 <= label < classes for label in labels):
        raise DataError(f"{place}: {key} are not {len(rows)} numbers from 0 to {classes - 1}. Get the file again.")
    return np.ascontiguousarray(rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)), np.array(labels, dtype=np.int64)


def _value(place: str, mapping: Mapping[Any, Any], key: str) -> Any:
    value = mapping.get(key.encode(), mapping.get(key))
    if value is None:
        raise DataError(f"{place}: has no {key!r}. Get the file again.")
    return value
