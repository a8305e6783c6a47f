"""What a run is put together from: the device's settings, the data, the network with its optimiser and batches, and the facts of tier T1.

How it is then trained is recipe.py's business. One invariant: equal configs and arrays give equal engines at step 0 on every machine.
"""

import os
from pathlib import Path
from typing import Any

import torch

from seresnet import own_code, provenance
from seresnet.array_file import Arrays, load_arrays
from seresnet.config import RunConfig
from seresnet.data import Splits, TrainBatches, load_splits
from seresnet.engine import Engine
from seresnet.errors import DataError
from seresnet.host_memory import keep_freed_memory
from seresnet.models import build_model
from seresnet.prepare import data_dir, find_prepared, prepare
from seresnet.targets import probe
from seresnet.watchdog import Watchdog
from seresnet.world import World


def make_deterministic(config: RunConfig) -> None:
    """Threads, kernels and collectives for tier T1. Call it before CUDA and NCCL start: they read their settings once."""
    torch.set_num_threads(config.train.threads)
    if config.train.device == "cpu":
        keep_freed_memory()  # only speed: with CUDA, activations do not lie in the host's memory
    if not config.train.deterministic:
        torch.backends.cudnn.benchmark = True
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    os.environ.setdefault("NCCL_PROTO", "Simple")
    if config.train.compile:
        torch.use_deterministic_algorithms(True)
    else:
        # The same switch without inductor's settings, which only a compiled network reads: they cost 1.7 s of CPU time (torch 2.14).
        torch.set_deterministic_debug_mode("error")
    # Filling fresh memory guards against reads of memory nobody wrote; our own code is tested for that instead.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def open_data(config: RunConfig, world: World, watchdog: Watchdog | None = None) -> Arrays:
    """The prepared array, verified; built by the first rank of each node where it is missing (a purged file, a fresh node)."""
    folder = data_dir(config.data, os.environ)
    report = (lambda stage, done, total: watchdog.beat()) if watchdog is not None else None
    # Read first, all ranks at once: asking prepare() whether the file is whole would read and hash it a second time.
    arrays = _sound(find_prepared(config.data, folder))
    if arrays is None and world.local_rank == 0:
        prepare(config.data, folder, progress=report)
    world.sum(torch.ones(1, dtype=torch.int64))  # nobody looks again before every node has built
    return arrays or load_arrays(find_prepared(config.data, folder) or prepare(config.data, folder))


def _sound(path: Path | None) -> Arrays | None:
    """What is in the file; None where it is missing or damaged, which prepare() says and mends."""
    try:
        return load_arrays(path) if path is not None else None
    except DataError:
        return None


def facts_now(arrays: Arrays, world: World) -> dict[str, Any]:
    """What tier T1 needs to be the same, beside the numeric keys."""
    versions = {f"version of {package}": version for package, version in provenance.versions().items()}
    layout = {"world_size": world.size, "ranks_per_node": world.local_size}
    own = {"own_code": found} if (found := own_code.digest()) else {}  # whose arithmetic may change with it
    return {"data_digest": arrays.digest, **layout, **own, "device": device_name(world), **versions}


def device_name(world: World) -> str:
    """Kind and model of this rank's device: part of what tier T1 needs to be the same."""
    if world.device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(world.device)}"
    return f"cpu: {provenance.cpu_model()}"


def build_engine(config: RunConfig, arrays: Arrays, world: World) -> tuple[Engine, Splits]:
    """Network, optimiser and batches of this run at step 0, and its images."""
    model = build_model(config.model, len(arrays.classes), config.train.seed)
    if config.model.target is not None:
        _, height, width, _ = arrays.test_images.shape
        probe(config.model.target, model, (height, width), len(arrays.classes), world.device)
    splits = load_splits(config, arrays, world.device)
    mean, std, share = arrays.mean.tolist(), arrays.std.tolist(), {"rank": world.rank, "ranks": world.size}
    batches = TrainBatches(splits.train, config, len(arrays.classes), mean, std, world.device, **share)
    return Engine(config, model, batches, world), splits
