"""What a person sees of a running epoch: a bar on a terminal, nothing in a log, where the line at an epoch's end says it all."""

import sys
from typing import Any


class EpochBar:
    """A bar over the steps of one epoch; silent unless standard output is a terminal and this is rank 0."""

    def __init__(self, epoch: int, epochs: int, first_step: int, steps: int, *, visible: bool) -> None:
        """epoch counts from 1; first_step is where a resumed epoch starts."""
        self._bar: Any = None
        if visible and sys.stdout.isatty():
            self._bar, self._task = _start(f"epoch {epoch}/{epochs}", first_step, steps)

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def close(self) -> None:
        """Take the bar off the screen; the epoch's line replaces it."""
        if self._bar is not None:
            self._bar.stop()


def _start(title: str, done: int, total: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
    bar.start()
    return bar, bar.add_task(title, total=total, completed=done)
