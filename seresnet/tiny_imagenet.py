"""Tiny ImageNet (Stanford CS231N; 200 classes, 64 x 64) in its own folder layout; its validation images are the test set here.

train/WNID/images/WNID_0.JPEG    val/images/val_0.JPEG, named by val/val_annotations.txt    test/: without labels, not used
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from seresnet.archives import FileTree, Report
from seresnet.array_file import LabelledImages
from seresnet.errors import DataError

if TYPE_CHECKING:
    from seresnet.images import ImageLayout

BASE_URL = "http://cs231n.stanford.edu"
ARCHIVE = "tiny-imagenet-200.zip"
ARCHIVE_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"  # as torchvision's users have it; the publisher gives none
_ANNOTATIONS = "val/val_annotations.txt"
_SUFFIXES = (".jpeg", ".jpg", ".png")


def official_files(path: Path, names: Sequence[str]) -> dict[str, str] | None:
    """Relative name within the data set -> name in the tree, of annotations and images; None if there are no annotations."""
    root = next((name.removesuffix(_ANNOTATIONS) for name in names if name == _ANNOTATIONS or name.endswith(f"/{_ANNOTATIONS}")), None)
    if root is None:
        return None
    inside = {name.removeprefix(root): name for name in names if name.startswith(root)}
    files = {name: full for name, full in inside.items() if _is_needed(PurePosixPath(name))}
    if not any(name.startswith("train/") for name in files):
        raise DataError(f"{path}: has {_ANNOTATIONS} but no train/CLASS/images/. Unpack {ARCHIVE} again.")
    return files


def read_official(tree: FileTree, files: Mapping[str, str], workers: int, report: Report) -> LabelledImages:
    """Classes are the WordNet ids, in their order. Raises DataError, naming the file."""
    from seresnet.images import read_images  # pillow: a rank whose array is there does not need it

    annotations = next((load() for _, load in tree.read([files[_ANNOTATIONS]])), b"")
    layout = _layout(tree.path, files, annotations.decode("utf-8", "replace"))
    data = read_images(tree, layout, workers=workers, report=report)
    return LabelledImages(
        title="Tiny ImageNet",
        classes=data.classes,
        train_images=data.train_images,
        train_labels=data.train_labels,
        test_images=data.test_images,
        test_labels=data.test_labels,
    )


def _is_needed(name: PurePosixPath) -> bool:
    if str(name) == _ANNOTATIONS:
        return True
    is_image = name.suffix.lower() in _SUFFIXES and name.parent.name == "images"
    return is_image and name.parts[0] in ("train", "val")


def _layout(path: Path, files: Mapping[str, str], annotations: str) -> "ImageLayout":
    from seresnet.images import ImageLayout

    train = {name: name.split("/")[1] for name in files if name.startswith("train/")}
    classes = tuple(sorted(set(train.values())))
    numbers = {name: number for number, name in enumerate(classes)}
    test = _annotated(path, files, annotations, numbers)
    by_class = sorted(train, key=lambda name: (numbers[train[name]], name))
    tested = sorted(test, key=lambda name: (test[name], name))
    return ImageLayout(
        classes=classes,
        train=tuple(files[name] for name in by_class),
        train_labels=tuple(numbers[train[name]] for name in by_class),
        test=tuple(files[name] for name in tested),
        test_labels=tuple(test[name] for name in tested),
    )


def _annotated(path: Path, files: Mapping[str, str], annotations: str, numbers: Mapping[str, int]) -> dict[str, int]:
    """Image of val/ -> label. Every image has a line and every line an image."""
    labels: dict[str, int] = {}
    for number, line in enumerate(annotations.splitlines(), start=1):
        image, _, rest = line.partition("\t")
        label, name = rest.partition("\t")[0], f"val/images/{image}"
        if label not in numbers or name not in files:
            what = f"class {label!r} is not in train/" if name in files else f"{name} is not there"
            raise DataError(f"{path}: {_ANNOTATIONS}:{number}: {what}. Unpack {ARCHIVE} again.")
        labels[name] = numbers[label]
    if left := sorted(name for name in files if name.startswith("val/images/") and name not in labels):
        raise DataError(f"{path}: {left[0]} has no line in {_ANNOTATIONS}. Unpack {ARCHIVE} again.")
    if not labels:
        raise DataError(f"{path}: {_ANNOTATIONS} names no image. Unpack {ARCHIVE} again.")
    return labels
