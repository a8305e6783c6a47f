"""What a run is put together from: the device's settings, the data, the network with its optimiser and batches, and the facts of tier T1.

How it is then trained is recipe.py's business. One invariant: equal configs and arrays give equal engines at step 0 on every machine.
"""

import os
from typing import Any

import torch

from seresnet import provenance
from seresnet.array_file import Arrays, load_arrays
from seresnet.config import RunConfig
from seresnet.data import Splits, TrainBatches, load_splits
from seresnet.engine import Engine
from seresnet.models import build_model
from seresnet.prepare import data_dir, find_prepared, prepare
from seresnet.watchdog import Watchdog
from seresnet.world import World


def make_deterministic(config: RunConfig) -> None:
    """Threads, kernels and collectives for tier T1. Call it before CUDA and NCCL start: they read their settings once."""
    torch.set_num_threads(config.train.threads)
    if not config.train.deterministic:
        torch.backends.cudnn.benchmark = True
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    os.environ.setdefault("NCCL_PROTO", "Simple")
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory guards against reads of memory nobody wrote; our own code is tested for that instead.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def open_data(config: RunConfig, world: World, watchdog: Watchdog | None = None) -> Arrays:
    """The prepared array, verified; built by the first rank of each node where it is missing (a purged file, a fresh node)."""
    folder = data_dir(config.data, os.environ)
    report = (lambda stage, done, total: watchdog.beat()) if watchdog is not None else None
    path = prepare(config.data, folder, progress=report) if world.local_rank == 0 else None
    world.sum(torch.ones(1, dtype=torch.int64))  # nobody reads before every node has built
    return load_arrays(path or find_prepared(config.data, folder) or prepare(config.data, folder))


def facts_now(arrays: Arrays, world: World) -> dict[str, Any]:
    """What tier T1 needs to be the same, beside the numeric keys."""
    versions = {f"version of {package}": version for package, version in provenance.versions().items()}
    layout = {"world_size": world.size, "ranks_per_node": world.local_size}
    return {"data_digest": arrays.digest, **layout, "device": device_name(world), **versions}


def device_name(world: World) -> str:
    """Kind and model of this rank's device: part of what tier T1 needs to be the same."""
    if world.device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(world.device)}"
    return f"cpu: {provenance.cpu_model()}"


def build_engine(config: RunConfig, arrays: Arrays, world: World) -> tuple[Engine, Splits]:
    """Network, optimiser and batches of this run at step 0, and its images."""
    model = build_model(config.model, len(arrays.classes), config.train.seed)
    splits = load_splits(config, arrays, world.device)
    batches = TrainBatches(splits.train, config, len(arrays.classes), arrays.mean.tolist(), arrays.std.tolist(), world.device)
    return Engine(config, model, batches, world), splits
