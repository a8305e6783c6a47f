"""A trace of some steps of a run as they are: for chrome://tracing or Perfetto, and the kernels that took most as a table.

Asked for with --profile, made on rank 0, between two steps of training that goes on. One invariant: a profiled run has the bits of
one that is not, and what becomes of the trace (a full disk, a stop) never ends it.
"""

import gzip
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seresnet.durable import parse_json
from seresnet.run_folder import RunFolder

log = logging.getLogger("seresnet")

#: Steps of this start before the trace begins: kernels are chosen, memory is fetched, clocks rise.
WARM_UP_STEPS = 5
#: Rows of the table, and how wide it may be.
_ROWS, _WIDTH = 15, 80
_ON_GPU, _ON_CPU = frozenset({"kernel", "gpu_memcpy", "gpu_memset"}), frozenset({"cpu_op"})
#: As chrome's trace format has it: name, cat, ph, pid, tid, ts and dur in microseconds.
Event = dict[str, Any]


class StepProfiler:
    """Traces steps WARM_UP_STEPS + 1 to WARM_UP_STEPS + `steps` of this start, with whatever training does between them."""

    def __init__(self, folder: RunFolder, generation: int, steps: int, device: torch.device) -> None:
        self._folder, self._generation, self._steps, self._device = folder, generation, steps, device
        self._seen = 0
        self._profile: Any = None

    @property
    def is_over(self) -> bool:
        """Whether after_step has nothing more to do."""
        return self._seen >= WARM_UP_STEPS + self._steps

    @property
    def is_due(self) -> bool:
        """Whether the next after_step writes the trace, which takes seconds."""
        return self._seen + 1 == WARM_UP_STEPS + self._steps

    def after_step(self, step: int) -> None:
        """A step is done, the run's step-th. Begins the trace, or writes it; raises nothing."""
        if self.is_over:
            return
        self._seen += 1
        try:
            if self._seen == WARM_UP_STEPS:
                self._profile = _begun(self._device)
            elif self._profile is not None:
                self._profile.step()
                if self.is_over:
                    self._write(step)
        except Exception as error:  # also a bug of the profiler: the run is worth more than its trace
            self._give_up(repr(error))

    def finish(self, step: int) -> None:
        """Training ends: write what there is of a trace that was not full."""
        traced = self._seen - WARM_UP_STEPS
        if self.is_over:
            return
        if self._profile is None or traced < 1:
            return self._give_up(f"the run ended {self._seen} steps after this start; {WARM_UP_STEPS} go by before the trace begins")
        try:
            self._write(step)
        except Exception as error:
            self._give_up(repr(error))

    def _give_up(self, why: str) -> None:
        self._profile, self._steps = None, 0
        log.error("profile_not_written error=%s training goes on", why)

    def _write(self, step: int) -> None:
        started, traced = time.monotonic(), self._seen - WARM_UP_STEPS
        profile, self._profile, self._steps = self._profile, None, 0
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        profile.stop()
        self._folder.profile.mkdir(exist_ok=True)
        name = f"g{self._generation:04d}-s{step - traced + 1:09d}-{step:09d}"
        path = self._folder.profile / f"{name}.json.gz"
        text = table(rows(_export(profile, path), self._device.type), traced)
        path.with_name(f"{name}.txt").write_text(text)
        print(text, end="", flush=True)
        log.info("profile_written steps=%d path=%s seconds=%.1f", traced, path, time.monotonic() - started)


def _begun(device: torch.device) -> Any:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # kernels of earlier steps are not in the trace
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    profile = torch.profiler.profile(activities=kinds)
    profile.start()
    return profile


def _export(profile: Any, path: Path) -> list[Event]:
    """Put the trace in its place and return its events. Raises OSError: where the disk is full, torch leaves half a file without a word."""
    raw, packed = path.with_suffix(".tmp"), path.with_suffix(".gz.tmp")
    try:
        profile.export_chrome_trace(str(raw))
        try:
            events: list[Event] = parse_json(raw.read_bytes())["traceEvents"]
        except ValueError as error:
            raise OSError(f"{raw}: the trace is torn. Is the disk full?") from error
        with open(raw, "rb") as source, gzip.open(packed, "wb", compresslevel=5) as target:
            shutil.copyfileobj(source, target)
        packed.replace(path)
    finally:
        for temp in (raw, packed):
            temp.unlink(missing_ok=True)
    return events


@dataclass(kw_only=True)
class Row:
    """One kernel (on a CPU, one operator without those that it calls), over all traced steps."""

    name: str
    calls: int = 0
    us: float = 0.0


def rows(events: Iterable[Event], device_type: str) -> list[Row]:
    """The kernels in a chrome trace's events, the longest first.

    Not torch's key_averages(): for 24,500 events it took 5.7 s, this 0.2 s (CPU, beside other work).
    """
    found: dict[str, Row] = {}
    categories = _ON_GPU if device_type == "cuda" else _ON_CPU
    timed = [event for event in events if event.get("ph") == "X" and event.get("cat") in categories]
    for event, us, caller in timed_alone(timed):
        row = found.setdefault(event["name"], Row(name=event["name"]))
        # An operator that hands over to itself (autograd does) was called once.
        row.calls, row.us = row.calls + (caller != event["name"]), row.us + us
    return sorted(found.values(), key=lambda row: -row.us)


def timed_alone(events: Iterable[Event]) -> Iterator[tuple[Event, float, str | None]]:
    """Each event, its microseconds less those of the events directly within it on its thread or stream, and which it is within."""
    alone: list[tuple[Event, list[float], str | None]] = []
    open_: list[tuple[Event, list[float], str | None]] = []
    for event in sorted(events, key=lambda event: (str(event["pid"]), str(event["tid"]), event["ts"], -event["dur"])):
        while open_ and not _is_within(event, open_[-1][0]):
            open_.pop()
        if open_:
            open_[-1][1][0] -= event["dur"]
        entry = (event, [event["dur"]], open_[-1][0]["name"] if open_ else None)
        alone.append(entry)
        open_.append(entry)
    for event, us, caller in alone:
        yield event, max(0.0, us[0]), caller


def _is_within(event: Event, other: Event) -> bool:
    return (event["pid"], event["tid"]) == (other["pid"], other["tid"]) and event["ts"] < other["ts"] + other["dur"]


def table(found: Sequence[Row], steps: int) -> str:
    """The longest kernels, a line each, 80 columns wide."""
    total = sum(row.us for row in found) or 1.0
    width = _WIDTH - 28
    lines = [f"{'kernel':<{width}}{'calls/step':>11}{'ms/step':>10}{'%':>7}"]
    for row in found[:_ROWS]:
        name = row.name if len(row.name) < width else row.name[: width - 4] + "..."
        lines.append(f"{name:<{width}}{row.calls / steps:>11.1f}{row.us / steps / 1000:>10.3f}{100 * row.us / total:>7.1f}")
    rest = sum(row.us for row in found[_ROWS:])
    lines.append(f"{f'{max(0, len(found) - _ROWS)} others':<{width}}{'':>11}{rest / steps / 1000:>10.3f}{100 * rest / total:>7.1f}")
    lines.append(f"{'all':<{width}}{'':>11}{total / steps / 1000:>10.3f}{100:>7.1f}")
    return "\n".join(lines) + "\n"
