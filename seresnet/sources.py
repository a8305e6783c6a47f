"""What a data config points at: digits, a published data set, or a path; and the name of the array file that is made of it.

Building is prepare's job, and what only building needs (pillow, http) is imported by it alone. One invariant: the file's name follows from
what the source is, not from where it is mounted.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from seresnet import cifar10, digits, own_data
from seresnet.archives import FileTree, Report, open_tree
from seresnet.array_file import Header, LabelledImages, read_header
from seresnet.config import DataConfig, DataName
from seresnet.durable import canonical_json
from seresnet.errors import DataError
from seresnet.published import PUBLISHED, Published, PublishedFile, find_official, mirror_variable

#: Part of every fingerprint; raised when the same source gives other arrays than before.
RULE = 1
SUFFIX = ".arrays"
_PROBE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """Something that images can be read from."""

    name: str  # data.name, or own-<target>
    place: str  # where it is, for people and for the header
    fingerprint: str
    reader: Callable[[int, Report], LabelledImages]

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.fingerprint}{SUFFIX}"

    def read(self, *, workers: int, report: Report) -> LabelledImages:
        """Raises DataError."""
        return self.reader(workers, report)


def find_source(config: DataConfig, data_dir: Path) -> Source | None:
    """The source of this config, opened as far as its name needs; None if config.path is missing.

    Raises DataError for settings that contradict each other.
    """
    if config.target is not None:
        return _own_source(config)
    if config.name == "digits":
        if config.path:
            raise DataError(f"data.path: {config.path}, but data.name digits comes with scikit-learn. Unset one of them.")
        return Source(name="digits", place="scikit-learn", fingerprint=_hash("digits"), reader=lambda *_: digits.read_digits())
    if config.path is None:
        if config.name not in PUBLISHED:
            raise DataError("data.path: unset, but data.name images needs it. Set it to a folder or an archive of images.")
        entry = PUBLISHED[config.name]
        return Source(
            name=config.name,
            place=", ".join(entry.url(config.name, file) for file in entry.files),
            fingerprint=_hash(config.name, *(file.md5 for file in entry.files)),
            reader=lambda workers, report: _read_published(config.name, data_dir, workers, report),
        )
    path = Path(config.path).expanduser()
    if not path.exists():
        return None
    return Source(
        name=config.name,
        place=str(path.resolve()),
        fingerprint=path_fingerprint(path),
        reader=lambda workers, report: read_path(path, config.name, workers, report),
    )


def _own_source(config: DataConfig) -> Source | None:
    path = Path(config.path).expanduser() if config.path else None
    if path is not None and not path.exists():
        return None
    content = path_fingerprint(path) if path else None
    return Source(
        name=_name(config),
        place=_place(config),
        fingerprint=_hash("own", *own_data.facts(config), content),
        reader=lambda *_: own_data.read(config),
    )


def _name(config: DataConfig) -> str:
    return config.name if config.target is None else own_data.file_stem(config.target)


def _place(config: DataConfig) -> str:
    return own_data.place(config) if config.target is not None else str(Path(config.path or "").expanduser().resolve())


def missing(config: DataConfig) -> DataError:
    return DataError(f"data.path: {config.path} does not exist, and no array file was made from it. Correct the path.")


def recorded(config: DataConfig, data_dir: Path) -> Path | None:
    """The newest array file whose header says that it was built from config.path."""
    place = _place(config)
    return next((path for path in _files(config, data_dir) if (header := _header(path)) and header.source == place), None)


def with_digest(config: DataConfig, data_dir: Path, digest: str) -> Path | None:
    """The newest array file of this data set with this digest, whatever it was built from."""
    return next((path for path in _files(config, data_dir) if (header := _header(path)) and header.digest == digest), None)


def _files(config: DataConfig, data_dir: Path) -> list[Path]:
    return sorted(data_dir.glob(f"{_name(config)}-*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)


def _header(path: Path) -> Header | None:
    try:
        return read_header(path)
    except DataError:
        return None


def path_fingerprint(path: Path) -> str:
    """12 hex digits that follow the source's content as far as can be told without reading all of it.

    Archives: size, first and last MiB; gz, xz and zip keep the checksums of their whole content in the last. Plain tar keeps none, so
    its time of change counts too. Folders: names and times of change of the folders down to the classes, and of files above them.
    An image that is edited in place is not noticed: delete the array file then.
    """
    try:
        return _hash("folder", *_folder_facts(path)) if path.is_dir() else _archive_fingerprint(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Correct its permissions.") from error


def _archive_fingerprint(path: Path) -> str:
    from seresnet.download import file_md5

    size = path.stat().st_size
    for name, entry in PUBLISHED.items():
        if size == entry.files[0].size and file_md5(path) == entry.files[0].md5:
            return _hash(name, entry.files[0].md5)  # as if downloaded: data.path may be unset later
    with open(path, "rb") as file:
        head = file.read(_PROBE_BYTES)
        file.seek(max(0, size - _PROBE_BYTES))
        tail = file.read(_PROBE_BYTES)
    changed = int(path.stat().st_mtime) if head[257:262] == b"ustar" else None
    return _hash("archive", size, changed, hashlib.sha256(head + tail).hexdigest())


def _folder_facts(folder: Path) -> list[list[Any]]:
    """[name, seconds, size or None] of what stands in the folder and in its splits; splits may lie in one folder more."""
    entries = _visible(folder)
    if len(entries) == 1 and entries[0].is_dir():
        return _folder_facts(Path(entries[0].path))
    facts: list[list[Any]] = []
    for entry in entries:
        facts.append(_facts(entry.name, entry))
        if entry.is_dir():
            facts += [_facts(f"{entry.name}/{below.name}", below) for below in _visible(Path(entry.path))]
    return facts


def _visible(folder: Path) -> "list[os.DirEntry[str]]":
    with os.scandir(folder) as scan:
        return sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _facts(name: str, entry: "os.DirEntry[str]") -> list[Any]:
    try:
        # Whole seconds: copying tools and network file systems do not agree about less.
        return [name, int(entry.stat().st_mtime), None if entry.is_dir() else entry.stat().st_size]
    except OSError:
        return [name, None, None]  # a link to nowhere


def _hash(*facts: object) -> str:
    return hashlib.sha256(canonical_json([RULE, *facts]).encode()).hexdigest()[:12]


def read_path(path: Path, name: str, workers: int, report: Report) -> LabelledImages:
    """Tell what the folder or archive holds, and read it. Raises DataError."""
    from seresnet import images

    tree = open_tree(path)
    names = tree.names(report)
    official = find_official(path, names)
    if official is not None and name in (official[0], "images"):
        return PUBLISHED[official[0]].read(tree, official[1], workers, report)
    if official is not None:
        raise DataError(f"{path}: holds {PUBLISHED[official[0]].title}, and data.name is {name}. Say data.name={official[0]}.")
    if name in PUBLISHED and name != "cifar10":
        raise _no_official_files(path, name, PUBLISHED[name])
    layout = images.plan_layout(path, names)
    if name == "cifar10" and layout.classes != cifar10.CLASSES:
        raise DataError(f"{path}: its classes are {', '.join(layout.classes[:12])}, not those of CIFAR-10. Use data.name=images.")
    data = images.read_images(tree, layout, workers=workers, report=report)
    kinds = data.title.rpartition(" (")[2]
    return replace(data, title=f"CIFAR-10 ({kinds}") if name == "cifar10" else data


def _no_official_files(path: Path, name: str, entry: Published) -> DataError:
    return DataError(
        f"{path}: holds no official files of {entry.title}, and data.name is {name}. Give {entry.wanted} of {entry.base_url}, or a folder "
        "in which that is unpacked; a folder split/class/image is data.name=images."
    )


def _read_published(name: str, data_dir: Path, workers: int, report: Report) -> LabelledImages:
    """Download into data_dir what nobody put there. It stays: a purged array file is then built without a network."""
    entry = PUBLISHED[name]
    for file in entry.files:
        _fetch_once(name, entry, file, data_dir, report)
    if len(entry.files) == 1:
        return read_path(data_dir / entry.files[0].name, name, workers, report)
    return entry.read(open_tree(data_dir), {file.name: file.name for file in entry.files}, workers, report)


def _fetch_once(name: str, entry: Published, file: PublishedFile, data_dir: Path, report: Report) -> None:
    from seresnet.download import fetch, file_md5

    target = data_dir / file.name
    if not target.exists():
        fetch(entry.url(name, file), target, file.md5, report, mirror=mirror_variable(name))
    elif (found := file_md5(target)) != file.md5:
        raise DataError(
            f"{target}: MD5 is {found}, the published one is {file.md5}. "
            "Delete it to download it again, or set data.path to it if it is meant."
        )


def config_for(source: str, name: str | None, data_dir: Path, report: Report) -> DataConfig:
    """The data config that a word or a path on the command line means; without a name, told by the classes. Raises DataError."""
    if source == "digits" or source in PUBLISHED:
        return DataConfig(name=cast(DataName, source))
    for kind in (name,) if name else (*PUBLISHED, "images"):
        config = DataConfig(name=cast(DataName, kind), path=source)
        made = find_source(config, data_dir)
        if name or (made and (data_dir / made.file_name).exists()):
            return config
    return replace(config, name=_guess_name(open_tree(Path(source).expanduser()), report))


def _guess_name(tree: FileTree, report: Report) -> DataName:
    from seresnet import images

    names = tree.names(report)
    if (official := find_official(tree.path, names)) is not None:
        return cast(DataName, official[0])
    return "cifar10" if images.plan_layout(tree.path, names).classes == cifar10.CLASSES else "images"
