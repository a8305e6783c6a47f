"""What `pack: auto` says: how many runs a GPU could hold side by side, by what was measured of one of them, or how to measure it.

Only a suggestion; nothing is packed by it. One invariant: no number without a measurement, and the numbers are shown.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpc.timings import Known

if TYPE_CHECKING:
    from hpc.draft import Draft

#: Of a GPU's memory and time, what runs side by side may ask for together.
SHARE = 0.9
#: What a CUDA process holds beside its tensors.
CONTEXT_MB = 600.0
#: Above this one run fills a GPU.
BUSY_PCT = 50.0
MOST = 8


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one run uses of a GPU. None: not measured."""

    util_pct: float | None
    memory_mb: float | None
    total_mb: float | None
    gpu: str


def advise(draft: "Draft", known: Known) -> str:
    """One line for the plan."""
    sent = [run_id for run_id in draft.sent_run_ids if draft.runs[run_id].config.train.device == "cuda"]
    if not sent:
        return "auto looks at GPUs, and these runs use none"
    single = [run_id for run_id in sent if draft.runs[run_id].config.train.ranks == 1]
    if not single:
        return "auto: runs of several ranks have their GPUs to themselves"
    needs = [found for run_id in _one_a_shape(single, known) if (found := measured(known, run_id, _at_a_time(draft))) is not None]
    if not needs:
        return "auto: nothing measured yet: train one run for some minutes, then plan again"
    return suggestion(needs)


def suggestion(needs: Sequence[Need]) -> str:
    """What follows from the neediest of several runs."""
    need = max(needs, key=lambda need: (need.util_pct or 0, need.memory_mb or 0))
    gpu = f"{'an' if need.gpu[:1] in 'AEFHILMNORSX' else 'a'} {need.gpu}"
    if need.util_pct is None:
        memory = f"{(need.memory_mb or 0) / 1000:.1f} GB"
        return f"auto: 1 run holds {memory} of {gpu}; how busy it keeps it is not known: train one for some minutes"
    used = f"1 run uses {need.util_pct:.0f} % of {gpu}"
    if need.memory_mb is not None and need.total_mb is not None:
        used = f"1 run uses {need.util_pct:.0f} % and {need.memory_mb / 1000:.1f} of {need.total_mb / 1000:.0f} GB of {gpu}"
    per_gpu = fitting(need)
    if per_gpu < 2:
        return f"auto: {used}: one run a GPU is right"
    return f"auto: {used}: try pack: {{mode: concurrent, per_gpu: {per_gpu}}}"


def fitting(need: Need) -> int:
    """How many such runs a GPU may hold at a time."""
    if need.util_pct is None or need.util_pct > BUSY_PCT:
        return 1
    by_time = int(100 * SHARE / max(need.util_pct, 1.0))
    by_memory = int(SHARE * need.total_mb / need.memory_mb) if need.memory_mb and need.total_mb else by_time
    return max(1, min(by_time, by_memory, MOST))


def measured(known: Known, run_id: str, at_a_time: "dict[str, int]") -> Need | None:
    """From the samples of runs of this shape that had their GPU to themselves, else the memory that a trial held."""
    from hpc.gpu_use import read_use

    gpus = [
        gpu
        for folder in known.folders(run_id)[:5]
        if at_a_time.get(folder.path.name, 1) == 1
        for sample in read_use(folder)
        for gpu in sample.gpus
    ]
    if gpus:
        busy = [gpu.util_pct for gpu in gpus if gpu.util_pct is not None]
        memory = max((gpu.memory_used_mb for gpu in gpus if gpu.memory_used_mb is not None), default=None)
        total = max((gpu.memory_total_mb for gpu in gpus if gpu.memory_total_mb is not None), default=None)
        return Need(util_pct=statistics.median(busy) if busy else None, memory_mb=memory, total_mb=total, gpu=short_name(gpus[-1].name))
    report = known.report(run_id)
    if report is None or report.get("gpu") is None:
        return None
    peak = float(report["peak_memory_mb"]) + CONTEXT_MB
    return Need(util_pct=None, memory_mb=peak, total_mb=None, gpu=short_name(str(report["gpu"])))


def short_name(name: str) -> str:
    """ "NVIDIA H100 80GB HBM3" is called an H100."""
    words = [word for word in name.split() if word not in ("NVIDIA", "Tesla", "GeForce", "Quadro")]
    return words[0] if words else name


def _one_a_shape(run_ids: Sequence[str], known: Known) -> list[str]:
    return list({known.key(run_id): run_id for run_id in run_ids}.values())


def _at_a_time(draft: "Draft") -> "dict[str, int]":
    """Folder -> the most runs that trained beside it in any of its tasks."""
    found: dict[str, int] = {}
    for entry in draft.submissions.submissions:
        for task in entry.tasks:
            for run_id in draft.plan.tasks.get(task, ()):
                if run_id in draft.plan.runs:
                    folder = draft.plan.runs[run_id].folder
                    found[folder] = max(found.get(folder, 1), entry.at_a_time)
    return found
