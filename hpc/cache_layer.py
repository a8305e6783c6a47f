"""One file of collect's cache: columns of histories as compact blocks, and behind them an index in JSON that says what they are.

What is kept, and for how long it is right, is hpc.collect_cache's business. One invariant: a file that is torn, of other code or of
somebody else's making is no layer, and a block with a wrong bit is no block.
"""

import contextlib
import hashlib
import json
import os
import secrets
import struct
import tempfile
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc.journal_columns import COLUMNS
from seresnet.durable import parse_json

SUFFIX = ".layer"
_MAGIC = b"hpc.collect 1\n"
#: At the end: where the index begins, its length, its SHA-256.
_FOOTER = struct.Struct("<QQ32s")
#: How the numbers of a column are kept: as the smallest of these that gives back every bit. "c": one number for all epochs.
_KINDS = {"b": "<i1", "h": "<i2", "i": "<i4", "f": "<f4", "d": "<f8"}
_SUM = struct.Struct("<I")


@dataclass(frozen=True)
class Block:
    """Where the columns of one history lie. kinds: a letter a column."""

    offset: int
    epochs: int
    kinds: str

    @property
    def size(self) -> int:
        return sum(_column_size(kind, self.epochs) for kind in self.kinds)


class Blocks:
    """An open file that blocks are read from; it is closed with the last history that needs it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        weakref.finalize(self, os.close, handle)

    def raw(self, block: Block) -> bytes:
        """The bytes of a block, unchecked: to be copied."""
        return os.pread(self._handle, block.size, block.offset)

    def column(self, block: Block, run_id: str, key: str) -> np.ndarray | None:
        """float64, one value an epoch; None where the bytes are not those that were written for this run and column."""
        place = COLUMNS.index(key)
        start = sum(_column_size(kind, block.epochs) for kind in block.kinds[:place])
        try:
            data = os.pread(self._handle, _column_size(block.kinds[place], block.epochs), block.offset + start)
        except OSError:
            return None
        return _decoded(data, block.kinds[place], block.epochs, run_id, key)

    def columns(self, block: Block, run_id: str) -> np.ndarray | None:
        """All of them, (columns, epochs); None where one is not what was written."""
        try:
            data = self.raw(block)
        except OSError:
            return None
        found, start = [], 0
        for key, kind in zip(COLUMNS, block.kinds, strict=True):
            end = start + _column_size(kind, block.epochs)
            column = _decoded(data[start:end], kind, block.epochs, run_id, key)
            if column is None:
                return None
            found.append(column)
            start = end
        return np.stack(found)


def _decoded(data: bytes, kind: str, epochs: int, run_id: str, key: str) -> np.ndarray | None:
    payload, told = data[: -_SUM.size], data[-_SUM.size :]
    if len(data) != _column_size(kind, epochs) or told != _checksum(payload, run_id, key):
        return None
    if kind == "c":
        return np.full(epochs, np.frombuffer(payload, dtype="<f8")[0])
    return np.frombuffer(payload, dtype=_KINDS[kind]).astype(np.float64)


def encoded(values: np.ndarray, run_id: str) -> tuple[bytes, str]:
    """(the bytes of a block, the kinds of its columns) of values (columns, epochs)."""
    parts, kinds = [], ""
    for key, column in zip(COLUMNS, values, strict=True):
        kind, payload = _narrowed(column)
        parts += [payload, _checksum(payload, run_id, key)]
        kinds += kind
    return b"".join(parts), kinds


def _narrowed(column: np.ndarray) -> tuple[str, bytes]:
    bits = column.view(np.int64)
    if len(column) and bits[-1] == bits[0] and (bits == bits[0]).all():
        return "c", column[:1].astype("<f8").tobytes()
    with np.errstate(all="ignore"):  # NaN and too large numbers have no integer: then the bits differ
        for kind in _kinds_of(float(column[0])) if len(column) else ():
            small = column.astype(_KINDS[kind])
            if (small.astype(np.float64).view(np.int64) == bits).all():
                return kind, small.tobytes()
    return "d", column.astype(_KINDS["d"]).tobytes()


def _kinds_of(first: float) -> str:
    """What is worth trying, by the first number: most columns are of floats, and five attempts at each take longer than to parse them."""
    return ("bhi" if first.is_integer() else "") + ("f" if first != first or float(np.float32(first)) == first else "")


def _column_size(kind: str, epochs: int) -> int:
    return (8 if kind == "c" else int(_KINDS[kind][-1]) * epochs) + _SUM.size


def _checksum(payload: bytes, run_id: str, key: str) -> bytes:
    return _SUM.pack(zlib.crc32(payload, zlib.crc32(f"{run_id} {key}".encode())))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A whole layer: its index as it was written, and its blocks."""

    path: Path
    index: Mapping[str, Any]
    blocks: Blocks

    @classmethod
    def open(cls, path: Path) -> "Layer | None":
        """None for a file that is no layer, or cannot be read."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))  # a pipe of that name would never end
        except OSError:
            return None
        blocks = Blocks(handle)
        with contextlib.suppress(OSError, ValueError, struct.error):
            size = os.fstat(handle).st_size
            offset, length, digest = _FOOTER.unpack(os.pread(handle, _FOOTER.size, size - _FOOTER.size))
            if offset + length + _FOOTER.size != size or os.pread(handle, len(_MAGIC), 0) != _MAGIC:
                return None
            text = os.pread(handle, length, offset)
            if hashlib.sha256(text).digest() == digest:
                return cls(path=path, index=parse_json(text), blocks=blocks)
        return None


class LayerWriter:
    """A layer being written: blocks as they come, the index last; only then it gets its name.

    Where the folder cannot be written (or is None), blocks go to a temporary file and no layer comes of it. Raises nothing: after an
    error, such as a full disk, add refuses.
    """

    def __init__(self, folder: Path | None) -> None:
        self._end = 0
        self._temp, self._handle = _create(folder) if folder else (None, -1)
        if self._temp is None:
            self._handle = _create_nameless()
        self.blocks = Blocks(self._handle) if self._handle >= 0 else None
        #: When the file was made, by the clock of its file system.
        self.time_ns = os.fstat(self._handle).st_mtime_ns if self.blocks else 0
        self._write(_MAGIC)

    def add(self, data: bytes, epochs: int, kinds: str) -> Block | None:
        """Append a block; None where it could not be written."""
        block = Block(offset=self._end, epochs=epochs, kinds=kinds)
        return block if self._write(data) else None

    def finish(self, index: Mapping[str, Any], name: str) -> bool:
        """Write the index and give the layer its name; False where that was not possible."""
        text = json.dumps(index, allow_nan=False, separators=(",", ":")).encode()
        footer = _FOOTER.pack(self._end, len(text), hashlib.sha256(text).digest())
        if self._temp is None or not self._write(text + footer):
            return False
        try:
            # No fsync: a layer that a power loss tears is not used.
            os.rename(self._temp, self._temp.with_name(name))
        except OSError:
            return False
        self._temp = None
        return True

    def close(self) -> None:
        """Remove what got no name; what was written stays readable for as long as somebody holds the blocks."""
        if self._temp is not None:
            with contextlib.suppress(OSError):
                self._temp.unlink()

    def _write(self, data: bytes) -> bool:
        if self.blocks is None:
            return False
        try:
            is_written = os.pwrite(self._handle, data, self._end) == len(data)
        except OSError:
            return False
        # What was torn is written over by the next.
        self._end += len(data) if is_written else 0
        return is_written


def _create(folder: Path) -> tuple[Path | None, int]:
    temp = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir()  # not what is above it: a sweep that was moved meanwhile must not come back
        return temp, os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError:
        return None, -1


def _create_nameless() -> int:
    try:
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    except OSError:
        return -1


def layer_paths(folder: Path) -> Sequence[Path]:
    """The files with a layer's name, oldest name first; empty where there is no such folder."""
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX))
    return []
