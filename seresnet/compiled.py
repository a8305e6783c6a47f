"""torch.compile by region: one graph for each distinct block, so that compiling does not take longer for a deeper network.

Compiled is what costs: training on full micro-batches. By rule, not as a fallback, an epoch's short last micro-batch and evaluation run
eagerly, so that no graph is made for a shape seen once. Where compiled files are kept is compile_cache.py's business. One invariant: a
compiled run computes the same bits in each attempt, or ends with an error; what cannot be compiled is never run eagerly instead.
"""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch._inductor.exc
from torch import nn

import seresnet.attention
import seresnet.blocks
import seresnet.models
from seresnet.blocks import BasicBlock, Bottleneck
from seresnet.compile_cache import CompileCache, base_folder
from seresnet.config import RunConfig, iter_keys, micro_batch_size
from seresnet.errors import CompileError, ConfigError
from seresnet.exits import is_out_of_memory
from seresnet.prepare import data_dir
from seresnet.world import World

#: Graphs of one process: stem and five distinct blocks, each with and without a move of the running statistics, are twelve.
MOST_GRAPHS = 64

_FAULTS = (
    torch._dynamo.exc.TorchDynamoException,
    torch._dynamo.exc.FailOnRecompileLimitHit,
    torch._inductor.exc.CppCompileError,
    torch._inductor.exc.InvalidCxxCompiler,
)

#: What a C++ compiler says of a machine without room, of disk or memory, or when somebody ends a part of it.
_NO_ROOM = ("No space left on device", "Disk quota exceeded", "Cannot allocate memory", "out of memory", "signal terminated program")
_INSTEAD = "Or set train.compile: false."


class CompiledRegions:
    """The stem and the residual blocks of a network, compiled in place at their first use: blocks of one form share one graph."""

    def __init__(self, model: nn.Module, config: RunConfig, world: World) -> None:
        """Raises ConfigError where there is no compiler."""
        check_compiler(world.device)
        # Reached only by a fault of ours; that graphs must be whole (fullgraph) turns it into an error instead of an eager run.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        self._samples = micro_batch_size(config)
        self._keeps = keeps_archive(world)
        base = base_folder(os.environ, data_dir(config.data, os.environ))
        self._cache = CompileCache(base, world.device, {**_what_decides(config), **_role(config, world)})
        self._cache.open()
        for region in regions(model):
            region.compile(fullgraph=True, dynamic=False, **_backend(config.train.deterministic))

    def running(self, samples: int) -> contextlib.AbstractContextManager[Any]:
        """Around a micro-batch of so many samples: compiled where it is a full one."""
        return explained() if samples == self._samples else torch.compiler.set_stance("force_eager")

    def step_done(self, *, whole: bool) -> None:
        """After a step. whole: of a full batch, after which all graphs are there, to be sealed for later processes."""
        if whole and self._keeps:
            self._keeps = False
            self._cache.seal()


def keeps_archive(world: World) -> bool:
    """One rank of each role on each node: the first, and beside rank 0, whose graphs are others, its neighbour."""
    return world.local_rank == 0 or world.rank == 1


def _what_decides(config: RunConfig) -> dict[str, Any]:
    """What the graphs of a network depend on, so that runs with other seeds find them, and no others look through them."""
    keys = ("train.amp", "train.channels_last", "train.deterministic", "train.threads", "data.name", "data.target")
    decides = {key: value for key, _, value, _ in iter_keys(config) if key.startswith("model.") or key in keys}
    return {**decides, "samples": micro_batch_size(config), "source": _source_digest()}


def _role(config: RunConfig, world: World) -> dict[str, Any]:
    """Only micro-batch 0 moves the running statistics, with a graph of its own: rank 0 has it, beside the others' if it has more to do."""
    others = not world.is_main or config.train.global_batch_size > micro_batch_size(config) * world.size
    return {"moves_statistics": world.is_main, "keeps_statistics": others, "is_parallel": world.size > 1}


def _source_digest() -> str:
    """Of the modules that are compiled, and how: other code makes other graphs, and would compile beside an archive that never fits."""
    content = b"".join(
        Path(file or "").read_bytes()
        for file in (seresnet.attention.__file__, seresnet.blocks.__file__, seresnet.models.__file__, __file__)
    )
    return hashlib.sha256(content).hexdigest()


def regions(model: nn.Module) -> list[nn.Module]:
    """What is compiled each on its own."""
    stem = [module for name, module in model.named_children() if name == "stem"]
    return stem + [module for module in model.modules() if isinstance(module, BasicBlock | Bottleneck)]


def graphs_made() -> int:
    """Graphs that this process has compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError unless what turns graphs into programs is here: a C++ compiler for the CPU, Triton and a C compiler for CUDA."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError(f"train.compile: true needs Triton on a GPU, and it is not installed. pip install triton. {_INSTEAD}")
        _need("a C compiler (Triton builds its launcher with it)", [os.environ.get("CC", ""), "gcc", "clang", "cc"], "CC")
        return
    _need("a C++ compiler on the CPU", [os.environ.get("CXX", ""), "g++", "clang++", "c++"], "CXX")


def _need(what: str, names: list[str], variable: str) -> None:
    wanted = names[:1] if names[0] else names[1:]
    if not any(map(shutil.which, wanted)):
        raise ConfigError(
            f"train.compile: true needs {what}, and {' or '.join(wanted)} is not on PATH. "
            f"Install one (apt install g++, module load gcc) or name it in {variable}. {_INSTEAD}"
        )


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn what torch.compile raises into a ConfigError; errors of the step itself pass."""
    try:
        yield
    except _FAULTS as error:
        if words := _passing(error):
            raise RuntimeError(f"train.compile: the compiler could not finish: {words}") from error
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CompileError(
            f"train.compile: the network could not be compiled: {type(error).__name__}: {first[:300]}. {_INSTEAD}"
        ) from error


def _passing(error: BaseException) -> str | None:
    """What says that the machine, not the network, was in the way, so that trying again may do: a signal, or no room."""
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, subprocess.CalledProcessError) and told.returncode < 0:
            return f"ended by {signal.Signals(-told.returncode).name}"
        if isinstance(told, OSError) or is_out_of_memory(told):
            return f"{type(told).__name__}: {told}"
        told = told.__cause__ or getattr(told, "inner_exception", None)
    return next((line.strip() for line in str(error).splitlines() if any(words in line for words in _NO_ROOM)), None)


def _backend(deterministic: bool) -> dict[str, Any]:
    # Pinned, because Inductor else times some kernels and keeps the fastest: bits would depend on how busy the device was meanwhile.
    # No precompiled headers: they lie outside our folder, 150 MB on each node, which a warm start makes first, too (10 s of CPU
    # time; without them a small network compiles as fast), and one that is cut in two by a kill would be in the way of every later job.
    headers = "cpp_cache_precompile_headers"  # not every torch since 2.10 need have it, and torch.compile refuses what it does not know
    plain = {headers: False} if hasattr(torch._inductor.config, headers) else {}
    pinned = {"deterministic": True, "max_autotune": False, "coordinate_descent_tuning": False}
    return {"backend": "inductor", "options": {**plain, **pinned} if deterministic else plain}
