"""What an epoch cost: seconds by what they were spent on, arithmetic done, its share of what the device can do, memory.

When an epoch begins and ends is recipe.py's business. Two invariants: only the host's clocks are read, so no step waits for a number;
and nothing that is measured changes a bit of the training.
"""

import contextlib
import functools
import logging
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from seresnet.config import ModelConfig
from seresnet.engine import AMP_DTYPES, Engine
from seresnet.journal import EpochRecord
from seresnet.models import build_model
from seresnet.targets import own_draws
from seresnet.world import World

log = logging.getLogger("seresnet")

#: A multiply-add is two operations; the backward pass repeats the forward one's twice, for the inputs and for the weights.
FLOP_PER_MULTIPLY_ADD = 2 * 3
#: So long the matmul is repeated; the fastest counts.
_MATMUL_S = 0.05
_CUDA_REPEATS = 10


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The numbers of an epoch that clocks and machines decide; fields as in EpochRecord, which says what each means."""

    seconds: float
    images_per_s: float | None = None
    train_seconds: float | None = None
    eval_seconds: float | None = None
    data_wait_s: float | None = None
    checkpoint_stall_s: float | None = None
    tflops: float | None = None
    matmul_share_pct: float | None = None
    memory_peak_mib: float | None = None

    @classmethod
    def of(cls, record: EpochRecord) -> "Timing":
        return cls(**{key.name: getattr(record, key.name) for key in fields(cls)})


class EpochClock:
    """Host clocks of the running epoch, as far as this attempt trains it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begin()

    def begin(self) -> None:
        """An epoch begins, or its rest after a resume."""
        self._first = self._engine.step
        self._train_s: float | None = None
        self._spent = {"saving": 0.0, "evaluating": 0.0}
        self._waited_s = self._engine.batches.waited_s
        if self._engine.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._engine.world.device)
        self._started = time.monotonic()

    @property
    def has_trained(self) -> bool:
        """Whether this attempt has trained any of the epoch; False where it only evaluates it again."""
        return self._engine.step > self._first

    def training_is_over(self) -> None:
        """Call it when the device has done all steps: where the epoch's sums were read."""
        self._train_s = time.monotonic() - self._started

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """A stretch in which training waits for a save."""
        with self._spending("saving"):
            yield

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """A stretch of evaluation."""
        with self._spending("evaluating"):
            yield

    def timing(self) -> Timing:
        """The epoch that has just been evaluated. Every rank must call it: some numbers are the largest over all of them."""
        seconds, engine = time.monotonic() - self._started, self._engine
        mine = (round(1e6 * (engine.batches.waited_s - self._waited_s)), peak_memory_bytes(engine.world.device))
        waited_us, memory = largest(engine.world, mine)
        common: dict[str, Any] = {
            "seconds": round(seconds, 3),
            "eval_seconds": round(self._spent["evaluating"], 3),
            "checkpoint_stall_s": round(self._spent["saving"], 3),
            "memory_peak_mib": round(memory / 2**20, 1),
        }
        if not self.has_trained or self._train_s is None:
            return Timing(**common)
        per_s = self._images() / max(self._train_s, 1e-9)
        work = multiply_adds_of(engine)
        tflops = None if work is None else per_s * work * FLOP_PER_MULTIPLY_ADD / 1e12
        rate = matmul_tflops_of(engine)
        return Timing(
            **common,
            images_per_s=round(per_s, 1),
            train_seconds=round(self._train_s, 3),
            data_wait_s=round(waited_us / 1e6, 3),
            tflops=None if tflops is None else float(f"{tflops:.4g}"),
            matmul_share_pct=None if rate is None or tflops is None else round(100 * tflops / (rate * engine.world.size), 2),
        )

    @contextlib.contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - started

    def _images(self) -> int:
        """Samples of all ranks from the step where the clock began to the epoch's end."""
        batches, engine = self._engine.batches, self._engine
        return len(batches.split) - self._first % engine.steps_per_epoch * engine.config.train.global_batch_size


def wait_for(device: torch.device) -> None:
    """Until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def largest(world: World, values: Sequence[int]) -> list[int]:
    """The largest of each value over all ranks; every rank must call it."""
    table = torch.zeros((world.size, len(values)), dtype=torch.int64)
    table[world.rank] = torch.tensor(values, dtype=torch.int64)
    return [int(value) for value in world.sum(table).amax(0).tolist()]


def peak_memory_bytes(device: torch.device) -> int:
    """The most that tensors held of the GPU since the last reset; on a CPU the most that this process ever held of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    held: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held * (1 if sys.platform == "darwin" else 1024)


