"""Small sources for the tests of prepare: images on disk, archives of them, and official CIFAR-10 files as Python 2 wrote them."""

import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def random_image(seed, width=8, height=6):
    """(height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image_folder(folder: Path, splits=("train", "test"), classes=("cat", "dog"), count=3):
    """split/class/N.png; returns {relative name: pixels}."""
    made = {}
    for split in splits:
        for name in classes:
            for number in range(count):
                relative = f"{split}/{name}/{number}.png"
                made[relative] = random_image(len(made))
                (folder / relative).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(made[relative]).save(folder / relative)
    return made


def pack(folder: Path, archive: Path, *, prefix="", reverse=False) -> Path:
    """An archive of the folder's files, of the kind that its name says."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), reverse=reverse)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as target:
            for path in files:
                target.write(path, prefix + path.relative_to(folder).as_posix())
    else:
        mode = {"tar": "w", "gz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}[archive.name.rsplit(".")[-1]]
        with tarfile.open(archive, mode) as target:
            for path in files:
                target.add(path, prefix + path.relative_to(folder).as_posix())
    return archive


def official_folder(folder: Path, per_batch=4):
    """The seven official files; returns {batch: (images (N, 32, 32, 3), labels)}."""
    folder.mkdir(parents=True)
    made = {}
    for seed, batch in enumerate(BATCHES):
        images = np.random.default_rng(seed).integers(0, 256, (per_batch, 32, 32, 3), dtype=np.uint8)
        labels = [(seed + i) % 10 for i in range(per_batch)]
        made[batch] = (images, labels)
        # By hand, not by the inverse of the code under test: row = all red, then all green, then all blue.
        rows = np.stack([np.concatenate([image[:, :, c].ravel() for c in range(3)]) for image in images])
        content = {"batch_label": batch, "labels": labels, "data": rows, "filenames": [f"{i}.png" for i in range(per_batch)]}
        (folder / batch).write_bytes(python2_pickle(content))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"num_cases_per_batch": per_batch, "label_names": names, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return made


def python2_pickle(value) -> bytes:
    """Protocol 2 with byte strings and numpy.core, as in the published files; no Python 3 pickler writes that."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(_python2(item) for item in value) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(item) for key, item in value.items()) + b"u"
    assert isinstance(value, np.ndarray) and value.dtype == np.uint8
    dtype = b"cnumpy\ndtype\n" + _python2("u1") + _python2(0) + _python2(1) + b"\x87R"
    dtype += b"(" + _python2(3) + _python2("|") + b"NNN" + _python2(-1) * 2 + _python2(0) + b"tb"
    shape = b"(" + b"".join(_python2(length) for length in value.shape) + b"t"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + _python2(0) + b"\x85" + _python2("b") + b"\x87R"
    return made + b"(" + _python2(1) + shape + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"


def reference_load(payload: bytes):
    """What Python's own unpickler makes of a harmless pickle."""
    return pickle.loads(payload, encoding="bytes")
