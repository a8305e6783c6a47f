"""How long a plan takes and what it uses, in rounded numbers that say where they come from, or that nothing is known.

`calculate` is pure arithmetic over plain values; `estimate` feeds it from a draft, hpc.timings and one question to sbatch. One
invariant: what was not measured is called unknown, never guessed.
"""

import math
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpc import timings
from hpc.timings import Known, Timing
from seresnet.config import to_dict

if TYPE_CHECKING:
    from hpc.draft import Draft
    from hpc.local import Room

#: Of each start: up to 60 s that Slurm warns early, and 60 s until the first step.
LOST_OF_A_START_S = 120.0
#: The writer keeps three steps, two epoch boundaries and the best.
KEPT_CHECKPOINTS = 6
#: Inodes of a run that nobody has seen: its folders and records, checkpoints, and six files of each start.
FILES_OF_A_RUN, FILES_OF_A_START = 16, 6
#: A line of the journal and a line of the log.
BYTES_OF_AN_EPOCH = 600
_TEST_ONLY_S = 10.0

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class RunLoad:
    """One run that will be sent."""

    epochs: int  # that are left
    timing: Timing | None


@dataclass(frozen=True, kw_only=True)
class TaskLoad:
    """One task that will be sent, and what it occupies."""

    runs: tuple[RunLoad, ...]
    at_a_time: int = 1
    gpus: int = 0  # over all nodes
    cores: int = 1

    @property
    def seconds(self) -> Range | None:
        """None as soon as one of its runs is unknown."""
        ranges = [_run_seconds(run) for run in self.runs]
        known = [found for found in ranges if found is not None]
        if len(known) < len(ranges):
            return None
        # Side by side they slow each other down by as much as nobody has measured: the sum is the ceiling.
        low = max(sum(low for low, _ in known) / self.at_a_time, max(low for low, _ in known))
        return low, sum(high for _, high in known)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is known of a plan; every part None where nothing is. Seconds and bytes as (least, most)."""

    runs: int = 0
    can_calibrate: bool = True
    unknown: int = 0  # runs of them without a timing
    epoch_s: Range | None = None
    sources: tuple[str, ...] = ()
    run_s: Range | None = None
    task_s: Range | None = None  # of the longest task
    walltime_s: float | None = None
    requeues: tuple[int, int] | None = None  # of the longest task
    total_s: Range | None = None
    parallel: int | None = None
    gpu_hours: Range | None = None
    core_hours: Range | None = None
    disk_bytes: float | None = None
    inodes: int | None = None
    start: str | None = None
    packing: str | None = None

    def lines(self) -> tuple[tuple[str, str], ...]:
        """(label, text) as the plan shows them: at most six, one if nothing is known."""
        found = [("time", _time_text(self)), ("tasks", _tasks_text(self)), ("use", _use_text(self)), ("disk", _disk_text(self))]
        found += [("start", self.start), ("pack", self.packing)]
        return tuple((label, text) for label, text in found if text)


def calculate(
    tasks: Sequence[TaskLoad], *, walltime_s: float | None = None, signal_delay_s: float = 0.0, parallel: int | None = None
) -> Estimate:
    """Everything that follows from the loads alone. walltime_s None: no limit, as on this machine."""
    runs = [run for task in tasks for run in task.runs]
    timed = [run for run in runs if run.timing is not None]
    if not timed:
        return Estimate(runs=len(runs), unknown=len(runs), walltime_s=walltime_s)
    known = [(task, seconds) for task in tasks if (seconds := task.seconds) is not None]
    longest = _longest([seconds for _, seconds in known])
    is_whole = len(known) == len(tasks)
    return Estimate(
        runs=len(runs),
        unknown=len(runs) - len(timed),
        epoch_s=_span([(run.timing.low_s, run.timing.high_s) for run in timed if run.timing]),
        sources=tuple(dict.fromkeys(run.timing.source for run in timed if run.timing)),
        run_s=_span([found for run in timed if (found := _run_seconds(run)) is not None]),
        task_s=longest,
        walltime_s=walltime_s,
        requeues=_requeues(longest, walltime_s, signal_delay_s),
        total_s=_total([seconds for _, seconds in known], parallel) if is_whole else None,
        parallel=min(parallel, len(tasks)) if parallel else None,
        gpu_hours=_hours([(task.gpus, seconds) for task, seconds in known]),
        core_hours=_hours([(task.cores, seconds) for task, seconds in known]),
        disk_bytes=_disk(timed, len(runs)),
        inodes=_inodes(runs, _requeues(longest, walltime_s, signal_delay_s)),
    )


def estimate(draft: "Draft", *, room: "Room | None" = None, parallel: int | None = None, ask_start: bool = False) -> Estimate:
    """The estimate of a draft. room: of this machine, for a local launch. parallel: tasks of the sweep at a time, where that is capped.

    ask_start asks sbatch when the widest array would start, within a time limit; nothing is sent and nothing is written.
    """
    if not draft.batches:
        return Estimate()
    from dataclasses import replace

    from hpc import pack_advice

    known = known_timings(draft)
    tasks = _loads(draft, known)
    walltime_s = None if draft.is_local else draft.site.walltime_min * 60.0
    caps = [cap for cap in (parallel, None if draft.is_local else draft.site.array_parallelism) if cap]
    if draft.is_local and room is not None:
        caps = [room.max_parallel or max(1, room.cores // max(task.cores for task in tasks))]
    found = calculate(tasks, walltime_s=walltime_s, signal_delay_s=draft.site.signal_delay_s, parallel=min(caps, default=None))
    start = ask_slurm(draft) if ask_start and not draft.is_local else None
    can_calibrate = not any(run.config.program.command for run in draft.runs.values())
    return replace(
        found, start=start, can_calibrate=can_calibrate, packing=pack_advice.advise(draft, known) if draft.spec.pack.auto else None
    )


def known_timings(draft: "Draft") -> Known:
    """What can be asked about the speed of a draft's runs."""
    configs = {run_id: to_dict(run.config) for run_id, run in draft.runs.items()}
    begun = [state.run_id for state in draft.states if state.attempts]
    return Known(draft.sweep, draft.plan, configs, begun, None if draft.is_local else _gpu_word(draft))


