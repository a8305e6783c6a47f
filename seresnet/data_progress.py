"""How far a preparation is: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from seresnet.archives import Report

#: Seconds between two lines of one stage in a log.
LINE_EVERY_S = 5.0


def silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


@contextmanager
def shown(stream: TextIO | None = None) -> Iterator[Report]:
    """A Report that writes to stream (default stderr): a bar if it is a terminal, else lines."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield line_report(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream)) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield report


def line_report(stream: TextIO) -> Report:
    """A line when a stage starts, every LINE_EVERY_S seconds, and when it is complete."""
    last: dict[str, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage in last and now - last[stage] < LINE_EVERY_S and done != total:
            return
        last[stage] = now
        percent = f" of {total:,} ({100 * done // total} %)" if total else ""
        print(f"{stage}: {done:,}{percent}", file=stream, flush=True)

    return report
