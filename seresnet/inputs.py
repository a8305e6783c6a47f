"""Images to classify, from a pickle of the competition, a .npy file, a folder or an archive of images: always (N, H, W, 3) uint8.

One invariant: nothing that a file holds is executed.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from seresnet.errors import DataError
from seresnet.safe_pickle import load_plain

_PICKLES = (".pkl", ".pickle")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Images and the id of each: its number, or its file's name."""

    images: npt.NDArray[np.uint8]
    ids: tuple[str, ...]


def read_inputs(path: Path) -> Inputs:
    """Raises DataError naming the file and what it should hold."""
    if path.suffix.lower() in _PICKLES or path.suffix.lower() == ".npy":
        try:
            payload = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}. Correct the path.") from error
        array = _npy(path, payload) if path.suffix.lower() == ".npy" else _competition(path, payload)
        return Inputs(images=_upright(path, array), ids=tuple(map(str, range(len(array)))))
    return _pictures(path)


def _competition(path: Path, payload: bytes) -> npt.NDArray[np.uint8]:
    """The array under b'data'; other keys, such as ids, are not needed."""
    found = load_plain(payload, str(path))
    array = found.get(b"data", found.get("data"))
    if not isinstance(array, np.ndarray):
        keys = ", ".join(repr(key) for key in list(found)[:6]) or "none"
        raise DataError(f"{path}: has no array under the key b'data'. Its keys: {keys}.")
    return array


def _npy(path: Path, payload: bytes) -> npt.NDArray[np.uint8]:
    try:
        array: npt.NDArray[np.uint8] = np.load(io.BytesIO(payload), allow_pickle=False)
        return array
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a .npy file of numbers: {error}. Nothing in it was run.") from error


def _upright(path: Path, array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) or (N, 3, H, W) or (N, 3072) to the first."""
    if array.dtype != np.uint8:
        raise DataError(f"{path}: holds {array.dtype}, not uint8 pixels of 0 to 255.")
    if array.ndim == 2 and array.shape[1] == 3 * 32 * 32:
        array = array.reshape(-1, 3, 32, 32)
    if array.ndim == 4 and array.shape[3] == 3:
        return np.ascontiguousarray(array)
    if array.ndim == 4 and array.shape[1] == 3:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    raise DataError(f"{path}: has the shape {array.shape}; (N, H, W, 3) or (N, 3, H, W) is wanted.")


def _pictures(path: Path) -> Inputs:
    from seresnet.archives import open_tree
    from seresnet.data_progress import silent
    from seresnet.images import ImageLayout, cpu_count, image_names, read_images

    tree = open_tree(path)
    names = image_names(tree.names(silent))
    if not names:
        raise DataError(f"{path}: holds no image. Give a .pkl or .npy file, or a folder or archive of images.")
    ordered = sorted(names, key=_natural)
    layout = ImageLayout(classes=("",), train=(), train_labels=(), test=tuple(ordered), test_labels=(0,) * len(ordered))
    data = read_images(tree, layout, workers=cpu_count(), report=silent)
    return Inputs(images=data.test_images, ids=_ids(ordered))


def _natural(name: str) -> tuple[str, int, str]:
    """2.png before 10.png."""
    stem = PurePosixPath(name).stem
    return (str(PurePosixPath(name).parent), int(stem) if stem.isascii() and stem.isdigit() else -1, name)


def _ids(names: Sequence[str]) -> tuple[str, ...]:
    stems = [PurePosixPath(name).stem for name in names]
    return tuple(stems) if len(set(stems)) == len(stems) else tuple(names)
