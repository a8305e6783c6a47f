"""Folders and archives of split/class/image files: what belongs where, and decoding in parallel.

Finding the files is archives' job. One invariant: the arrays depend on the files' names and bytes alone, never on their order in
an archive or on the number of workers.
"""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from seresnet.archives import MAX_TOTAL_BYTES, FileTree, Load, Report
from seresnet.array_file import LabelledImages
from seresnet.errors import DataError

TRAIN = "train"
#: What the held-out split may be called; the first one present is used.
TESTS = ("test", "val", "validation", "valid")
LAYOUT = "Expected train/CLASS/IMAGE and test/CLASS/IMAGE (val/ also counts as test)"
#: Pillow calls Ghostscript for EPS and Windows for WMF; the other four it can only name, not decode.
_REFUSED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
#: 16-bit and float pixels, which convert("RGB") would clip at 255 without a word.
_DEEP_MODES = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
#: Files a thread decodes at once: below 32 the queue costs more than the decoding of small images.
_CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """Image files in the order of the arrays: by class, then by name."""

    classes: tuple[str, ...]
    train: tuple[str, ...]
    train_labels: tuple[int, ...]
    test: tuple[str, ...]
    test_labels: tuple[int, ...]


def plan_layout(path: Path, names: Sequence[str]) -> ImageLayout:
    """Which file is what, from names alone. path is for the messages. Raises DataError naming it and what to change."""
    if not names:
        raise DataError(f"{path}: holds no files. {LAYOUT}.")
    splits = _splits(path, names)
    test = next((split for split in TESTS if split in splits), None)
    if TRAIN not in splits or test is None:
        found = ", ".join(f"{split}/" for split in sorted(splits))
        raise DataError(f"{path}: has {found} but no {'train/' if TRAIN not in splits else 'test/ or val/'}. {LAYOUT}.")
    classes = tuple(sorted(splits[TRAIN]))
    if differing := set(classes) ^ set(splits[test]):
        raise DataError(
            f"{path}: {TRAIN}/ and {test}/ do not have the same classes: {_some(differing)} "
            "has images in one of them only. Add the missing images or remove the class."
        )
    ordered = {split: [(name, i) for i, key in enumerate(classes) for name in sorted(splits[split][key])] for split in (TRAIN, test)}
    return ImageLayout(
        classes=classes,
        train=tuple(name for name, _ in ordered[TRAIN]),
        train_labels=tuple(label for _, label in ordered[TRAIN]),
        test=tuple(name for name, _ in ordered[test]),
        test_labels=tuple(label for _, label in ordered[test]),
    )


def _splits(path: Path, names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """split -> class -> names of image files. Other files are left out; a name that stands twice is an error."""
    if len(set(names)) != len(names):
        twice = {name for name, previous in zip(sorted(names)[1:], sorted(names), strict=False) if name == previous}
        raise DataError(f"{path}: {_some(twice)} stands in it twice. Pack the archive again.")
    suffixes = _image_suffixes()
    splits: dict[str, dict[str, list[str]]] = {}
    roots: set[tuple[str, ...]] = set()
    for name in names:
        parts = name.split("/")
        place = next((i for i, part in enumerate(parts[:-2]) if part in (TRAIN, *TESTS)), None)
        if place is None or PurePosixPath(name).suffix.lower() not in suffixes:
            continue
        roots.add(tuple(parts[:place]))
        splits.setdefault(parts[place], {}).setdefault(parts[place + 1], []).append(name)
    if not splits:
        raise DataError(f"{path}: holds {len(names)} files, such as {_some(names[:1])}, but no image in such a place. {LAYOUT}.")
    if len(roots) > 1:
        raise DataError(f"{path}: holds more than one data set: {_some('/'.join(root) or '.' for root in roots)}. Give one of them.")
    return splits


def image_names(names: Iterable[str]) -> list[str]:
    """Those that end as an image does."""
    suffixes = _image_suffixes()
    return [name for name in names if PurePosixPath(name).suffix.lower() in suffixes]


def _image_suffixes() -> set[str]:
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in _formats()}


