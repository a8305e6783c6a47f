"""scikit-learn's handwritten digits as 32x32 RGB: real images that come inside a package, for demos and tests without a network.

1,797 images of 8x8 with values 0..16 (UCI Optical Recognition of Handwritten Digits, test part). One invariant: the arrays follow
from the package's file by integer arithmetic alone, so their digest is the same everywhere.
"""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seresnet.array_file import LabelledImages
from seresnet.errors import DataError

#: Of each class, in the package's order, images 0, 5, 10, ... are the test set.
TEST_EVERY = 5


def read_digits() -> LabelledImages:
    """Raises DataError if scikit-learn is not installed."""
    table = _table()
    images, labels = enlarge(table[:, :64].reshape(-1, 8, 8)), table[:, 64]
    is_test = held_out(labels)
    return LabelledImages(
        title="digits (scikit-learn)",
        classes=tuple("0123456789"),
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
    )


def enlarge(small: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(N, 8, 8) with 0..16 to (N, 32, 32, 3) with 0..255: each pixel a 4x4 block.

    Not interpolated by pillow: its resampling may change a value by one between versions, and the digest with it.
    """
    grey = ((small * 255 + 8) // 16).astype(np.uint8)
    return np.repeat(grey.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)


def held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where an image belongs to the test set: every fifth of its class."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[::TEST_EVERY]] = True
    return mask


def _table() -> NDArray[np.int64]:
    """(1797, 65): 64 pixels and the label. Read from the package's file: importing sklearn for it takes 3 s and scipy."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError(
            "data.name digits: the images come with scikit-learn, which is not installed here. "
            "Say the same with the Python of the training environment."
        )
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.exists():
        return _table_by_import()
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, delimiter=",").astype(np.int64)


def _table_by_import() -> NDArray[np.int64]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.int64)
