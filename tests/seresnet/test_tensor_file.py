"""Tensors without torch: the same digest as with it, and no file is believed whose tensors do not fill it."""

import json

import pytest
import safetensors.torch
import torch

from seresnet.checkpoint_files import ForeignFileError, Header, metadata
from seresnet.checkpoint_writer import encode
from seresnet.state import TrainState, state_digest
from seresnet.tensor_file import DTYPES, layout, state_digest_of, with_metadata

HEADER = Header(generation=1, step=3)


def every_dtype() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for number, (word, _) in enumerate(DTYPES.values()):
        dtype = getattr(torch, word)
        bits = torch.randint(0, 2, (3, 2, 8), dtype=torch.uint8, generator=generator)
        found[f"model/{number}-é"] = bits.to(dtype) if dtype not in (torch.bool,) else bits.bool()
        found[f"a/zero-dim-{number}"] = torch.ones((), dtype=torch.float32).to(dtype)
        found[f"empty/{number}"] = torch.empty((2, 0, 3), dtype=dtype)
    found["turned"] = torch.randn(4, 6, generator=generator).t()
    return found


def test_the_digest_equals_torchs_for_every_dtype() -> None:
    scalars = {"step": 3, "sums": [0.1, 1e-17, None, 5], "scaler": {"scale": 65536.0}, "best": True, "name": "é"}
    state = TrainState(tensors=every_dtype(), scalars=scalars)
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    payload = safetensors.torch.save(tensors, metadata(HEADER, scalars))
    assert state_digest_of(payload) == state_digest(state)
    assert state_digest_of(payload) == state_digest(TrainState(tensors=safetensors.torch.load(payload), scalars=scalars))


def test_new_metadata_and_names_leave_every_bit_of_the_tensors() -> None:
    tensors = {"net/a": torch.randn(3, 5), "net/b": torch.arange(3, dtype=torch.int64), "c": torch.tensor(2.0).bfloat16()}
    payload = encode(TrainState(tensors=tensors, scalars={"step": 3}), HEADER)
    changed = with_metadata(payload, metadata(HEADER, {"step": 4}), {"net/a": "model/a"})
    loaded = safetensors.torch.load(changed)
    assert sorted(loaded) == ["c", "model/a", "net/b"] and torch.equal(loaded["model/a"], tensors["net/a"])
    expected = TrainState(tensors={"model/a": tensors["net/a"], "net/b": tensors["net/b"], "c": tensors["c"]}, scalars={"step": 4})
    assert state_digest_of(changed) == state_digest(expected)


def text(entries: dict[str, object], data: bytes) -> bytes:
    header = json.dumps({"__metadata__": {}, **entries}).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, b"1234567"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, b"123456789"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, b"12345678"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, b"12345678"),
        ({"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}, b"12345678"),
        ({"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}, b"12345678"),
        ({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}, b"12345678"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0]}, b"12345678"),
        ({"shape": [2], "data_offsets": [0, 8]}, b"12345678"),
        ([], b""),
    ],
)
def test_tensors_that_do_not_fill_the_file_are_refused(entry: object, data: bytes) -> None:
    with pytest.raises(ForeignFileError):
        layout(text({"a": entry}, data))
