"""A data set of somebody else's code: by what it is known before anything is called, its call, and the check of what it gives.

Nothing heavy is imported until it is called: which file it becomes, and when, is the business of sources.py and prepare.py. One
invariant: whatever it draws from the global generators begins with the same word, so that equal code, arguments and files give equal
bytes.
"""

import contextlib
import errno
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seresnet import own_code
from seresnet.array_file import LabelledImages
from seresnet.config import DataConfig, plain_args, slug, split_target
from seresnet.durable import canonical_json
from seresnet.errors import ConfigError
from seresnet.strict_yaml import nearest

log = logging.getLogger("seresnet")

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
PARTS = (*ARRAYS, "classes", "title")
#: What a file server mends by itself: the run is tried again. Any other error of files is the user's, a missing file mostly.
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
_MOST_TITLE = 80


def file_stem(target: str) -> str:
    """How the names of its array files begin, whichever way the target is spelt."""
    return f"own-{slug(':'.join(split_target(target)))}"


def facts(config: DataConfig) -> list[Any]:
    """What it is made of, apart from the files that it reads: target, arguments, and a digest of the code."""
    assert config.target is not None, "the built-in data sets are sources.py's"
    module, name = split_target(config.target)
    return [f"{module}:{name}", plain_args(config.args), own_code.digest_of_module(module)]


def place(config: DataConfig) -> str:
    """Where the images come from, for people, and to find an array file again whose data.path is gone."""
    target, arguments, code = facts(config)
    path = Path(config.path).expanduser().resolve() if config.path else None
    return f"{target} {canonical_json(arguments)} code {code}{f' path {path}' if path else ''}"


def read(config: DataConfig) -> LabelledImages:
    """Call it, and check what it gives. Raises ConfigError, with the reason and the fix, for what cannot be found, called or used."""
    import torch

    from seresnet import targets

    target, cpu = config.target, torch.device("cpu")
    assert target is not None, "the built-in data sets are sources.py's"
    log.info("own_data target=%s is called", target)
    with _files_explained(target), targets.own_draws(0, "own/data", 0, 0, cpu):
        callable_ = targets.find("data.target", target)
    arguments = plain_args(config.args)
    if config.path is not None:
        if not targets.takes(callable_, "path"):
            raise ConfigError(f"data.path: {config.path} is set, and {target} takes no argument path. Unset data.path, or let it take one.")
        arguments["path"] = str(Path(config.path).expanduser().resolve())
    targets.refuse_arguments("data", target, callable_, arguments)
    # Begun again: what its module drew when it was imported, now or earlier, must not move its draws.
    with _files_explained(target), targets.own_draws(0, "own/data", 0, 0, cpu), targets.explained("data.target", target):
        found = _parts(target, callable_(**arguments))
    return checked(target, found)


@contextlib.contextmanager
def _files_explained(target: str) -> Iterator[None]:
    """An OSError of theirs is neither about our array file nor, mostly, to be mended by trying again."""
    try:
        yield
    except OSError as error:
        from seresnet import targets

        if error.errno in _PASSING:
            raise RuntimeError(f"data.target: {target} raised {type(error).__name__}: {error}") from error
        raise targets.raised("data.target", target, error) from error


def _parts(target: str, found: object) -> dict[str, Any]:
    """The named parts of a mapping, or of an object's attributes, those that are None left out."""
    names = list(found) if isinstance(found, Mapping) else [name for name in PARTS if hasattr(found, name)]
    if isinstance(found, Mapping) and (strange := next((name for name in names if name not in PARTS), None)) is not None:
        near = nearest(str(strange), PARTS)
        raise ConfigError(
            f"data.target: {target} gives a part {strange!r}, which nobody reads. "
            f"{f'Did you mean {near}?' if near else 'Leave it away.'} Parts: {', '.join(PARTS)}."
        )
    parts = {name: found[name] if isinstance(found, Mapping) else getattr(found, name) for name in names}
    parts = {name: value for name, value in parts.items() if value is not None}
    if missing := [name for name in ARRAYS if name not in parts]:
        raise ConfigError(
            f"data.target: {target} gives {_what(found)} without {', '.join(missing)}. "
            f"A mapping, or an object, with {', '.join(ARRAYS)} is wanted; classes and title may be in it, too."
        )
    return parts | {name: _array(target, name, parts[name]) for name in ARRAYS}


def _array(target: str, name: str, found: object) -> NDArray[Any]:
    try:
        return np.asarray(found)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"data.target: {target} gives {name} as {_what(found)} that is no array: {error}. Bring all images to one size, on the CPU."
        ) from error


def checked(target: str, parts: Mapping[str, Any]) -> LabelledImages:
    """The parts as the array file takes them; grey images become three equal channels. Raises ConfigError."""
    images = {split: _images(target, f"{split}_images", parts[f"{split}_images"]) for split in ("train", "test")}
    labels = {split: _labels(target, f"{split}_labels", parts[f"{split}_labels"], len(images[split])) for split in ("train", "test")}
    if images["train"].shape[1:3] != images["test"].shape[1:3]:
        sizes = " and ".join(f"{split}_images of {pixels.shape[1]} x {pixels.shape[2]}" for split, pixels in images.items())
        raise ConfigError(f"data.target: {target} gives {sizes} pixels (height x width). Give both one size.")
    classes = _classes(target, parts.get("classes"), labels["train"])
    for split in ("train", "test"):
        _refuse_other_classes(target, f"{split}_labels", labels[split], classes)
    _refuse_empty_classes(target, labels["train"], classes)
    return LabelledImages(
        title=_title(target, parts.get("title")),
        classes=classes,
        train_images=images["train"],
        train_labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
    )