# --- arithmetic of the network


def multiply_adds_of(engine: Engine) -> int | None:
    """Of the forward pass of one image through the run's network; None where a network of somebody else's does not run on the CPU."""
    _, _, height, width = engine.batches.split.images.shape
    try:
        return multiply_adds(engine.config.model, engine.batches.classes, (height, width))
    except Exception as error:
        if engine.config.model.target is None:
            raise
        log.warning("multiply_adds_not_counted target=%s error=%s", engine.config.model.target, error)
        return None


@functools.cache
def multiply_adds(config: ModelConfig, num_classes: int, size: tuple[int, int]) -> int:
    """Multiply-adds of convolutions and matrix products in the forward pass of one image; pointwise work is not counted.

    Counted while one image goes through a copy on the CPU (20 ms at width 64): on the meta device torch imports its compiler first,
    1.3 s.
    """
    model = build_model(config, num_classes, seed=None).eval()
    count = _Count()
    with own_draws(0, "own/count", 0, 0, torch.device("cpu")), torch.inference_mode(), count:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()  # what lay in the memory may be slow to compute with
        model(torch.zeros(1, 3, *size))
    return count.multiply_adds


class _Count(TorchFunctionMode):
    """Sums what the calls of torch's functions multiply, from the shapes that go in and come out."""

    _WEIGHTED = frozenset({torch.conv1d, torch.conv2d, torch.nn.functional.linear})
    _PRODUCTS = frozenset({torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm})
    _SUMS = frozenset({torch.addmm, torch.baddbmm})  # of their first argument and a product

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self._WEIGHTED:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.multiply_adds += out.numel() * weight[0].numel()
        elif func in self._PRODUCTS:
            self.multiply_adds += out.numel() * args[0].shape[-1]
        elif func in self._SUMS:
            self.multiply_adds += out.numel() * args[1].shape[-1]
        return out


# --- what the device can do


def matmul_tflops_of(engine: Engine) -> float | None:
    """What a large matmul reaches on this rank's device in the run's precision; None where there is no memory for it.

    Measured when it is first asked for, after an epoch: the device is as warm as in training, and no start waits for it. Other
    processes on the same cores or GPU slow it down as they do the training.
    """
    return _matmul_tflops(engine.world.device, AMP_DTYPES[engine.config.train.amp], torch.get_num_threads())


@functools.cache
def _matmul_tflops(device: torch.device, dtype: torch.dtype, threads: int) -> float | None:
    n = _matmul_size(device, dtype, threads)
    try:
        with torch.inference_mode(), _precision_of_convolutions():
            seconds = _matmul_seconds(n, device, dtype)
    except RuntimeError as error:  # torch's class for a GPU without memory left is one
        log.warning("matmul_not_timed error=%s", error)
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # packed runs share the GPU's memory
    return 2 * n**3 / seconds / 1e12


def _matmul_seconds(n: int, device: torch.device, dtype: torch.dtype) -> float:
    # No drawn values: the generators are not ours to move. No constant ones: they cost a GPU less power than real ones.
    row = (torch.arange(n, device=device) % 251 / 251 - 0.5).to(dtype)
    factor = row[:, None] * row
    return _cuda_seconds(factor) if device.type == "cuda" else _host_seconds(factor)


def _matmul_size(device: torch.device, dtype: torch.dtype, threads: int) -> int:
    if device.type == "cuda":
        return 8192 if dtype != torch.float32 else 4096
    if dtype == torch.float16:  # CPUs emulate it: 512 takes 100 ms
        return 256
    return 512 if threads <= 4 else 1024


def _host_seconds(factor: Tensor) -> float:
    end, fastest = time.monotonic() + _MATMUL_S, float("inf")
    factor @ factor
    while True:
        started = time.perf_counter()
        factor @ factor
        now = time.perf_counter()
        fastest = min(fastest, now - started)
        if time.monotonic() >= end:
            return max(fastest, 1e-9)


def _cuda_seconds(factor: Tensor) -> float:
    """Waits for the device: training has nothing in its queue then."""
    out = factor @ factor
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(_CUDA_REPEATS):
        torch.mm(factor, factor, out=out)
    end.record()
    end.synchronize()
    return max(float(start.elapsed_time(end)) / 1000 / _CUDA_REPEATS, 1e-9)


@contextlib.contextmanager
def _precision_of_convolutions() -> Iterator[None]:
    """By default torch computes float32 convolutions in TF32 and float32 matmuls not: what the network may do, the matmul may."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
