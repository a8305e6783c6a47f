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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch._inductor.exc
from torch import nn

import seresnet.blocks
import seresnet.models
from seresnet.blocks import BasicBlock
from seresnet.compile_cache import CompileCache, base_folder
from seresnet.config import RunConfig, iter_keys, micro_batch_size
from seresnet.errors import ConfigError
from seresnet.prepare import data_dir

#: Graphs of one process: stem and five distinct blocks, each with and without a move of the running statistics, are twelve.
MOST_GRAPHS = 64

_FAULTS = (
    torch._dynamo.exc.TorchDynamoException,
    torch._dynamo.exc.FailOnRecompileLimitHit,
    torch._inductor.exc.CppCompileError,
    torch._inductor.exc.InvalidCxxCompiler,
)

_INSTEAD = "Or set train.compile: false."


class CompiledRegions:
    """The stem and the residual blocks of a network, compiled in place at their first use: blocks of one form share one graph."""

    def __init__(self, model: nn.Module, config: RunConfig, device: torch.device) -> None:
        """Raises ConfigError where there is no compiler."""
        check_compiler(device)
        # Reached only by a fault of ours; that graphs must be whole (fullgraph) turns it into an error instead of an eager run.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        self._samples = micro_batch_size(config)
        self._keeps = False
        self._cache = CompileCache(base_folder(os.environ, data_dir(config.data, os.environ)), device, _what_decides(config))
        self._cache.open()
        for region in regions(model):
            region.compile(fullgraph=True, dynamic=False, **_backend(config.train.deterministic))

    def running(self, samples: int) -> contextlib.AbstractContextManager[Any]:
        """Around a micro-batch of so many samples: compiled where it is a full one."""
        return explained() if samples == self._samples else torch.compiler.set_stance("force_eager")

    def step_done(self, *, whole: bool, keep: bool) -> None:
        """After a step. whole: of a full batch, after which all graphs are there: keep says whether to seal them for later processes."""
        if whole and not self._keeps:
            self._keeps = True
            if keep:
                self._cache.seal()


def _what_decides(config: RunConfig) -> dict[str, Any]:
    """What the graphs of a network depend on, so that runs with other seeds find them, and no others look through them."""
    keys = ("train.amp", "train.channels_last", "train.deterministic", "train.threads", "data.name")
    decides = {key: value for key, _, value, _ in iter_keys(config) if key.startswith("model.") or key in keys}
    return {**decides, "samples": micro_batch_size(config), "source": _source_digest()}


def _source_digest() -> str:
    """Of the modules that are compiled: other code makes other graphs, and would compile beside an archive that never fits."""
    content = b"".join(Path(module.__file__ or "").read_bytes() for module in (seresnet.blocks, seresnet.models))
    return hashlib.sha256(content).hexdigest()


def regions(model: nn.Module) -> list[nn.Module]:
    """What is compiled each on its own."""
    stem = [module for name, module in model.named_children() if name == "stem"]
    return stem + [module for module in model.modules() if isinstance(module, BasicBlock)]


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
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"train.compile: the network could not be compiled: {type(error).__name__}: {first[:300]}. {_INSTEAD}") from error


def _backend(deterministic: bool) -> dict[str, Any]:
    # Pinned, because Inductor else times some kernels and keeps the fastest: bits would depend on how busy the device was meanwhile.
    pinned = {"deterministic": True, "max_autotune": False, "coordinate_descent_tuning": False}
    return {"backend": "inductor", "options": pinned if deterministic else {}}
