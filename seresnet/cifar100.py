"""The official CIFAR-100 files (Krizhevsky 2009), with the 100 fine labels. Their batches are CIFAR-10's but for the labels' name."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from seresnet.archives import FileTree, Report
from seresnet.array_file import LabelledImages
from seresnet.cifar10 import load_batches, read_batch, read_names
from seresnet.errors import DataError

ARCHIVE = "cifar-100-python.tar.gz"
ARCHIVE_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"  # as published beside the file
ARCHIVE_BYTES = 169_001_437
_FILES = ("train", "test", "meta")


def official_files(path: Path, names: Sequence[str]) -> dict[str, str] | None:
    """Role -> name of the official files in a tree; None if it has not even two of them. Raises DataError if one is missing."""
    found = {PurePosixPath(name).name: name for name in names if PurePosixPath(name).name in _FILES}
    if len(found) < 2 or len({PurePosixPath(name).parent for name in found.values()}) > 1:
        return None  # one file called "test" says nothing
    if missing := [name for name in _FILES if name not in found]:
        raise DataError(f"{path}: has {sorted(found)[0]} but lacks {', '.join(missing)}. Unpack {ARCHIVE} again.")
    return found


def read_official(tree: FileTree, files: Mapping[str, str], report: Report) -> LabelledImages:
    """Raises DataError for a file that is not what the format says."""
    batches = load_batches(tree, files, report)
    classes = read_names(f"{tree.path}: {files['meta']}", batches["meta"], "fine_label_names")
    train, test = (read_batch(f"{tree.path}: {files[role]}", batches[role], len(classes), "fine_labels") for role in ("train", "test"))
    return LabelledImages(
        title="CIFAR-100",
        classes=classes,
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
    )
