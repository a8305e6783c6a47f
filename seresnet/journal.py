"""The record of a run's epochs: one JSON line an epoch and generation, merged on reading by (step, highest generation).

Appending is the writer's business, publishing is hpc.mirror's. One invariant: a torn last line loses that line and no other.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from seresnet.durable import fsync_folder
from seresnet.record_types import misfits
from seresnet.run_folder import RunFolder


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


def append(folder: RunFolder, record: EpochRecord) -> None:
    """Write one line and fsync it. Raises OSError."""
    line = json.dumps(asdict(record), allow_nan=False) + "\n"
    path = folder.journal(record.generation)
    with open(path, "ab") as file:
        is_new = file.tell() == 0
        # A torn line of a killed write must not swallow this one: start on a line of our own.
        if not is_new and not _ends_with_newline(path):
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        fsync_folder(path.parent)


def read(folder: RunFolder) -> list[EpochRecord]:
    """All epochs in order, each once: of several records of one step the highest generation's, of those the last."""
    merged: dict[int, EpochRecord] = {}
    for path in sorted(folder.metrics.glob("g*.jsonl"), key=lambda path: int(path.stem[1:]) if path.stem[1:].isdigit() else -1):
        for record in filter(None, map(parse, path.read_bytes().splitlines())):
            known = merged.get(record.step)
            if known is None or record.generation >= known.generation:
                merged[record.step] = record
    return [merged[step] for step in sorted(merged)]


def parse(line: bytes) -> EpochRecord | None:
    """The record of one line; None if it was torn by a kill, or is of somebody else's making."""
    try:
        value = json.loads(line)
        record = EpochRecord(**{key.name: value[key.name] for key in fields(EpochRecord)})
    except (ValueError, KeyError, TypeError):
        return None
    return None if misfits(record) else record


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
