"""One data set as one file of raw arrays, and the digest by which every run knows it.

Layout (docs/adr/0005): one line with the header's length and SHA-256, the header as canonical JSON, then each array in the order of
its name at a multiple of 64 bytes. One invariant: nothing read from a file is returned before its digests agree, and nothing in
it is ever executed. Where files come from, and when they are built, is prepare's job.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from seresnet.durable import canonical_json, parse_json
from seresnet.errors import DataError

MAGIC = "seresnet-arrays 1"
ALIGNMENT = 64
_FIRST_LINE_BYTES = len(MAGIC) + 1 + 8 + 1 + 64 + 1
#: Every array of a file and what it must be; little-endian on every machine.
DTYPES = {
    "classes": "|u1",  # JSON list of class names, so that the digest covers them
    "mean": "<f8",
    "std": "<f8",
    "test_images": "|u1",
    "test_labels": "<i8",
    "train_images": "|u1",
    "train_labels": "<i8",
}


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """What a source gives: images uint8 (N, H, W, 3), labels int64 (N,) that index classes."""

    title: str  # how people write the data set's name, as "CIFAR-10 (JPEG)"
    classes: tuple[str, ...]
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Arrays(LabelledImages):
    """A verified array file in memory. mean and std are (3,) float64 of the training pixels on the scale 0..1."""

    name: str  # data.name of the config
    digest: str  # SHA-256 over the arrays' names, types, shapes and bytes
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ArrayEntry:
    """Name, numpy type string and shape of one array in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an array file says about itself."""

    name: str
    title: str
    source: str  # where the images came from; a record, read only to find a file whose source is gone
    digest: str
    entries: tuple[ArrayEntry, ...]
    start: int  # offset of the first byte after the header

    def offsets(self) -> list[int]:
        """Offset of each array, then of the file's end."""
        result, position = [], self.start
        for entry in self.entries:
            position += -position % ALIGNMENT
            result.append(position)
            position += entry.nbytes
        return [*result, position]


def content_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over sorted (name, dtype, shape, bytes): equal for equal content, whatever file, machine or order it came from."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(canonical_json([name, array.dtype.str, list(array.shape)]).encode() + b"\0")
        digest.update(_raw(array))
    return digest.hexdigest()


