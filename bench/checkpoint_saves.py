"""What a save and the deterministic mode cost the training step, measured between real steps of the full SE-ResNet in one process.

Part of bench/checkpoint.py. One invariant: what is compared takes turns in one run, so that a busy machine is busy for all of them.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from seresnet.checkpoint_writer import CheckpointWriter
from seresnet.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from seresnet.data import TrainBatches, load_splits
from seresnet.engine import Engine
from seresnet.models import build_model
from seresnet.run_folder import RunFolder
from seresnet.world import World

LIMIT_S = 60.0
FULL = ModelConfig(attention="se")  # configs/seresnet.yaml: 4.7 M parameters


def make_engine(model: ModelConfig, world: World, **train: Any) -> Engine:
    """A network with random images of CIFAR's size, some batches of them an epoch."""
    config = RunConfig(model=model, data=DataConfig(name="cifar10"), train=TrainConfig(device=world.device.type, **train))
    draw, n = np.random.default_rng(0), 16 * config.train.global_batch_size
    images, labels = draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10
    arrays = SimpleNamespace(train_images=images, train_labels=labels, test_images=images[:8], test_labels=labels[:8])
    splits = load_splits(config, arrays, world.device)
    batches = TrainBatches(splits.train, config, 10, (0.5,) * 3, (0.25,) * 3, world.device)
    return Engine(config, build_model(config.model, 10, 0), batches, world)


def timed_step(engine: Engine) -> float:
    """Seconds of a step, the device waited for."""
    started = time.perf_counter()
    engine.train_step()
    if engine.world.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@dataclass(kw_only=True)
class Cost:
    """Of one way to save, over all rounds, in seconds."""

    stalls: list[float] = field(default_factory=list)  # how long the training thread was held
    cpu: list[float] = field(default_factory=list)  # of that, what the thread computed: a busy machine does not change it much
    beside: list[list[float]] = field(default_factory=list)  # of each save, the steps that ran while it was being written
    written: list[float] = field(default_factory=list)  # from the call until the files are on the disk

    @property
    def stall(self) -> float:
        return statistics.median(self.stalls)

    def slowed(self, step_s: float) -> float:
        """By how much the steps beside a save took longer than the usual step, all together."""
        return statistics.median(sum(steps) - len(steps) * step_s for steps in self.beside)


#: A way to save: takes the engine, holds the training thread as long as it must, returns a function that says whether all is on disk.
Way = Callable[[Engine], Callable[[], bool]]


def measure_saves(engine: Engine, ways: dict[str, Way], rounds: int) -> tuple[dict[str, Cost], float]:
    """All ways in turn, in every round in another order; and the median of a step beside which nothing is written."""
    for _ in range(3):
        timed_step(engine)
    for way in ways.values():  # warm-up: first saves fetch memory and start threads
        for _ in range(2):
            _save_once(engine, way)
    costs, quiet, names = {name: Cost() for name in ways}, [], list(ways)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            quiet.append(timed_step(engine))
            stall, cpu, beside, written = _save_once(engine, ways[name])
            costs[name].stalls.append(stall)
            costs[name].cpu.append(cpu)
            costs[name].beside.append(beside)
            costs[name].written.append(written)
    return costs, statistics.median(quiet)


def _save_once(engine: Engine, way: Way) -> tuple[float, float, list[float], float]:
    """Seconds held, and computed; the steps during which it was written; seconds until it was."""
    started, computed = time.perf_counter(), time.thread_time()
    is_written = way(engine)
    stall, cpu = time.perf_counter() - started, time.thread_time() - computed
    beside = []
    while not is_written():
        beside.append(timed_step(engine))
        if time.perf_counter() - started > LIMIT_S:
            raise SystemExit(f"a save was not on the disk after {LIMIT_S:.0f} s")
    return stall, cpu, beside, time.perf_counter() - started


def plain_state(engine: Engine) -> dict[str, Any]:
    """What a training loop would hand to torch.save: the same tensors."""
    momentum = {name: engine.optimizer.state[value]["momentum_buffer"] for name, value in engine.model.named_parameters()}
    return {"model": engine.model.state_dict(), "momentum": momentum, "step": engine.step}


def ours(folder: Path) -> tuple[Way, CheckpointWriter]:
    """As recipe.Trainer._save does it."""
    run = RunFolder(path=folder)
    run.create()
    writer = CheckpointWriter(run, generation=1)

    def save(engine: Engine) -> Callable[[], bool]:
        writer.save(engine.state(engine.epoch_sums()))

        def is_written() -> bool:
            if writer.last_error is not None:
                raise SystemExit(f"a save failed: {writer.last_error!r}")
            return writer.wait(0)

        return is_written

    return save, writer


def torch_save(folder: Path) -> Way:
    """torch.save and fsync in the loop."""

    def save(engine: Engine) -> Callable[[], bool]:
        with open(folder / "plain.pt", "wb") as file:
            torch.save(plain_state(engine), file)
            file.flush()
            os.fsync(file.fileno())
        return lambda: True

    return save


def async_save(folder: Path, *, cached: bool = False, process: bool = False) -> Way:
    """torch's async_save; its stall is the call, which stages before it returns, and the wait for staging where it does not.

    cached: staging memory is used again. torch's own cache is pinned, which needs CUDA: elsewhere it is given pageable memory here.
    """
    kind = AsyncCheckpointerType.PROCESS if process else AsyncCheckpointerType.THREAD
    stager = BlockingAsyncStager(cache_staged_state_dict=cached) if cached else None

    def save(engine: Engine) -> Callable[[], bool]:
        state = plain_state(engine)
        if stager is not None and stager.state_dict_cache is None and not torch.cuda.is_available():
            stager.state_dict_cache = BlockingAsyncStager().stage(state)
        answer = dcp.async_save(state, checkpoint_id=folder, async_checkpointer_type=kind, async_stager=stager)
        upload = answer
        if hasattr(answer, "staging_completion"):
            answer.staging_completion.result()
            upload = answer.upload_completion
        return lambda: upload.done() and upload.result() is not None

    return save


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """async_save warns of each file that it replaces, and its process, which inherits our stderr, logs each request."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def measure_modes(engine: Engine, rounds: int) -> list[float]:
    """Of each round, seconds of steps in deterministic mode over those without it. On the CPU the mode can change between steps."""
    ratios = []
    for _ in range(rounds):
        seconds = {True: 0.0, False: 0.0}
        for mode in (True, False, False, True):
            torch.use_deterministic_algorithms(mode)
            seconds[mode] += timed_step(engine)
        ratios.append(seconds[True] / seconds[False])
    return ratios


def interval(values: Sequence[float], samples: int = 2000) -> tuple[float, float, float]:
    """Median and the ends of its 95 % interval, by bootstrap."""
    draw = np.random.default_rng(0).choice(np.asarray(values), (samples, len(values)))
    low, high = np.quantile(np.median(draw, axis=1), (0.025, 0.975))
    return statistics.median(values), float(low), float(high)
