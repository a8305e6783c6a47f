"""The official cropped-digits files of SVHN (Netzer et al. 2011), MATLAB 5 files, read by scipy."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seresnet.archives import MAX_TOTAL_BYTES, FileTree, Report
from seresnet.array_file import LabelledImages
from seresnet.errors import DataError

BASE_URL = "http://ufldl.stanford.edu/housenumbers"
#: MD5 as torchvision has them; the publisher gives none. The extra set is not used.
FILES = {"train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373", "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3"}
_SIDE = 32


def official_files(path: Path, names: Sequence[str]) -> dict[str, str] | None:
    """Role -> name of the two files in a tree, or None if there is none in it. Raises DataError if one is missing."""
    found = {PurePosixPath(name).name: name for name in names if PurePosixPath(name).name in FILES}
    if not found:
        return None
    if missing := [name for name in FILES if name not in found]:
        raise DataError(f"{path}: has {sorted(found)[0]} but lacks {', '.join(missing)}. Get it from {BASE_URL}.")
    return found


def read_official(tree: FileTree, files: Mapping[str, str], report: Report) -> LabelledImages:
    """Classes are the digits; the files call 0 "10". Raises DataError."""
    roles, parts = {name: role for role, name in files.items()}, {}
    for name, load in tree.read(roles):
        parts[roles[name]] = _read(f"{tree.path}: {name}", load)
        report("read files", len(parts), len(files))
    (train_images, train_labels), (test_images, test_labels) = (parts[name] for name in FILES)
    return LabelledImages(
        title="SVHN",
        classes=tuple("0123456789"),
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


def _read(place: str, load: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        from scipy.io import loadmat, whosmat
    except ImportError as error:
        raise DataError(
            f"{place}: scipy reads these files and is not installed here. Use the environment of `make setup` (a job prepares data, too)."
        ) from error
    try:
        payload = load()
        shapes = {name: shape for name, shape, _ in whosmat(io.BytesIO(payload))}
        _check_shapes(shapes)  # before anything is unpacked: a small file can say that it is large
        values = loadmat(io.BytesIO(payload), variable_names=["X", "y"])
        return _arrays(values["X"], values["y"])
    except Exception as error:  # scipy raises nearly anything on damaged bytes
        raise DataError(f"{place}: not an SVHN file: {error}. Get the file again.") from error


def _check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    images, labels = shapes.get("X"), shapes.get("y")
    if images is None or labels is None or images[:3] != (_SIDE, _SIDE, 3) or len(images) != 4 or labels != (images[3], 1):
        raise ValueError(f"X is {images} and y {labels}, not (32, 32, 3, N) and (N, 1)")
    if 3 * _SIDE * _SIDE * images[3] > MAX_TOTAL_BYTES:
        raise ValueError(f"says that it has {images[3]} images")


def _arrays(images: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    digits = labels[:, 0].astype(np.int64)
    if images.dtype != np.uint8 or not len(digits) or digits.min() < 1 or digits.max() > 10:
        raise ValueError(f"X is {images.dtype}, and labels are not 1 to 10")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), digits % 10
