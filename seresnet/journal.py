"""The record of a run's epochs: one JSON line an epoch and generation, merged on reading by (step, highest generation).

Appending is the writer's business, publishing is hpc.mirror's. One invariant: a torn last line loses that line and no other.
"""

import heapq
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from seresnet.durable import DISK, Files, canonical_json, parse_json, write_durably
from seresnet.record_types import is_finite, is_short, plain_kinds
from seresnet.run_folder import RunFolder

#: Bytes that read_last takes at a time: some seven lines.
_BLOCK = 4096
_ABSENT = object()
#: The key of a line's checksum, over the canonical JSON of the others. Lines of other programs may lack it.
SUM = "crc32"


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One finished and evaluated epoch. Losses are means a sample; None where the value was not finite or not measured."""

    epoch: int  # from 1
    step: int  # batches consumed at its end
    generation: int
    lr: float
    train_loss: float | None
    train_top1_pct: float
    val_loss: float | None
    val_top1_pct: float | None
    test_loss: float | None
    test_top1_pct: float
    skipped_steps: int  # optimiser steps that fp16 scaling skipped
    seconds: float  # training and evaluation; after a resume within the epoch, what the last attempt spent on it
    images_per_s: float | None  # training only; None where an attempt only evaluated
    time: float  # unix time at its end
    # From here on None where an older version wrote the line. After a resume within the epoch: of the last attempt's part of it.
    train_seconds: float | None = None  # rank 0, saves within the epoch included; None where it was only evaluated
    eval_seconds: float | None = None  # rank 0; validation and test
    data_wait_s: float | None = None  # steps waited for their batch; of the rank that waited longest
    checkpoint_stall_s: float | None = None  # rank 0, which alone saves: the copy, handing it over, waiting for the writer
    tflops: float | None = None  # TFLOP/s of all ranks together: multiply-adds x 2 x 3 (forward, backward) x images / train_seconds
    matmul_share_pct: float | None = None  # tflops in % of what a large matmul reached on rank 0's device, x ranks
    memory_peak_mib: float | None = None  # tensors on the GPU in this epoch; on a CPU the process so far; of the rank that held most


#: What a line of an older version, which lacks the field, is taken to say; _ABSENT where no version lacks it.
_DEFAULTS = {key.name: _ABSENT if key.default is MISSING else key.default for key in fields(EpochRecord)}


def append(folder: RunFolder, record: EpochRecord, files: Files = DISK) -> None:
    """Write one line; durable when this returns. Raises OSError: then the line may be there, half of it, or nothing."""
    values = asdict(record)
    line = json.dumps({**values, SUM: _checksum(values)}, allow_nan=False) + "\n"
    path = folder.journal(record.generation)
    with files.append(path) as file:
        # A line torn by a kill or a full disk must not swallow this one: start on a line of our own.
        if _is_within_line(file):
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        files.sync(file)
    # Each time, and not only for a new file: who made it may have been stopped, or told EIO, before its name was durable.
    files.sync_folder(path.parent)


def drop_after(folder: RunFolder, step: int, generation: int, files: Files = DISK) -> None:
    """Forget the epochs that end after this step: they were trained from a state that is not trusted any more.

    generation: of the attempt that says so. A newer one's lines are not its to drop: it may be a zombie that does not know yet.
    """
    for name in files.names(folder.metrics):
        number = name[1 : -len(".jsonl")]
        if not name.endswith(".jsonl") or (number.isdigit() and int(number) > generation):
            continue
        lines = files.read(folder.metrics / name).splitlines(keepends=True)
        left = [line for line in lines if (record := parse(line)) is None or record.step <= step]
        if len(left) < len(lines):
            write_durably(folder.metrics / name, b"".join(left), files)


def read(folder: RunFolder, files: Files = DISK) -> list[EpochRecord]:
    """All epochs in order, each once: of several records of one step the highest generation's, of those the last."""
    return read_noting(folder, files)[0]


def read_noting(folder: RunFolder, files: Files = DISK) -> tuple[list[EpochRecord], dict[str, int]]:
    """What read gives, and the number of torn or foreign lines of each file that has any, by its name."""
    merged: dict[int, EpochRecord] = {}
    bad: dict[str, int] = {}
    for name in names(folder, files):
        lines = [line for line in files.read(folder.metrics / name).splitlines() if line.strip()]
        records = [record for record in map(parse, lines) if record is not None]
        _merge(merged, records)
        if len(records) < len(lines):
            bad[name] = len(lines) - len(records)
    return [merged[step] for step in sorted(merged)], bad


def read_last(folder: RunFolder, count: int) -> list[EpochRecord]:
    """The last `count` of what read gives, from the ends of the files: a line of status must not cost 900 lines of journal.

    Every file is taken to be in the order of its steps, as one attempt writes it.
    """
    merged: dict[int, EpochRecord] = {}
    for name in reversed(names(folder)):
        # Of equal generations the later line wins within a file; across files the higher generation does, in whatever order.
        found: dict[int, EpochRecord] = {}
        for record in filter(None, map(parse, _lines_backwards(folder.metrics / name))):
            known = found.get(record.step)
            if known is None or record.generation > known.generation:
                found[record.step] = record
            # Once a file falls below what newer ones have given, the rest of it is older still.
            if len(found) > count or (len(merged) >= count and record.step < min(heapq.nlargest(count, merged))):
                break
        merged = {**found, **{step: known for step, known in merged.items() if step not in found or _is_at_least(known, found[step])}}
    return [merged[step] for step in sorted(merged)[-count:]]


def parse(line: bytes) -> EpochRecord | None:
    """The record of one line; None if it was torn by a kill, or is of somebody else's making."""
    try:
        value = parse_json(line)
        # A power loss can garble a line that was not synced yet so that it still reads well (seen, on the simulated disk).
        if not isinstance(value, dict) or (SUM in value and value.pop(SUM) != _checksum(value)):
            return None
    except ValueError:  # also for a number that is none
        return None
    kept = {}
    for name, kinds in plain_kinds(EpochRecord):
        item = value.get(name, _DEFAULTS[name])
        if type(item) not in kinds or (type(item) is float and not is_finite(item)) or (type(item) is int and not is_short(item)):
            return None
        kept[name] = item
    return EpochRecord(**kept)


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(canonical_json(values).encode())


def _merge(merged: dict[int, EpochRecord], records: Iterable[EpochRecord]) -> None:
    for record in records:
        known = merged.get(record.step)
        if known is None or _is_at_least(record, known):
            merged[record.step] = record


def _is_at_least(record: EpochRecord, other: EpochRecord) -> bool:
    return record.generation >= other.generation


def names(folder: RunFolder, files: Files = DISK) -> list[str]:
    """The journal's files, lowest generation first; those that are no generation's come before."""
    found = [name for name in files.names(folder.metrics) if name.startswith("g") and name.endswith(".jsonl")]
    return sorted(found, key=lambda name: int(stem) if (stem := name[1 : -len(".jsonl")]).isdigit() else -1)


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """The lines of a file, last one first, read in blocks from its end."""
    with open(path, "rb") as file:
        place = file.seek(0, os.SEEK_END)
        rest = b""
        while place > 0:
            size = min(_BLOCK, place)
            place -= size
            file.seek(place)
            first, *lines = (file.read(size) + rest).splitlines(keepends=True)
            # The first line of a block may have begun in the block before.
            rest = first
            yield from reversed(lines)
        if rest:
            yield rest


def _is_within_line(file: BinaryIO) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"