def ask_slurm(draft: "Draft") -> str:
    """When the widest array would start, by `sbatch --test-only`; why that is not known, in one line, where it is not."""
    from hpc import slurm

    batch = max(draft.batches, key=lambda batch: (batch.shape.nodes * batch.shape.gpus, len(batch.packs)))
    text = slurm.script(draft.sweep.logs, draft.sweep.code(draft.code.number), draft.site, batch.shape, "test-only", len(batch.packs))
    with tempfile.TemporaryDirectory(prefix="test-only-") as folder:
        path = Path(folder) / "script.sh"
        path.write_text(text)
        reply = slurm.call("sbatch", "--test-only", str(path), timeout_s=_TEST_ONLY_S, env=slurm.sbatch_environment())
    found = re.search(r"to start at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", f"{reply.stdout}\n{reply.stderr}")
    if found:
        return f"{_moment(found[1], time.time())}, if nothing changes (sbatch --test-only)"
    reason = (reply.stderr or reply.stdout).strip().splitlines() or [f"sbatch exited {reply.returncode}"]
    return f"not known: {reason[-1].removeprefix('sbatch: ').removeprefix('error: ')[:110]}"


# --- from a draft to loads ---


def _loads(draft: "Draft", known: Known) -> list[TaskLoad]:
    begun = {state.run_id for state in draft.states if state.attempts} - draft.rerun

    def load(run_id: str) -> RunLoad:
        done = timings.epochs_done(draft.sweep.run_folder(run_id, draft.plan)) if run_id in begun else 0
        return RunLoad(epochs=max(0, draft.runs[run_id].config.train.epochs - done), timing=known.of_run(run_id))

    tasks = []
    for batch in draft.batches:
        shape = batch.shape
        for pack in batch.packs:
            threads = max(draft.runs[run_id].config.train.threads for run_id in pack)
            cores = shape.processes * (threads if draft.is_local else draft.site.cpus_per_rank) * shape.nodes
            runs = tuple(map(load, pack))
            tasks.append(TaskLoad(runs=runs, at_a_time=shape.at_a_time, gpus=shape.gpus * shape.nodes, cores=cores))
    return tasks


def _gpu_word(draft: "Draft") -> str | None:
    """The GPU type that the site asks for, if it asks for one."""
    if draft.site.gpu_type:
        return draft.site.gpu_type
    found = re.fullmatch(r"([a-z]{1,3}\d{2,4}s?)", draft.site.constraint or "")
    return found[1] if found else None


# --- arithmetic ---


def _run_seconds(run: RunLoad) -> Range | None:
    return None if run.timing is None else (run.epochs * run.timing.low_s, run.epochs * run.timing.high_s)


def _span(ranges: Sequence[Range]) -> Range | None:
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


