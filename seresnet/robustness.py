"""A trained network on shifted test images: every corruption at every severity, with and without adapted batch norm.

The corruptions are corruptions.py's, adapting is adaptation.py's. One invariant: all networks see the same images, and the number of
images stands beside every figure.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from seresnet.adaptation import adapted
from seresnet.calibration import Scores, score
from seresnet.corruptions import OPERATIONS, corrupt
from seresnet.errors import ConfigError, DataError
from seresnet.trained import Classifier
from seresnet.tta import probabilities

SEVERITIES = (1, 2, 3, 4, 5)
_CHUNK = 500
#: Images of each severity in a published array.
_PUBLISHED = 10_000

Images = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Images with their labels, and which of the full test array they are."""

    __test__ = False  # pytest would take it for a class of tests

    images: Images
    labels: Integers
    indices: Integers


@dataclass(frozen=True, kw_only=True)
class Shift:
    """The scores under one corruption; adapted: with batch norm's statistics taken from the corrupted images themselves."""

    corruption: str
    severity: int
    plain: Scores
    adapted: Scores | None


def shifted_sets(test: TestSet, device: torch.device, published: Path | None = None) -> Iterator[tuple[str, int, Images]]:
    """(corruption, severity, images) in the paper's order. published: a folder of CIFAR-10-C's .npy files, used instead of our own code."""
    for name in OPERATIONS:
        for severity in SEVERITIES:
            yield name, severity, _published(published, name, severity, test) if published else _computed(name, severity, test, device)


def _computed(name: str, severity: int, test: TestSet, device: torch.device) -> Images:
    parts = []
    for start in range(0, len(test.images), _CHUNK):
        part = slice(start, start + _CHUNK)
        planar = torch.from_numpy(np.ascontiguousarray(test.images[part].transpose(0, 3, 1, 2))).to(device)
        parts.append(corrupt(name, planar, test.indices[part], severity).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


def _published(folder: Path, name: str, severity: int, test: TestSet) -> Images:
    path = folder / f"{name}.npy"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an array of CIFAR-10-C: {error}. Give the folder that holds its .npy files.") from error
    if array.dtype != np.uint8 or array.shape != (_PUBLISHED * len(SEVERITIES), *test.images.shape[1:]):
        expected = (_PUBLISHED * len(SEVERITIES), *test.images.shape[1:])
        raise DataError(f"{path}: is {array.dtype} {array.shape}, not uint8 {expected}. Get the file again.")
    return np.ascontiguousarray(array[(severity - 1) * _PUBLISHED + test.indices])


def check_published(folder: Path, test_labels: Integers) -> None:
    """Raise DataError unless the folder's labels are those of the run's test array: its order is what the indices mean."""
    path = folder / "labels.npy"
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}. Give the folder that holds CIFAR-10-C's .npy files.") from error
    if not np.array_equal(np.asarray(labels[:_PUBLISHED], dtype=np.int64), test_labels):
        raise DataError(
            f"{path}: the labels are not those of this run's test images. The published arrays follow the official files' order: "
            "train and test on them (data.name: cifar10), not on a folder of images."
        )


def measure(classifier: Classifier, images: Images, labels: Integers, *, tta: bool = False) -> Scores:
    """The scores of one network."""
    return score(probabilities(classifier.folded(), images, tta=tta).double().numpy(), labels)


def measure_shifts(
    classifiers: Sequence[Classifier],
    test: TestSet,
    *,
    tta: bool,
    source_share: float | None,
    published: Path | None = None,
    progress: Callable[[str, int], None] = lambda name, severity: None,
) -> list[list[Shift]]:
    """For each network its scores under every corruption and severity; the images are made once for all. source_share None: not adapted."""
    if not classifiers:
        raise ConfigError("no network to measure.")
    found: list[list[Shift]] = [[] for _ in classifiers]
    for name, severity, images in shifted_sets(test, classifiers[0].device, published):
        progress(name, severity)
        for own, classifier in zip(found, classifiers, strict=True):
            again = None if source_share is None else measure(adapted(classifier, images, source_share), images, test.labels, tta=tta)
            own.append(Shift(corruption=name, severity=severity, plain=measure(classifier, images, test.labels, tta=tta), adapted=again))
    return found


def mean_accuracy(shifts: Sequence[Shift], *, is_adapted: bool = False) -> float:
    """Over corruptions and severities alike, in percent: what is called mean corruption accuracy here."""
    scores = [shift.adapted if is_adapted else shift.plain for shift in shifts]
    return float(np.mean([each.top1_pct for each in scores if each is not None]))
