"""A warning before a site cancels jobs whose GPUs idle: what was sampled, beside the line that the site draws.

Samples are hpc.gpu_use's, the line is the site's as the submission keeps it. One invariant: no warning without as many minutes of
samples as it speaks of.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc import gpu_use
from hpc.gpu_use import Sample
from hpc.paths import Submission, submission_id
from hpc.states import RunState

#: Of the site's window: late enough that a start is not called idle, early enough to act.
WARN_FROM = 0.75
#: Older samples than that say nothing of now: the sampler or its machine is gone.
_STALE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """Below this use over this time a site cancels a job."""

    site: str
    pct: float
    window_min: float


def warnings(
    states: Sequence[RunState], submissions: Sequence[Submission], started: Mapping[str, float], now: float | None = None
) -> list[str]:
    """A line for each task whose GPUs are used less than its site's line allows. started: task -> when Slurm started it."""
    entries = {entry.id: entry for entry in submissions}
    tasks: dict[str, list[RunState]] = {}
    for state in states:
        if state.task is not None:
            tasks.setdefault(state.task, []).append(state)
    found = []
    for task, pack in tasks.items():
        running = [state.slug for state in pack if state.state == "running"]
        entry = entries.get(submission_id(task) or "")
        if running and entry is not None and entry.site.get("low_use_pct"):
            text = _warning(_samples(pack), entry.site, started.get(task, 0.0), time.time() if now is None else now)
            found += [f"{', '.join(running)}: {text}"] if text else []
    return found


def use_text(state: RunState, window_s: float = gpu_use.WINDOW_S) -> str | None:
    """For a job that is gone: how busy its GPUs were at its end; None without samples."""
    samples = gpu_use.read_use(state.folder, state.attempts)
    mean = gpu_use.mean_util_pct(samples, window_s)
    return None if mean is None else f"GPU use {mean:.0f} % over its last {_span_min(samples, window_s):.0f} min"


def _samples(pack: Sequence[RunState]) -> list[Sample]:
    """The task's samples in order of time, once each: every run of a pack has those of its own time."""
    found = {sample.time: sample for state in pack if state.attempts for sample in gpu_use.read_use(state.folder, state.attempts)}
    return [found[moment] for moment in sorted(found)]


def _warning(samples: Sequence[Sample], site: Mapping[str, Any], started: float, now: float) -> str | None:
    line = line_of(site, {gpu.name for sample in samples for gpu in sample.gpus})
    if line is None:
        return None
    recent = [sample for sample in samples if started <= sample.time <= now + _STALE_S and sample.time > now - 60 * line.window_min]
    mean = gpu_use.mean_util_pct(recent)
    minutes = _span_min(recent)
    if mean is None or mean >= line.pct or minutes < WARN_FROM * line.window_min or recent[-1].time < now - _STALE_S:
        return None
    return (
        f"GPU use {mean:.0f} % over {minutes:.0f} min; {line.site} cancels below {line.pct:g} % after {line.window_min:g} min: "
        "pack more runs on a GPU (pack: auto suggests how many)"
    )


def line_of(site: Mapping[str, Any], gpus: set[str]) -> Line | None:
    """The line for these GPUs: a word of the site is part of a GPU's name, or the type that was asked for. None: the site draws none."""
    asked = str(site.get("gpu_type") or "").lower()
    low = site.get("low_use_pct")
    pcts = [
        float(pct)
        for word, pct in (low.items() if isinstance(low, Mapping) else ())
        if word.lower() == asked or any(word.lower() in name.lower() for name in gpus)
    ]
    window_min = site.get("low_use_window_min") or gpu_use.WINDOW_S / 60
    return Line(site=str(site.get("name", "this site")), pct=max(pcts), window_min=float(window_min)) if pcts else None


def _span_min(samples: Sequence[Sample], window_s: float | None = None) -> float:
    """Minutes that the samples speak of; each stands for the time since the one before."""
    if not samples:
        return 0.0
    span_s = samples[-1].time - samples[0].time + gpu_use.SAMPLE_EVERY_S
    return (span_s if window_s is None else min(span_s, window_s)) / 60
