"""Files and names made to do harm: each form is refused or harmless, nothing in it runs, and nothing outside of its folder changes.

A payload, were it run, would make the arena's canary; a name, were it followed, would change the tree around the arena's inside.
"""

import gzip
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import malicious_names  # noqa: F401 - its forms
import numpy as np
import pytest
from arena import FORMS, Arena, Payload, environment, form, look_at, make_sweep
from PIL import Image

from hpc.worker import Worker, _remove_stale_results
from seresnet.archives import open_tree
from seresnet.array_file import MAGIC, load_arrays
from seresnet.checkpoint_files import METADATA_KEY, digest_of, read_newest_trusted
from seresnet.checkpoint_writer import recover
from seresnet.config import DataConfig
from seresnet.prepare import prepare
from seresnet.run_folder import CheckpointName, RunFolder
from seresnet.safe_pickle import load_plain

#: A form that asks for more than this is a bomb that went off.
MEMORY = 1 << 30

# --- pickles ---


def _pickles(arena: Arena) -> Iterator[bytes]:
    touch = f"open({str(arena.canary)!r}, 'w')"
    command = f"touch {arena.canary}"
    text = pickle.dumps(command, 4)[2:-1]
    for function, argument in ((os.system, command), (eval, touch), (exec, touch), (subprocess.Popen, ["touch", str(arena.canary)])):
        for value in (
            Payload(function, (argument,)),
            {"data": [Payload(function, (argument,))]},
            (1, {b"x": Payload(function, (argument,))}),
        ):
            yield from (pickle.dumps(value, protocol) for protocol in (0, 2, 5))
    yield b"cposix\nsystem\n(" + text + b"tR."  # GLOBAL
    yield b"\x80\x04\x8c\x05posix\x8c\x06system\x93(" + text + b"tR."  # STACK_GLOBAL
    yield b"\x80\x04\x8c\x08builtins\x8c\x0fgetattr.__call__\x93(" + text + b"tR."
    yield b"(" + text + b"iposix\nsystem\n."  # INST
    yield b"(cposix\nsystem\n" + text + b"o."  # OBJ
    yield b"\x80\x04cposix\nsystem\n" + text + b"\x85\x81."  # NEWOBJ
    yield b"\x80\x04cposix\nsystem\n" + text + b"\x85}\x92."  # NEWOBJ_EX
    yield b"P" + command.encode() + b"\n."  # persistent ids
    yield b"\x80\x04" + text + b"Q."
    yield b"\x80\x02\x82\x01."  # the extension registry
    yield b"\x80\x02cnumpy\nndarray\nq\x00N}\x8c\x07__init__cposix\nsystem\ns\x86b."  # BUILD on what is allowed
    yield b"\x80\x02cnumpy\ndtype\nq\x00" + text + b"\x85R}\x8c\x0c__setstate__h\x00sb."
    yield b"\x80\x02}r\xff\xff\xff\x7f."  # a memo of 2^31 places
    yield b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"."  # a frame of 2^60 bytes
    yield b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"."  # bytes of 2^60 bytes
    yield b"(" * 200_000 + b"."
    yield np.array([Payload(*arena.call)], dtype=object).dumps()


@form
def pickles_in_official_batches(arena: Arena) -> None:
    for payload in _pickles(arena):
        arena.refused(lambda payload=payload: load_plain(payload, "data_batch_1"), "Nothing in it was run")
    folder = arena.inside / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta"):
        (folder / name).write_bytes(arena.pickle())
    arena.refused(lambda: prepare(DataConfig(name="cifar10", path=str(folder)), arena.inside / "data"), "Nothing in it was run")


def _checkpoint(arena: Arena, payload: bytes) -> RunFolder:
    """A run whose only checkpoint has the right name for these bytes."""
    folder = RunFolder(path=arena.inside / "run")
    folder.create()
    for path in folder.checkpoints.glob("*.safetensors"):
        path.unlink()
    (folder.checkpoints / str(CheckpointName(generation=1, step=5, digest=digest_of(payload)))).write_bytes(payload)
    return folder


def _refuse_checkpoint(arena: Arena, payload: bytes) -> None:
    folder = _checkpoint(arena, payload)
    arena.refused(lambda: read_newest_trusted(folder) and recover(folder, None))
    arena.refused(lambda: recover(folder, None))


@form
def pickles_as_checkpoints(arena: Arena) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:  # as torch.save writes it
        archive.writestr("archive/data.pkl", arena.pickle())
        archive.writestr("archive/version", "3")
    for payload in (arena.pickle(), zipped.getvalue()):
        _refuse_checkpoint(arena, payload)


def _safetensors(tensors: dict[str, Any], body: bytes = b"") -> bytes:
    header = {"generation": 1, "step": 5, "epoch_boundary": False, "best": False, "final": False, "stop": False, "best_so_far": None}
    entry = json.dumps({"schema": 1, "header": header, "scalars": {}})
    text = json.dumps({"__metadata__": {METADATA_KEY: entry}, **tensors}).encode()
    return struct.pack("<Q", len(text)) + text + body


