"""Images for benchmarks as the official CIFAR-10 files, which our toolkit and the plain script both read: given ones or made-up ones.

Made-up images are smooth and differ by class, so that a network learns from them; accuracy on them says nothing else. One invariant:
equal arguments give equal files.
"""

import pickle
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"
#: Of a made-up image: how much is its class's pattern, its own and noise of single pixels, on the scale 0..255.
CLASS_PATTERN, OWN_PATTERN, NOISE = 25.0, 35.0, 8.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images (N, 32, 32, 3) uint8 and labels (N,) int64."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def made_up(train: int, test: int, seed: int = 0) -> Sample:
    """Equally many of each class, in an order that is mixed."""
    draw = np.random.default_rng(seed)
    patterns = _smooth(draw, len(CLASSES))
    parts: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    for n in (train, test):
        label = draw.permutation(np.arange(n) % len(CLASSES))
        parts.append(np.concatenate([_images(draw, patterns[some]) for some in np.array_split(label, max(1, n // 5000))]))
        labels.append(label)
    return Sample(train_images=parts[0], train_labels=labels[0], test_images=parts[1], test_labels=labels[1])


def given(path: Path, data_dir: Path, train: int | None, test: int | None) -> Sample:
    """The first images of a data set that seresnet.prepare can read. Raises DataError."""
    from seresnet.config import DataConfig
    from seresnet.prepare import load_arrays, prepare

    arrays = load_arrays(prepare(DataConfig(name="cifar10", path=str(path)), data_dir))
    return Sample(
        train_images=arrays.train_images[:train],
        train_labels=arrays.train_labels[:train],
        test_images=arrays.test_images[:test],
        test_labels=arrays.test_labels[:test],
    )


def write_official(folder: Path, sample: Sample) -> Path:
    """Write the files of the published archive, with fewer images in each; the folder that holds them."""
    target = folder / FOLDER
    target.mkdir(parents=True)
    bounds = [len(sample.train_labels) * part // 5 for part in range(6)]
    for part, (start, stop) in enumerate(pairwise(bounds), start=1):
        _dump(target / f"data_batch_{part}", _batch(sample.train_images[start:stop], sample.train_labels[start:stop]))
    _dump(target / "test_batch", _batch(sample.test_images, sample.test_labels))
    _dump(target / "batches.meta", {"label_names": list(CLASSES)})
    return target


def _images(draw: np.random.Generator, patterns: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image for each class's pattern given, of the patterns' shape."""
    noise = draw.standard_normal(patterns.shape, dtype=np.float32)
    pixels = 128 + CLASS_PATTERN * patterns + OWN_PATTERN * _smooth(draw, len(patterns)) + NOISE * noise
    return pixels.clip(0, 255).astype(np.uint8)


def _smooth(draw: np.random.Generator, n: int) -> NDArray[np.float32]:
    """(n, 32, 32, 3): coarse noise of 5x5 points, bilinearly enlarged; about unit variance."""
    coarse = draw.standard_normal((n, 5, 5, 3)).astype(np.float32)
    at = np.linspace(0, 4, 32)
    low = np.minimum(at.astype(np.int64), 3)
    weights = np.zeros((32, 5), dtype=np.float32)
    weights[np.arange(32), low] = 1 - (at - low)
    weights[np.arange(32), low + 1] += at - low
    return np.einsum("yi,xj,nijc->nyxc", weights, weights, coarse, optimize=True)


def _batch(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, object]:
    return {"data": np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(len(images), -1)), "labels": labels.tolist()}


def _dump(path: Path, content: object) -> None:
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=2)
