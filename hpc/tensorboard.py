"""The epochs of every run as TensorBoard's event files, from the record: `python -m hpc.collect SWEEP --tensorboard DIR`.

Written with TensorBoard's own record writer and messages, without torch, and never while a run trains: the journal is the record. One
invariant: a run has one file with one name, whose bytes depend on its record alone, so that exporting again doubles nothing.
"""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seresnet.durable import write_durably
from seresnet.errors import ConfigError

if TYPE_CHECKING:
    from hpc.gather import Gathered, RunRow

#: Column of the journal -> where TensorBoard shows it.
TAGS = {
    "test_top1_pct": "top1_pct/test",
    "val_top1_pct": "top1_pct/val",
    "train_top1_pct": "top1_pct/train",
    "test_loss": "loss/test",
    "val_loss": "loss/val",
    "train_loss": "loss/train",
    "lr": "optim/lr",
    "skipped_steps": "optim/skipped_steps",
    "seconds": "speed/seconds",
    "images_per_s": "speed/images_per_s",
    "tflops": "speed/tflops",
    "matmul_share_pct": "speed/matmul_share_pct",
    "memory_peak_mib": "speed/memory_peak_mib",
}


def export(gathered: "Gathered", folder: Path) -> list[Path]:
    """Write one event folder a run that has epochs; their folders. Raises ConfigError where tensorboard is not installed, and OSError."""
    _refuse_missing()
    slugs = Counter((row.sweep, row.slug) for row in gathered.rows)
    written = []
    for row in gathered.rows:
        if not len(row.history):
            continue
        # After an edit two runs of a sweep may have one name.
        name = row.slug if slugs[row.sweep, row.slug] == 1 else f"{row.slug}-{row.run_id}"
        place = folder / row.sweep / name
        place.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads whatever has this word in its name; writers of its own put the time and the host behind it.
        path = place / f"events.out.tfevents.0.{row.run_id}"
        write_durably(path, events(row))
        written.append(place)
    return written


def events(row: "RunRow") -> bytes:
    """The bytes of one run's event file: a value for each epoch in which it was measured, the step is the epoch."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in _events(row):
        writer.write(event.SerializeToString(deterministic=True))
    return buffer.getvalue()


def _events(row: "RunRow") -> Iterator[Any]:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    epochs, times = row.history.column("epoch"), row.history.column("time")
    columns = {tag: row.history.column(key) for key, tag in TAGS.items()}
    yield Event(wall_time=float(times[0]), file_version="brain.Event:2")
    for place in range(len(row.history)):
        values = {tag: float(column[place]) for tag, column in columns.items() if not np.isnan(column[place])}
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        yield Event(wall_time=float(times[place]), step=int(epochs[place]), summary=summary)


def _refuse_missing() -> None:
    try:
        from tensorboard.compat.proto import event_pb2  # noqa: F401
        from tensorboard.summary.writer import record_writer  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--tensorboard: {error.name} is not installed here. `pip install 'tensorboard>=2.16'` into this environment adds it."
        ) from error