def _images(target: str, name: str, found: NDArray[Any]) -> NDArray[np.uint8]:
    is_grey = found.ndim == 3 or (found.ndim == 4 and found.shape[3] == 1)
    if found.dtype != np.uint8 or not (is_grey or (found.ndim == 4 and found.shape[3] == 3)):
        raise ConfigError(
            f"data.target: {target} gives {name} as {_what(found)}. uint8 (N, H, W, 3) is wanted, values 0..255, "
            f"or (N, H, W) for grey ones. {_image_fix(name, found)}"
        )
    if not found.size:
        raise ConfigError(f"data.target: {target} gives {name} of shape {found.shape}, which is no image at all. Give one at least.")
    grey = found.reshape(found.shape[:3]) if is_grey else None
    return found if grey is None else np.repeat(grey[..., None], 3, axis=3)


def _image_fix(name: str, found: NDArray[Any]) -> str:
    if found.dtype == object:
        return "Bring all images to one size."
    if found.dtype.kind == "f":
        return f"If its values are in 0..1, write (255 * {name}).round().astype('uint8')."
    if found.dtype.kind == "b":
        return f"Write 255 * {name}.astype('uint8')."
    if found.dtype != np.uint8:
        return f"If its values are in 0..255, write {name}.astype('uint8')."
    if found.ndim == 4 and found.shape[1] in (1, 3):
        return f"Write {name}.transpose(0, 2, 3, 1)."
    if found.ndim == 4 and found.shape[3] == 4:
        return f"Drop the transparency: {name}[..., :3]."
    return "Correct its shape."


def _labels(target: str, name: str, found: NDArray[Any], images: int) -> NDArray[np.int64]:
    if found.dtype.kind not in "iu" or found.ndim != 1:
        fix = f"Write {name}.astype('int64') if they are whole numbers."
        if found.ndim == 2:
            fix = f"Write {name}.argmax(1) if they are one-hot." if found.shape[1] != 1 else f"Write {name}.ravel()."
        elif found.dtype.kind in "USO":
            fix = "Give numbers, and the names as classes."
        raise ConfigError(f"data.target: {target} gives {name} as {_what(found)}. Whole numbers (N,) that index classes are wanted. {fix}")
    if len(found) != images:
        raise ConfigError(f"data.target: {target} gives {len(found)} {name} for {images} images. Give each image one label.")
    lowest, highest = int(found.min()), int(found.max())
    if lowest < 0 or highest > np.iinfo(np.int64).max:
        raise ConfigError(f"data.target: {target} gives {name} of {lowest}..{highest}. Labels count from 0. Number the classes anew.")
    return found.astype(np.int64)


def _classes(target: str, found: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    """Their names; without any, the numbers that the labels of train have."""
    names = _numbers(target, labels) if found is None else _names(target, found)
    if len(set(names)) != len(names) or len(names) < 2 or "" in names:
        shown = ", ".join(map(repr, names[:12]))
        raise ConfigError(f"data.target: {target} gives the classes {shown}. Two different names at least, none empty, are wanted.")
    return names


def _numbers(target: str, labels: NDArray[np.int64]) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    if count > len(labels):  # before a name is made for each number that a wrong label skips
        raise ConfigError(
            f"data.target: {target} gives train_labels up to {count - 1} for {len(labels)} images. Number the classes 0, 1, 2, ..."
        )
    return tuple(map(str, range(count)))


def _names(target: str, found: Any) -> tuple[str, ...]:
    if isinstance(found, str | bytes | Mapping) or not hasattr(found, "__iter__"):
        raise ConfigError(f"data.target: {target} gives classes as {_what(found)}. A list of names, in the order of the labels, is wanted.")
    names = list(found)
    for name in names:
        if not isinstance(name, str | int | np.integer) or not _is_one_line(str(name)):
            raise ConfigError(
                f"data.target: {target} gives a class the name {repr(name)[:_MOST_TITLE]}. Give it one printable line of text."
            )
    return tuple(map(str, names))


def _refuse_other_classes(target: str, name: str, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    if labels.max() >= len(classes):
        raise ConfigError(
            f"data.target: {target} gives {name} up to {labels.max()} for {len(classes)} classes. "
            "Labels count from 0. Correct them, or name every class."
        )


def _refuse_empty_classes(target: str, labels: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    """A class that nothing trains is mostly a label that counts from 1."""
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        first = int(np.flatnonzero(counts == 0)[0])
        raise ConfigError(
            f"data.target: {target} gives no training image of class {first} ({classes[first]}). "
            "Labels count from 0, and every class needs one image. Correct the labels, or leave the class away."
        )


def _title(target: str, found: Any) -> str:
    if found is None:
        return target
    title = found.item() if isinstance(found, np.ndarray) and found.ndim == 0 else found
    if not isinstance(title, str) or not _is_one_line(title) or not title.strip():
        wanted = f"One printable line of up to {_MOST_TITLE} characters is wanted."
        raise ConfigError(f"data.target: {target} gives the title {str(title)[:_MOST_TITLE]!r}. {wanted}")
    return title.strip()


def _is_one_line(text: str) -> bool:
    return text.isprintable() and len(text) <= _MOST_TITLE


def _what(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(str(key)[:40] for key in list(value)[:8]) or 'nothing'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"an object of type {type(value).__name__}"
