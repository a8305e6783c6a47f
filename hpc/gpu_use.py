"""How busy the task's GPUs are, sampled by the supervisor each minute and kept beside the attempt, because sites cancel idle jobs.

A line of JSON a sample in attempts/NNNNNN.use.jsonl; every run of a task gets the task's sample. One invariant: nothing here is ever
waited for on the way to a stop, and where there is no nvidia-smi nothing happens.
"""

import csv
import dataclasses
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc import slurm
from seresnet.durable import parse_json
from seresnet.run_folder import RunFolder

log = logging.getLogger("hpc.supervisor")

SAMPLE_EVERY_S = 60.0
#: It answers within a second, unless a driver is stuck.
SMI_LIMIT_S = 20.0
#: What sites look at, where the site says nothing of it (low_use_window_min).
WINDOW_S = 7200.0
#: CUDA_VISIBLE_DEVICES of a task that was given none; the word is Slurm's.
_NO_GPU = ("", "NoDevFiles", "-1")
_QUERY = "--query-gpu=index,uuid,name,utilization.gpu,memory.used,memory.total"


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """One GPU in one moment."""

    id: str  # its UUID
    name: str
    util_pct: float | None  # share of the last second or so in which a kernel ran; None where it cannot be told (MIG)
    memory_used_mb: float | None
    memory_total_mb: float | None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The task's GPUs in one moment."""

    time: float  # unix
    gpus: tuple[GpuUse, ...]


def sample(environ: Mapping[str, str] = os.environ) -> Sample | None:
    """What nvidia-smi says now of the GPUs in CUDA_VISIBLE_DEVICES; None where there is none, or no answer."""
    reply = slurm.call("nvidia-smi", _QUERY, "--format=csv,noheader,nounits", timeout_s=SMI_LIMIT_S)
    gpus = _chosen(_parse(reply.stdout), environ.get("CUDA_VISIBLE_DEVICES")) if reply.succeeded else ()
    return Sample(time=time.time(), gpus=gpus) if gpus else None


def read_use(folder: RunFolder, generation: int | None = None) -> tuple[Sample, ...]:
    """The samples of one attempt, or of all attempts in order; torn lines are left out."""
    if generation is not None:
        return tuple(_read(folder.gpu_use(generation)))
    return tuple(found for path in sorted(folder.attempts.glob("*.use.jsonl")) for found in _read(path))


def mean_util_pct(samples: Sequence[Sample], window_s: float | None = None) -> float | None:
    """Mean over GPUs and over the samples of the last window_s before the newest one; None without a figure."""
    since = max((found.time for found in samples), default=0.0) - window_s if window_s is not None else float("-inf")
    figures = [gpu.util_pct for found in samples if found.time >= since for gpu in found.gpus if gpu.util_pct is not None]
    return sum(figures) / len(figures) if figures else None


class Sampler:
    """A thread that samples while the task lives. `targets` says which files get the next line."""

    def __init__(self, targets: Callable[[], Iterable[Path]], environ: Mapping[str, str], every_s: float = SAMPLE_EVERY_S) -> None:
        self._targets, self._environ, self._every_s = targets, environ, every_s
        self._stopped = threading.Event()

    def start(self) -> "Sampler":
        if shutil.which("nvidia-smi") is not None:
            threading.Thread(target=self._run, name="gpu-use", daemon=True).start()
        return self

    def stop(self) -> None:
        """No sample is begun once this returns; one under way is not waited for."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            found = sample(self._environ)
            if found is None or self._stopped.is_set():
                continue
            line = json.dumps(dataclasses.asdict(found)) + "\n"
            for path in self._targets():
                _append(path, line)


def _append(path: Path, line: str) -> None:
    try:
        with open(path, "a") as file:
            file.write(line)
    except OSError as error:
        log.warning("gpu_use_not_written path=%s error=%s", path.name, error)


def _parse(text: str) -> list[tuple[str, GpuUse]]:
    """(index, GPU) of each line; lines of another shape are no GPUs."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    return [
        (row[0], GpuUse(id=row[1], name=row[2], util_pct=_number(row[3]), memory_used_mb=_number(row[4]), memory_total_mb=_number(row[5])))
        for row in rows
        if len(row) == 6
    ]


def _chosen(gpus: Sequence[tuple[str, GpuUse]], visible: str | None) -> tuple[GpuUse, ...]:
    """Those that the task may use; all that nvidia-smi shows where the names cannot be matched (MIG, renumbered devices)."""
    if visible is not None and visible.strip() in _NO_GPU:
        return ()  # what is shown is somebody else's
    names = [name.strip() for name in (visible or "").split(",") if name.strip()]
    found = tuple(
        gpu for index, gpu in gpus if any(index == name or (name.startswith("GPU-") and gpu.id.startswith(name)) for name in names)
    )
    return found or tuple(gpu for _, gpu in gpus)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # [N/A], [Not Supported]
        return None


def _read(path: Path) -> list[Sample]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [found for found in map(_read_line, lines) if found is not None]


def _read_line(line: str) -> Sample | None:
    try:
        value = parse_json(line)
        return Sample(time=float(value["time"]), gpus=tuple(GpuUse(**gpu) for gpu in value["gpus"]))
    except (ValueError, KeyError, TypeError):
        return None