def channel_statistics(images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation of each channel on the scale 0..1, from exact integer sums.

    Exact, so that no blocking, thread count or numpy version changes a bit. A constant channel gets 1 instead of 0: dividing by
    it must give zeros, not NaN.
    """
    total, squares, count = [0, 0, 0], [0, 0, 0], math.prod(images.shape[:3])
    for start in range(0, len(images), 1024):
        for channel in range(3):
            # A histogram of bytes is an exact sum of integers; a float sum is neither exact nor the same in every order.
            histogram = np.bincount(images[start : start + 1024, :, :, channel].ravel(), minlength=256)
            for value in np.flatnonzero(histogram).tolist():
                total[channel] += value * int(histogram[value])
                squares[channel] += value * value * int(histogram[value])
    mean = [s / (255 * count) for s in total]
    std = [math.sqrt((count * s2 - s * s) / (count * count)) / 255 or 1.0 for s, s2 in zip(total, squares, strict=True)]
    return np.array(mean, dtype="<f8"), np.array(std, dtype="<f8")


def write_array_file(path: Path, *, name: str, source: str, data: LabelledImages) -> str:
    """Write and fsync a new file at path and return its digest; renaming it into place is the caller's business. Raises OSError."""
    mean, std = channel_statistics(data.train_images)
    classes = np.frombuffer(canonical_json(list(data.classes)).encode(), dtype="|u1")
    values = {"classes": classes, "mean": mean, "std": std}
    values |= {key: getattr(data, key) for key in ("train_images", "train_labels", "test_images", "test_labels")}
    arrays = {key: np.ascontiguousarray(values[key], dtype=DTYPES[key]) for key in sorted(values)}
    digest = content_digest(arrays)
    entries = [{"name": key, "dtype": array.dtype.str, "shape": list(array.shape)} for key, array in arrays.items()]
    text = canonical_json({"name": name, "title": data.title, "source": source, "digest": digest, "entries": entries}).encode()
    with open(path, "xb") as file:
        file.write(f"{MAGIC} {len(text):08d} {hashlib.sha256(text).hexdigest()}\n".encode() + text)
        for array in arrays.values():
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            file.write(_raw(array))
        file.flush()
        os.fsync(file.fileno())
    return digest


def read_header(path: Path) -> Header:
    """The verified header of a file that has the length its header says; the arrays are not read. Raises DataError."""
    try:
        with open(path, "rb") as file:
            return _read_header(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise _damaged(path, error) from error


def load_arrays(path: Path, expect_digest: str | None = None) -> Arrays:
    """Read the whole file into memory and verify it. Raises DataError if it is missing or damaged, or has another digest.

    Read, not mapped: a mapped file that a cluster purges or truncates kills the process with SIGBUS, and a page read again after
    verifying may differ. 184 MB take about as long to hash as to read (docs/data.md).
    """
    try:
        with open(path, "rb") as file:
            header = _read_header(file)
            arrays = _read_entries(file, header)
        if (found := content_digest(arrays)) != header.digest:
            raise ValueError(f"the arrays' digest is {found[:16]}, the header says {header.digest[:16]}")
        result = _assemble(header, arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise _damaged(path, error) from error
    if expect_digest is not None and header.digest != expect_digest:
        raise DataError(
            f"{path}: data digest is {header.digest[:16]}, but {expect_digest[:16]} is expected. "
            "Give the data that the run was started with, or start a new run."
        )
    return result


def _read_header(file: BinaryIO) -> Header:
    first = file.read(_FIRST_LINE_BYTES)
    magic, _, rest = first.partition(f"{MAGIC} ".encode())
    fields = rest.split()
    if magic or len(first) < _FIRST_LINE_BYTES or len(fields) != 2:
        raise ValueError(f"it does not start with {MAGIC!r}")
    text = file.read(int(fields[0]))
    if hashlib.sha256(text).hexdigest().encode() != fields[1] or not first.endswith(b"\n"):
        raise ValueError("its header is damaged")
    value = parse_json(text)
    entries = tuple(_entry(item) for item in value.pop("entries"))
    if {entry.name: entry.dtype for entry in entries} != DTYPES:
        raise ValueError(f"it holds {[asdict(entry) for entry in entries]}, not {DTYPES}")
    header = Header(entries=entries, start=len(first) + len(text), **value)
    if (size := os.fstat(file.fileno()).st_size) != header.offsets()[-1]:
        raise ValueError(f"it has {size} bytes, its header says {header.offsets()[-1]}")
    return header


def _entry(item: Mapping[str, Any]) -> ArrayEntry:
    shape = tuple(item["shape"])
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"shape {shape} of {item['name']!r} is not a shape")
    return ArrayEntry(name=item["name"], dtype=item["dtype"], shape=shape)


def _read_entries(file: BinaryIO, header: Header) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for entry, offset in zip(header.entries, header.offsets(), strict=False):
        padding = file.read(offset - file.tell())
        array = np.empty(entry.shape, dtype=entry.dtype)
        if padding.strip(b"\0") or _read_into(file, _raw(array)) != entry.nbytes:
            raise ValueError(f"it is damaged before or inside {entry.name!r}")
        arrays[entry.name] = array
    return arrays


def _read_into(file: BinaryIO, buffer: memoryview) -> int:
    """Fill the buffer; returns how much of it the file could fill. One read call stops at 2 GiB on Linux."""
    done = 0
    while done < len(buffer) and (count := file.readinto(buffer[done : done + (1 << 24)])):  # type: ignore[attr-defined]
        done += count
    return done


def _assemble(header: Header, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    classes = parse_json(arrays["classes"].tobytes())
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.ndim != 4 or images.shape[-1] != 3 or labels.shape != images.shape[:1] or not len(labels):
            raise ValueError(f"{split} images {images.shape} and labels {labels.shape} do not belong together")
        if labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(f"{split} labels {labels.min()}..{labels.max()} do not index {len(classes)} classes")
    rest = {key: arrays[key] for key in DTYPES if key != "classes"}
    return Arrays(name=header.name, title=header.title, digest=header.digest, classes=tuple(classes), **rest)


def _raw(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _damaged(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: no such array file. `python -m seresnet.prepare` builds it.")
    return DataError(f"{path}: not a whole array file: {error}. Delete it; `python -m seresnet.prepare` builds it again.")
