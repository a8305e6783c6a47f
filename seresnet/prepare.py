"""Turns a data set's source into one array file in data_dir, once: official CIFAR-10, a folder or archive of images, or digits.

    python -m seresnet.prepare digits --data-dir DIR
    python -m seresnet.prepare data.tar.xz --data-dir DIR

Reading the sources is the job of cifar10, images and digits, the file's format that of array_file. One invariant: a file under its
final name is whole; it is built in a folder of its own, fsynced, verified and renamed, by one process at a time.
"""

import argparse
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seresnet.command import run_command
from seresnet.config import DataConfig
from seresnet.errors import DataError, ToolkitError

if TYPE_CHECKING:
    from seresnet.archives import Report
    from seresnet.array_file import Arrays as Arrays
    from seresnet.array_file import load_arrays as load_arrays
    from seresnet.sources import Source
else:

    def __getattr__(name: str) -> Any:
        # numpy and pillow take 0.3 s to import, and --help must take less: what needs them is imported where it is used.
        if name in ("Arrays", "load_arrays"):
            from seresnet import array_file

            return getattr(array_file, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


log = logging.getLogger(__name__)


def data_dir(config: DataConfig, environ: Mapping[str, str]) -> Path:
    """Where prepared arrays are kept: data.dir, else $HPC_DATA_DIR, else ./data. Nothing is created.

    Raises DataError where ./data would lie in HOME on a cluster: quotas there are small, and jobs write nothing under HOME.
    """
    if config.dir or environ.get("HPC_DATA_DIR"):
        return Path(config.dir or environ["HPC_DATA_DIR"]).expanduser()
    folder, home = Path("data"), environ.get("HOME")
    on_cluster = "SLURM_JOB_ID" in environ or shutil.which("sbatch", path=environ.get("PATH"))
    if home and on_cluster and folder.resolve().is_relative_to(Path(home).resolve()):
        raise DataError(
            f"data.dir: unset, and {folder.resolve()} lies in HOME, which is small on a cluster. "
            "Set data.dir or HPC_DATA_DIR to a folder on scratch, or to that one if it is meant."
        )
    return folder


def find_prepared(config: DataConfig, data_dir: Path) -> Path | None:
    """The array file of this config, if data_dir has it. Its header is verified when it is opened, not here.

    A source that is gone (purged, on another node) is no obstacle: then the file that was built from that path is taken.
    """
    from seresnet.sources import find_source, recorded

    source = find_source(config, data_dir)
    if source is None:
        return recorded(config, data_dir)
    target = data_dir / source.file_name
    return target if target.exists() else None


def find_with_digest(config: DataConfig, data_dir: Path, digest: str) -> Path | None:
    """The array file with this digest that somebody's own code made before, whatever that code says now; None for data sets of ours."""
    from seresnet.sources import with_digest

    return with_digest(config, data_dir, digest) if config.target is not None else None


def prepare(config: DataConfig, data_dir: Path, *, workers: int | None = None, progress: "Report | None" = None) -> Path:
    """The verified array file of this config; built if it is missing, set aside and built again if it is damaged.

    Any number of processes may call this at once: one builds, the others wait. Writes only to data_dir. Raises DataError naming
    the path and the fix.
    """
    from seresnet.sources import find_source, missing, recorded

    source = find_source(config, data_dir)
    if source is None:
        found = recorded(config, data_dir)
        if found is None or not _is_whole(found):
            raise missing(config)
        return found
    target = data_dir / source.file_name
    if not _is_whole(target):
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            _build_once(source, target, workers, progress)
        except OSError as error:
            raise DataError(f"{data_dir}: cannot be written: {error.strerror or error}. Set data.dir to another folder.") from error
    return target


def _build_once(source: "Source", target: Path, workers: int | None, progress: "Report | None") -> None:
    from seresnet.build_lock import sole_builder

    with sole_builder(target, lambda: _is_whole(target)) as temp:
        if temp is None:
            return
        if target.exists():
            log.warning("damaged array file set aside file=%s", target)
            os.replace(target, target.with_name(target.name + ".bad"))
        started = time.monotonic()
        digest = _build(source, target, temp, workers, progress)
        log.info("prepared data=%s file=%s digest=%s seconds=%.1f", source.name, target, digest[:16], time.monotonic() - started)


def _build(source: "Source", target: Path, temp: Path, workers: int | None, progress: "Report | None") -> str:
    """Read the source, write to temp, verify, rename to target. Returns the digest."""
    from seresnet.array_file import load_arrays, write_array_file
    from seresnet.data_progress import silent
    from seresnet.durable import fsync_folder
    from seresnet.images import cpu_count

    draft = temp / target.name
    # In one expression, so that the images are free before the file is read back: a login node has 2 GB.
    digest = write_array_file(
        draft,
        name=source.name,
        source=source.place,
        data=source.read(workers=workers or cpu_count(), report=progress or silent),
    )
    load_arrays(draft, expect_digest=digest)
    os.replace(draft, target)
    fsync_folder(target.parent)
    return digest


def _is_whole(path: Path) -> bool:
    from seresnet.array_file import load_arrays

    if not path.exists():
        return False
    try:
        load_arrays(path)
    except DataError as error:
        log.warning("array file cannot be used: %s", error)
        return False
    return True


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m seresnet.prepare",
        description="Turn a data set into one array file with a digest. Safe to run twice, and by two jobs at once.",
    )
    result.add_argument(
        "source",
        help="digits | cifar10, cifar100, svhn, tiny_imagenet (downloaded) | a file or folder: the published files, or images as "
        "train/CLASS/FILE and test/CLASS/FILE",
    )
    result.add_argument(
        "--name",
        metavar="NAME",
        choices=("cifar10", "cifar100", "svhn", "tiny_imagenet", "images"),
        help="data.name of the runs that will use it: cifar10, cifar100, svhn, tiny_imagenet or images (default: by the classes)",
    )
    result.add_argument("--data-dir", type=Path, help="where the array file goes (default: $HPC_DATA_DIR, else ./data)")
    result.add_argument("--workers", type=int, help="threads that decode (default: one for each CPU)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare one source and print what was made. Returns the exit code: 0, or 2 for what the user can mend."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _run(arguments)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    from seresnet.data_progress import shown
    from seresnet.sources import config_for

    folder = arguments.data_dir or data_dir(DataConfig(), os.environ)
    started = time.monotonic()
    with shown() as report:
        config = config_for(arguments.source, arguments.name, folder, report)
        path = prepare(config, folder, workers=arguments.workers, progress=report)
    print(summary(path, config, time.monotonic() - started))


def summary(path: Path, config: DataConfig, seconds: float) -> str:
    """What was made, for people."""
    from seresnet.array_file import load_arrays

    arrays = load_arrays(path)
    height, width = arrays.train_images.shape[1:3]
    names = ", ".join(arrays.classes[:10]) + (", ..." if len(arrays.classes) > 10 else "")
    use = f"data.name={config.name}" + (f" data.path={config.path}" if config.path else "")
    rows = {
        "file": str(path),
        "data": arrays.title,
        "images": f"{len(arrays.train_images):,} train, {len(arrays.test_images):,} test, {width}x{height}",
        "classes": f"{len(arrays.classes)}: {names}",
        "mean": " ".join(f"{value:.4f}" for value in arrays.mean),
        "std": " ".join(f"{value:.4f}" for value in arrays.std),
        "size": f"{path.stat().st_size / 1e6:.1f} MB",
        "digest": arrays.digest,
        "seconds": f"{seconds:.1f}",
        "use": use,
    }
    return "\n".join(f"{key:<8} {value}" for key, value in rows.items())


if __name__ == "__main__":
    run_command(main)
