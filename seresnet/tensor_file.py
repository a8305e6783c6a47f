"""The tensors of a checkpoint file without torch: whether they lie where its header says, and the digest of the state they make.

Whether the bytes are the right ones is checkpoint_files' business. One invariant: state_digest_of(file) equals state.state_digest of what
torch would load from it (a test compares them for every dtype that both know).
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from seresnet.checkpoint_files import METADATA_KEY, ForeignFileError
from seresnet.durable import canonical_json, parse_json

#: The words of a safetensors header -> torch's words and bytes an element.
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
}


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """One tensor of a file: what it is, and where its bytes begin and end, counted from the file's first byte."""

    dtype: str  # torch's word
    shape: tuple[int, ...]
    start: int
    end: int


def layout(payload: bytes) -> dict[str, TensorPlace]:
    """Where each tensor lies. Raises ForeignFileError unless they fill the file after its header, each once, without a gap."""
    size = int.from_bytes(payload[:8], "little")
    try:
        header = parse_json(payload[8 : 8 + size])
        header.pop("__metadata__", None)
        places = {name: _place(name, entry, 8 + size) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ForeignFileError(f"its header cannot be read: {error!r}") from error
    end = 8 + size
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start != end:
            raise ForeignFileError(f"tensor {name} begins at byte {place.start}, not at {end}")
        end = place.end
    if end != len(payload):
        raise ForeignFileError(f"the tensors end at byte {end}, the file at {len(payload)}")
    return places


def state_digest_of(payload: bytes) -> str:
    """state.state_digest of the state in a whole file, 64 hex digits; names as the file has them. Raises ForeignFileError."""
    places = layout(payload)
    size = int.from_bytes(payload[:8], "little")
    try:
        scalars = parse_json(parse_json(payload[8 : 8 + size])["__metadata__"][METADATA_KEY])["scalars"]
    except (ValueError, KeyError, TypeError) as error:
        raise ForeignFileError(f"it has no scalars: {error!r}") from error
    digest, view = hashlib.sha256(), memoryview(payload)
    for name in sorted(places):
        place = places[name]
        digest.update((canonical_json([name, place.dtype, list(place.shape)]) + "\n").encode())
        digest.update(view[place.start : place.end])  # safetensors is row-major and little-endian, as the digest is
    digest.update((canonical_json(scalars) + "\n").encode())
    return digest.hexdigest()


def with_metadata(payload: bytes, metadata: Mapping[str, str], renamed: Mapping[str, str]) -> bytes:
    """A file with the same tensors, under new names where there are some, and other metadata. payload: a file that layout() accepts."""
    size = int.from_bytes(payload[:8], "little")
    header = parse_json(payload[8 : 8 + size])
    header.pop("__metadata__", None)
    # Sorted by place: some readers go through the header in its order.
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return _header_bytes({"__metadata__": metadata, **{renamed.get(name, name): entry for name, entry in ordered}}) + payload[8 + size :]


def with_tensors(payload: bytes, sources: Mapping[str, str]) -> bytes:
    """A file with the same metadata and these tensors: new name -> whose bytes it has. payload: a file that layout() accepts."""
    size = int.from_bytes(payload[:8], "little")
    header = parse_json(payload[8 : 8 + size])
    entries, parts, end = {"__metadata__": header["__metadata__"]}, [], 0
    # The library's order: wide types first, so that every tensor begins at a multiple of its elements' size.
    for name in sorted(sources, key=lambda name: (-DTYPES[header[sources[name]]["dtype"]][1], name)):
        entry = header[sources[name]]
        first, last = entry["data_offsets"]
        parts.append(payload[8 + size + first : 8 + size + last])
        entries[name] = {**entry, "data_offsets": [end, end + last - first]}
        end += last - first
    return b"".join([_header_bytes(entries), *parts])


def _header_bytes(entries: Mapping[str, object]) -> bytes:
    text = json.dumps(entries, separators=(",", ":"))
    text += " " * (-len(text) % 8)  # json.dumps writes ASCII; tensors begin at multiples of 8, as the library lays them out
    return len(text).to_bytes(8, "little") + text.encode()


def _place(name: str, entry: dict[str, object], first: int) -> TensorPlace:
    dtype, size = DTYPES[str(entry["dtype"])]
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets):
        raise ValueError(f"shape or offsets of {name} are no whole numbers")
    assert isinstance(shape, list) and isinstance(offsets, list)
    start, end = offsets
    if end - start != math.prod(shape) * size:
        raise ValueError(f"tensor {name} has {end - start} bytes, {dtype} {shape} has {math.prod(shape) * size}")
    return TensorPlace(dtype=dtype, shape=tuple(shape), start=first + start, end=first + end)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