def _formats() -> list[str]:
    """Names of the formats that pillow decodes by itself, the common ones first, since they are tried in order."""
    Image.init()
    known = [kind for kind in Image.OPEN if kind not in _REFUSED_FORMATS]
    return sorted(known, key=lambda kind: (kind not in ("JPEG", "PNG"), kind))


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(repr(name) for name in ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def read_images(tree: FileTree, layout: ImageLayout, *, workers: int, report: Report) -> LabelledImages:
    """Decode every file of the layout to RGB. Raises DataError naming the first file that is unreadable or of another size."""
    names = layout.train + layout.test
    slots = {name: slot for slot, name in enumerate(names)}
    decoder = _Decoder(path=tree.path, formats=_formats())
    stored = tree.read(slots)
    first = next(stored, None)
    if first is None:
        raise _changed(tree.path, 0, len(names))
    decoder.set_size(*first, count=len(names))
    pixels = np.empty((len(names), *decoder.shape), dtype=np.uint8)
    done = 0
    for count in _in_threads(decoder, chain([first], stored), slots, pixels, workers):
        done += count
        report("decode images", done, len(names))
    if done != len(names):
        raise _changed(tree.path, done, len(names))
    return LabelledImages(
        title=f"{tree.path.name} ({'/'.join(sorted(decoder.seen))})",
        classes=layout.classes,
        train_images=pixels[: len(layout.train)],
        train_labels=np.array(layout.train_labels, dtype=np.int64),
        test_images=pixels[len(layout.train) :],
        test_labels=np.array(layout.test_labels, dtype=np.int64),
    )


def _in_threads(
    decoder: "_Decoder", stored: Iterator[tuple[str, Load]], slots: dict[str, int], pixels: NDArray[np.uint8], workers: int
) -> Iterator[int]:
    """Decode chunks of files into their slots; yields the number of each chunk, in order, so that the first fault is always the same.

    Threads, not processes: pillow decodes outside the GIL and nothing is copied. Measured on the 60,000 CIFAR-10 JPEGs with 2 cores:
    serial 5.9 s, 2 threads 4.3 s, 2 processes 6.1 s.
    """
    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while chunk := list(islice(stored, _CHUNK)):
                pending.append(pool.submit(_decode_chunk, decoder, chunk, slots, pixels))
                if len(pending) > 4 * workers:  # the files read ahead must not fill the memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _decode_chunk(decoder: "_Decoder", chunk: Sequence[tuple[str, Load]], slots: dict[str, int], pixels: NDArray[np.uint8]) -> int:
    for name, load in chunk:
        pixels[slots[name]] = decoder.decode(name, load)
    return len(chunk)


class _Decoder:
    """Bytes to (H, W, 3) uint8; knows the one size that all images have, and sees the formats that occur."""

    def __init__(self, *, path: Path, formats: list[str]) -> None:
        self.seen: set[str] = set()
        self.shape = (0, 0, 3)
        self._path, self._formats, self._first = path, formats, ""

    def set_size(self, name: str, load: Load, *, count: int) -> None:
        """Take the size of this file for that of all. Raises DataError if count images of it are too many for a memory."""
        with self._open(name, load) as image:
            self.shape, self._first = (image.height, image.width, 3), name
        if count * image.height * image.width * 3 > MAX_TOTAL_BYTES:
            raise self._fault(
                name, f"is {image.width}x{image.height} pixels: {count} such images do not fit into memory. Make them smaller."
            )

    def decode(self, name: str, load: Load) -> NDArray[np.uint8]:
        with self._open(name, load) as image:
            if (image.height, image.width, 3) != self.shape:  # before anything is decoded
                size = f"{self.shape[1]}x{self.shape[0]}"
                raise self._fault(name, f"is {image.width}x{image.height} pixels, {self._first} is {size}. Resize all to one size.")
            if image.mode in _DEEP_MODES:
                raise self._fault(name, f"has pixels of more than 8 bits (mode {image.mode}). Convert it to 8 bits a channel.")
            try:
                pixels = np.asarray(image.convert("RGB"))
            except Exception as error:
                raise self._unreadable(name, error) from error
            self.seen.add(image.format or "unknown")
            return pixels

    def _open(self, name: str, load: Load) -> Image.Image:
        try:
            return Image.open(io.BytesIO(load()), formats=self._formats)
        except DataError:
            raise
        except OSError as error:
            # Pillow's own message names a BytesIO object.
            reason = "is in no image format that is read here" if isinstance(error, UnidentifiedImageError) else str(error)
            raise self._unreadable(name, reason) from error
        except Exception as error:  # pillow's plugins raise nearly anything on damaged bytes
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, reason: object) -> DataError:
        return self._fault(name, f"cannot be read as an image: {reason}. Replace or remove it.")

    def _fault(self, name: str, text: str) -> DataError:
        return DataError(f"{self._path}{os.sep if self._path.is_dir() else ': '}{name} {text}")


def _changed(path: Path, found: int, expected: int) -> DataError:
    return DataError(f"{path}: gave {found} of {expected} images: it changed while it was read. Prepare it again.")


def cpu_count() -> int:
    """CPUs that this process may use; a job usually has fewer than its node."""
    affinity: Any = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1