@form
def checkpoints_with_lying_headers(arena: Arena) -> None:
    def entry(start: int, end: int, shape: list[int] | None = None) -> dict[str, Any]:
        return {"dtype": "F32", "shape": shape or [2], "data_offsets": [start, end]}

    for payload in (
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", (1 << 64) - 1) + b"{}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        _safetensors({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),  # overlapping
        _safetensors({"a": entry(0, 8), "b": entry(0, 8)}, b"\0" * 8),
        _safetensors({"a": entry(8, 16)}, b"\0" * 8),  # past the end
        _safetensors({"a": entry(-8, 0)}, b"\0" * 8),
        _safetensors({"a": entry(0, 8, [1 << 40])}, b"\0" * 8),
        _safetensors({"a": entry(0, 8, [-1])}, b"\0" * 8),
    ):
        _refuse_checkpoint(arena, payload)


@form
def checkpoints_that_are_links_out_of_the_folder(arena: Arena) -> None:
    outside = arena.inside.parent / "precious.txt"
    folder = _checkpoint(arena, b"x")
    (link,) = folder.checkpoints.glob("*.safetensors")
    link.unlink()
    link.symlink_to(outside)
    arena.refused(lambda: recover(folder, None))
    assert outside.read_text() == "precious"


@form
def pickles_where_submitit_keeps_its_own(arena: Arena) -> None:
    """Planted results and submissions: nobody but the job itself unpickles, and that only what it was submitted with."""
    sweep = make_sweep(arena)
    sweep.logs.mkdir()
    for name in ("101_0_0_result.pkl", "101_0_submitted.pkl", "101_0_result.pkl", ".x-0.pkl"):
        (sweep.logs / name).write_bytes(arena.pickle())
        (sweep.path / "run" / name).write_bytes(arena.pickle())
    look_at(sweep)
    with environment(SUBMITIT_FOLDER=str(sweep.logs), SLURM_ARRAY_JOB_ID="101", SLURM_ARRAY_TASK_ID="0"):
        _remove_stale_results()
    assert not (sweep.logs / "101_0_0_result.pkl").exists(), "a stale result stays"
    worker = pickle.dumps(Worker("x"))
    assert b"posix" not in worker and len(worker) < 200, "the worker's pickle is a name and a path"


# --- array files ---


def _array_file(header: bytes, body: bytes = b"") -> bytes:
    import hashlib

    return f"{MAGIC} {len(header):08d} {hashlib.sha256(header).hexdigest()}\n".encode() + header + body


@form
def array_files_that_lie(arena: Arena) -> None:
    def entries(**shapes: list[int]) -> bytes:
        dtypes = {"classes": "|u1", "mean": "<f8", "std": "<f8", "train_images": "|u1", "test_images": "|u1"}
        names = ("classes", "mean", "std", "test_images", "test_labels", "train_images", "train_labels")
        told = [{"name": name, "dtype": dtypes.get(name, "<i8"), "shape": shapes.get(name, [0])} for name in names]
        return json.dumps({"name": "x", "title": "x", "source": "x", "digest": "0" * 64, "entries": told}).encode()

    objects, packed = io.BytesIO(), io.BytesIO()
    np.save(objects, np.array([Payload(*arena.call)], dtype=object), allow_pickle=True)
    np.savez(packed, data=np.array([Payload(*arena.call)], dtype=object))
    whole = entries()
    for payload in (
        arena.pickle(),
        objects.getvalue(),
        packed.getvalue(),
        _array_file(whole).replace(b"000000", b"111111", 1),
        _array_file(whole[:-1] + b" ").replace(b" ", b"\0", 1),
        _array_file(entries(train_images=[1 << 40, 32, 32, 3])),
        _array_file(entries(train_images=[1 << 62, 1 << 62])),
        _array_file(entries(train_images=[-1, 32, 32, 3])),
        _array_file(entries(classes=[0], mean=[-3])),
        _array_file(b"[" * 100_000),
        _array_file(b'{"entries": [{"name": "' + b"x" * 1000 + b'"}]}'),
    ):
        path = arena.inside / "digits-x.array"
        path.write_bytes(payload)
        arena.refused(lambda path=path: load_arrays(path), "array file")


# --- archives ---


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def _tar(arena: Arena, *members: tuple[str, bytes, dict[str, Any]]) -> Path:
    path = arena.inside / "images.tar"
    with tarfile.open(path, "w") as archive:
        for name, payload, facts in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            for key, value in facts.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(payload))
    return path


GOOD = ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png")