def _longest(ranges: Sequence[Range]) -> Range | None:
    return (max(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


def _requeues(task_s: Range | None, walltime_s: float | None, signal_delay_s: float) -> tuple[int, int] | None:
    """How often the longest task runs out of its walltime."""
    if task_s is None or walltime_s is None:
        return None
    useful = max(60.0, walltime_s - signal_delay_s - LOST_OF_A_START_S)
    low, high = (max(0, math.ceil(seconds / useful) - 1) for seconds in task_s)
    return low, high


def _total(ranges: Sequence[Range], parallel: int | None) -> Range | None:
    """Until the last task ends, at so many tasks at a time."""
    if not parallel or not ranges:
        return None
    longest = _longest(ranges)
    assert longest is not None
    return max(longest[0], sum(low for low, _ in ranges) / parallel), max(longest[1], sum(high for _, high in ranges) / parallel)


def _hours(loads: Sequence[tuple[int, Range]]) -> Range | None:
    low, high = (sum(units * seconds[end] for units, seconds in loads) / 3600 for end in (0, 1))
    return (low, high) if high else None


def _disk(timed: Sequence[RunLoad], runs: int) -> float | None:
    """Bytes of all runs, those that were not seen taken for an average one."""
    sizes = [size for run in timed if (size := _run_bytes(run)) is not None]
    return sum(sizes) / len(sizes) * runs if sizes else None


def _run_bytes(run: RunLoad) -> float | None:
    assert run.timing is not None
    text = BYTES_OF_AN_EPOCH * run.epochs
    if run.timing.checkpoint_bytes is None:
        return run.timing.bytes_on_disk
    return max(run.timing.bytes_on_disk or 0.0, KEPT_CHECKPOINTS * run.timing.checkpoint_bytes + text)


def _inodes(runs: Sequence[RunLoad], requeues: tuple[int, int] | None) -> int:
    starts = 1 + (requeues[1] if requeues else 0)
    return sum(max((run.timing.files or 0) if run.timing else 0, FILES_OF_A_RUN + FILES_OF_A_START * starts) for run in runs)


# --- words ---


def _time_text(found: Estimate) -> str | None:
    if found.epoch_s is None:
        how = "--calibrate times some steps" if found.can_calibrate else "an earlier run of the program would tell"
        return f"not known: {how}" if found.runs else None
    parts = [f"{between(found.epoch_s, duration)} an epoch (from {', '.join(found.sources[:2])})"]
    if found.run_s is not None and found.run_s[1]:
        parts.append(f"{between(found.run_s, duration)} a run")
    if found.unknown:
        parts.append(f"{found.unknown} of {found.runs} runs not known")
    return "; ".join(parts)


def _tasks_text(found: Estimate) -> str | None:
    if found.task_s is None:
        return None
    parts = [f"the longest takes {between(found.task_s, duration)}"]
    if found.requeues is not None and found.walltime_s is not None:
        limit = duration(found.walltime_s)
        parts[0] += f" of {limit} walltime" if not found.requeues[1] else f" at {limit} of walltime: {_requeues_text(found.requeues)}"
    if found.total_s is not None and found.parallel:
        parts.append(f"all of them {between(found.total_s, duration)}, {found.parallel} at a time")
    return "; ".join(parts)


def _requeues_text(requeues: tuple[int, int]) -> str:
    low, high = requeues
    return f"{'about ' if low == high else f'{low} to '}{high} requeue{'s' if high != 1 else ''}"


def _use_text(found: Estimate) -> str | None:
    hours, unit = (found.gpu_hours, "GPU-hours") if found.gpu_hours else (found.core_hours, "core-hours")
    if hours is None:
        return None
    least = "at least " if found.unknown else ""
    if hours[1] < 0.15:
        return f"{least}less than 0.1 {unit}" if not found.unknown else None
    return f"{least}{between(hours, number)} {unit}"


def _disk_text(found: Estimate) -> str | None:
    return f"about {size(found.disk_bytes)}, {number(found.inodes or 0)} files" if found.disk_bytes else None


def between(values: Range, show: "object") -> str:
    """ "about 12 s", or "10 s to 14 s" where the ends differ by more than a quarter."""
    assert callable(show)
    low, high = show(values[0]), show(values[1])
    if low == high or values[1] <= 1.25 * values[0]:
        return f"about {show((values[0] + values[1]) / 2)}"
    return f"{low} to {high}"


def duration(seconds: float) -> str:
    """Two digits at most: "0.12 s", "45 s", "12 min", "3.5 h", "4.2 days"."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (72 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{number(seconds / unit)} {name}"
    return f"{number(seconds / 86400)} days"


def size(bytes_: float) -> str:
    """Two digits at most: "4.2 GB"."""
    for limit, unit, name in ((1e6, 1e3, "kB"), (1e9, 1e6, "MB"), (1e12, 1e9, "GB")):
        if bytes_ < limit:
            return f"{number(bytes_ / unit)} {name}"
    return f"{number(bytes_ / 1e12)} TB"


def number(value: float) -> str:
    """Two digits that count: 0.012, 1.2, 12, 1,200."""
    if value <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(value))
    rounded = round(value, digits)
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:.{max(0, digits)}f}".rstrip("0").rstrip(".")


def _moment(text: str, now: float) -> str:
    """Slurm's time as people say it: "now", "today 14:30", "2026-03-01 14:30"."""
    then = time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    if then <= now + 60:
        return "now"
    is_today = time.strftime("%Y-%m-%d", time.localtime(now)) == text[:10]
    return f"today {text[11:16]}" if is_today else f"{text[:10]} {text[11:16]}"
