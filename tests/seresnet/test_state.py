"""The digest against a restatement written from its definition, with struct and no torch code of ours."""

import hashlib
import itertools
import json
import struct

import pytest
import torch
from torch import Tensor

from seresnet.state import TrainState, first_nonfinite, state_digest

PACK = {torch.float32: "f", torch.float64: "d", torch.int64: "q", torch.uint8: "B", torch.bool: "?", torch.float16: "e"}


def restated_digest(tensors: dict[str, Tensor], scalars: dict[str, object]) -> str:
    """Element by element, in Python."""
    text = b""
    for name, tensor in sorted(tensors.items()):
        dtype = str(tensor.dtype).split(".")[1]
        text += json.dumps([name, dtype, list(tensor.shape)], separators=(",", ":")).encode() + b"\n"
        for index in itertools.product(*map(range, tensor.shape)):
            value = tensor[index].item()
            # A bfloat16 is the upper half of the float32 of the same value.
            text += struct.pack("<f", value)[2:] if dtype == "bfloat16" else struct.pack("<" + PACK[tensor.dtype], value)
    text += json.dumps(scalars, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return hashlib.sha256(text).hexdigest()


def example() -> tuple[dict[str, Tensor], dict[str, object]]:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "model/conv.weight": torch.randn(2, 3, 2, 2, generator=generator),
        "model/bn.num_batches_tracked": torch.tensor(7),
        "momentum/half": torch.randn(3, generator=generator).half(),
        "momentum/conv": torch.randn(2, 3, generator=generator).bfloat16(),
        "ema/double": torch.randn(2, 2, generator=generator).double(),
        "mask": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    return tensors, {"step": 12, "sums": [0.1, 3, None], "best": None, "scaler": {"scale": 65536.0}, "name": "é"}


def test_digest_equals_an_independent_restatement() -> None:
    tensors, scalars = example()
    assert state_digest(TrainState(tensors=tensors, scalars=scalars)) == restated_digest(tensors, scalars)


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)])
def test_digest_of_empty_tensors_covers_their_shape(shape: tuple[int, ...]) -> None:
    digests = {state_digest(TrainState(tensors={"a": torch.empty(s)}, scalars={})) for s in ((0,), (2, 0, 3), (5, 0))}
    assert len(digests) == 3
    assert restated_digest({"a": torch.empty(shape)}, {}) in digests


def test_digest_ignores_memory_layout_order_of_names_and_requires_grad() -> None:
    tensors, scalars = example()
    weight = tensors["model/conv.weight"]
    other = dict(reversed(tensors.items()))
    other["model/conv.weight"] = weight.clone().to(memory_format=torch.channels_last).requires_grad_()
    other["momentum/conv"] = tensors["momentum/conv"].t().contiguous().t()
    other["bytes"] = torch.stack([tensors["bytes"], tensors["bytes"]], 1)[:, 0]
    assert not other["momentum/conv"].is_contiguous() and not other["bytes"].is_contiguous()
    reordered = TrainState(tensors=other, scalars=dict(reversed(scalars.items())))
    assert state_digest(reordered) == state_digest(TrainState(tensors=tensors, scalars=scalars))


@pytest.mark.parametrize(
    "change",
    [
        lambda t, s: t.update(bytes=t["bytes"] + (t["bytes"] == 4).to(torch.uint8)),
        lambda t, s: t.update(mask=t["mask"].to(torch.uint8)),
        lambda t, s: t.update(bytes=t["bytes"].reshape(5, 1)),
        lambda t, s: t.update(renamed=t.pop("bytes")),
        lambda t, s: t.update({"model/bn.num_batches_tracked": torch.tensor([7])}),
        lambda t, s: s.update(step=13),
        lambda t, s: s.update(step=12.0),
        lambda t, s: s.update(extra=None),
    ],
)
def test_digest_sees_every_change(change: object) -> None:
    tensors, scalars = example()
    before = state_digest(TrainState(tensors=tensors, scalars=scalars))
    change(tensors, scalars)
    assert state_digest(TrainState(tensors=tensors, scalars=scalars)) != before


def test_digest_tells_negative_zero_from_zero() -> None:
    digests = {state_digest(TrainState(tensors={"a": torch.tensor([value])}, scalars={})) for value in (0.0, -0.0)}
    assert len(digests) == 2


def test_scalars_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        state_digest(TrainState(tensors={}, scalars={"step": 1, "loss": float("nan")}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_first_nonfinite_names_the_tensor(dtype: torch.dtype, value: float) -> None:
    tensors, scalars = example()
    assert first_nonfinite(TrainState(tensors=tensors, scalars=scalars)) is None
    tensors["momentum/z"] = torch.tensor([1.0, value], dtype=dtype)
    assert first_nonfinite(TrainState(tensors=tensors, scalars=scalars)) == "momentum/z"