@form
def tars_that_point_outside(arena: Arena) -> None:
    out, png = str(arena.inside.parent), _png()
    bad: list[tuple[str, bytes, dict[str, Any]]] = [
        (f"{out}/planted.png", png, {}),
        ("../planted.png", png, {}),
        ("train/cat/../../../planted.png", png, {}),
        ("train/cat/link.png", b"", {"type": tarfile.SYMTYPE, "linkname": f"{out}/precious.txt"}),
        ("train/cat", b"", {"type": tarfile.SYMTYPE, "linkname": out}),
        ("train/cat/hard.png", b"", {"type": tarfile.LNKTYPE, "linkname": f"{out}/precious.txt"}),
        ("train/cat/device.png", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}),
        ("train/cat/fifo.png", b"", {"type": tarfile.FIFOTYPE}),
        ("train/cat/setuid.png", png, {"mode": 0o6777}),
    ]
    path = _tar(arena, *bad, *((name, png, {}) for name in GOOD))
    names = open_tree(path).names(lambda *_: None)
    assert set(names) == {*GOOD, "train/cat/setuid.png"}, names
    made = prepare(DataConfig(name="images", path=str(path)), arena.inside / "data")
    assert made.stat().st_mode & 0o7111 == 0 and len(load_arrays(made).train_images) == 3


@form
def zips_that_point_outside(arena: Arena) -> None:
    path, png = arena.inside / "images.zip", _png()
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../planted.png", f"{arena.inside.parent}/planted.png", "train/cat/../../../planted.png", *GOOD):
            archive.writestr(name, png)
        link = zipfile.ZipInfo("train/cat/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(arena.inside.parent / "precious.txt"))
    assert set(open_tree(path).names(lambda *_: None)) == {*GOOD}
    assert len(load_arrays(prepare(DataConfig(name="images", path=str(path)), arena.inside / "data")).train_images) == 2


@form
def archives_that_unfold_to_fill_the_machine(arena: Arena) -> None:
    zeros = arena.inside / "bomb.zip"
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("train/cat/1.png", "w", force_zip64=True) as file:
            for _ in range(300):
                file.write(b"\0" * (1 << 20))
        for name in GOOD[1:]:
            archive.writestr(name, _png())
    lying = arena.inside / "lying.zip"
    lying.write_bytes(zeros.read_bytes().replace(struct.pack("<I", 300 << 20), struct.pack("<I", 100)))
    squeezed = arena.inside / "bomb.tar.gz"
    info = tarfile.TarInfo("train/cat/1.png")
    info.size = 1 << 40
    with gzip.open(squeezed, "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    longname = tarfile.TarInfo("././@LongLink")
    longname.type, longname.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    named = arena.inside / "names.tar"
    named.write_bytes(longname.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    huge = arena.inside / "huge"
    for name in GOOD:
        (huge / name).parent.mkdir(parents=True)
        head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 1 << 30, 1 << 30, 8, 2, 0, 0, 0)
        (huge / name).write_bytes(head + b"\0" * 100)
    for path in (zeros, lying, squeezed, named, huge):
        arena.refused(lambda path=path: prepare(DataConfig(name="images", path=str(path)), arena.inside / "data"))


def _tree(folder: Path, but: Path) -> dict[str, Any]:
    found = [path for path in sorted(folder.rglob("*")) if path != but and but not in path.parents]
    return {str(path): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns) for path in found if path != folder}


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """A bomb ends in a MemoryError here, and not with this machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform.startswith("linux"):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def attacked(attack: Callable[[Arena], None], root: Path) -> str | None:
    """What went wrong, None if nothing did."""
    (root / "work").mkdir(parents=True)
    (root / "precious.txt").write_text("precious")
    (root / "work/precious.txt").write_text("precious")
    arena = Arena(inside=root / "work" / "inside", canary=root / "work" / "canary")
    arena.inside.mkdir()
    before = _tree(root, arena.inside)
    try:
        with _bounded_memory():
            attack(arena)
    except Exception as error:
        return f"{attack.__name__}: {type(error).__name__}: {str(error)[:600]}"
    changed = {name for name, facts in {**before, **_tree(root, arena.inside)}.items() if before.get(name) != facts}
    changed -= {str(root / "work")}
    return f"{attack.__name__}: outside changed: {sorted(changed)}" if changed else None


def test_malicious_files_and_names_are_refused(tmp_path: Path, report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HPC_DATA_DIR", str(tmp_path / "data-dir"))
    faults = [attacked(attack, tmp_path / name) for name, attack in FORMS.items()]
    assert [fault for fault in faults if fault] == []
    assert len(FORMS) >= 15
    report("malicious pickles, archives, YAML names", f"{len(FORMS)} forms", "refused, nothing executed, nothing written outside")


def test_the_payload_is_armed(tmp_path: Path) -> None:
    arena = Arena(inside=tmp_path, canary=tmp_path / "canary")
    for payload in (arena.pickle(), next(_pickles(arena))):
        pickle.loads(payload)
        assert arena.canary.exists()
        arena.canary.unlink()
