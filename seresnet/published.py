"""The data sets that are published as files of their own: where, under which checksums, and who reads them.

Fetching is download's job, naming the array file is sources'. One invariant: statistics are never written here, they are computed from
the pixels (array_file).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from seresnet import cifar10, cifar100, svhn, tiny_imagenet
from seresnet.archives import FileTree, Report
from seresnet.array_file import LabelledImages
from seresnet.errors import DataError

#: (path, names of all files in it) -> role -> name of the official files there; None if there are none. Raises DataError if some lack.
Finder = Callable[[Path, Sequence[str]], dict[str, str] | None]
#: (tree, role -> name, threads, report) -> the arrays.
Reader = Callable[[FileTree, Mapping[str, str], int, Report], LabelledImages]


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One file to download; the MD5 is the publisher's, or torchvision's where the publisher gives none."""

    name: str
    md5: str
    size: int | None = None  # bytes; None: not told


@dataclass(frozen=True, kw_only=True)
class Published:
    """One data set. A single file is an archive of the official files; several are those files."""

    title: str
    base_url: str
    files: tuple[PublishedFile, ...]
    find: Finder
    read: Reader

    def url(self, name: str, file: PublishedFile) -> str:
        """The file's address; HPC_<NAME>_URL names a mirror's folder. name: data.name."""
        return f"{os.environ.get(mirror_variable(name)) or self.base_url}".rstrip("/") + f"/{file.name}"

    @property
    def wanted(self) -> str:
        return ", ".join(file.name for file in self.files)


def mirror_variable(name: str) -> str:
    """The environment variable that names a mirror of this data set."""
    return f"HPC_{name.upper()}_URL"


PUBLISHED: Mapping[str, Published] = {
    "cifar10": Published(
        title="CIFAR-10",
        base_url=cifar10.BASE_URL,
        files=(PublishedFile(name=cifar10.ARCHIVE, md5=cifar10.ARCHIVE_MD5, size=cifar10.ARCHIVE_BYTES),),
        find=cifar10.official_files,
        read=lambda tree, files, workers, report: cifar10.read_official(tree, files, report),
    ),
    "cifar100": Published(
        title="CIFAR-100",
        base_url=cifar10.BASE_URL,
        files=(PublishedFile(name=cifar100.ARCHIVE, md5=cifar100.ARCHIVE_MD5, size=cifar100.ARCHIVE_BYTES),),
        find=cifar100.official_files,
        read=lambda tree, files, workers, report: cifar100.read_official(tree, files, report),
    ),
    "svhn": Published(
        title="SVHN",
        base_url=svhn.BASE_URL,
        files=tuple(PublishedFile(name=name, md5=md5) for name, md5 in svhn.FILES.items()),
        find=svhn.official_files,
        read=lambda tree, files, workers, report: svhn.read_official(tree, files, report),
    ),
    "tiny_imagenet": Published(
        title="Tiny ImageNet",
        base_url=tiny_imagenet.BASE_URL,
        files=(PublishedFile(name=tiny_imagenet.ARCHIVE, md5=tiny_imagenet.ARCHIVE_MD5),),
        find=tiny_imagenet.official_files,
        read=tiny_imagenet.read_official,
    ),
}


def find_official(path: Path, names: Sequence[str]) -> tuple[str, dict[str, str]] | None:
    """(data.name, role -> file) of the data set whose official files these are; None if they are nobody's.

    Raises DataError where a set is begun and not whole, unless another one is whole.
    """
    incomplete: DataError | None = None
    for name, entry in PUBLISHED.items():
        try:
            if files := entry.find(path, names):
                return name, files
        except DataError as error:
            incomplete = incomplete or error
    if incomplete is not None:
        raise incomplete
    return None
