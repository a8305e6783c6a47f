"""How far each run is, as rows that status prints, that a local launch redraws, and that a log gets as plain lines.

Reads run folders (journal, run.yaml) through hpc.states; decides nothing. One row a run, also for those that never started.
"""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpc.paths import Submission
from hpc.plan_view import plain_table, state_style
from hpc.spent import Spent, spent
from hpc.states import RunState, label
from seresnet import journal
from seresnet.errors import ConfigError
from seresnet.journal import EpochRecord
from seresnet.run_folder import RunFolder, RunHead, TrainResult

#: In a log a run gets a line when its state changes, and for its epochs at most this often.
_LINE_EVERY_S = 10.0
_LOOK_S = 1.0
#: Epochs over which the pace is taken.
_PACE_EPOCHS = 10


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """A run's state and how far its journal reaches."""

    run: RunState
    epoch: int
    epochs: int | None  # None before run.yaml is written
    test_top1_pct: float | None  # of the last epoch
    epoch_s: float | None  # median seconds of the last ten epochs
    val_top1_pct: float | None = None  # of the last epoch; None without held-out images
    spent: Spent | None = None
    images_per_s: float | None = None  # of the last epoch, as the next
    matmul_share_pct: float | None = None  # see EpochRecord; None where an older version trained
    trend: tuple[float, ...] = ()  # accuracy of the last epochs, on validation where there is one; only where it was asked for
    tier: str = "T1"  # T2: trained on another machine kind, world size or version than it was started with

    @property
    def eta_s(self) -> float | None:
        """Seconds of training left at the pace seen; None when nothing runs or nothing is known."""
        if self.run.state != "running" or self.epochs is None or self.epoch_s is None:
            return None
        return max(0, self.epochs - self.epoch) * self.epoch_s

    def line(self) -> str:
        """One plain line for a log."""
        parts = [f"{self.run.slug}: {self.run.state}"]
        if self.epoch:
            parts.append(f"epoch {self.epoch}/{self.epochs or '?'}, test {percent(self.test_top1_pct)}")
        if self.eta_s is not None:
            parts.append(f"{duration(self.eta_s)} left")
        if self.run.state in ("failed", "cancelled", "lost") and self.run.ending:
            parts.append(f"{self.run.ending}: {one_line(self.run.reason)}")
        return ", ".join(parts)


def progress_of(run: RunState, by_job: Mapping[str, Submission] | None = None, trend_epochs: int = 0) -> RunProgress:
    """Read the end of a run's journal; a run that never started has epoch 0. by_job: see hpc.spent. Raises nothing for what files hold."""
    head = _head(run.folder.path, _stamp(run.folder.run_yaml))
    found = _last_records(run, max(_PACE_EPOCHS, trend_epochs))
    records = found[-_PACE_EPOCHS:]
    last = records[-1] if records else None
    result = _result(run) if last is None and run.state == "finished" else None  # of a program that keeps no journal
    return RunProgress(
        run=run,
        epoch=last.epoch if last else result.epochs if result else 0,
        epochs=head.epochs if head else None,
        test_top1_pct=last.test_top1_pct if last else result.last_test_top1_pct if result else None,
        val_top1_pct=last.val_top1_pct if last and head and head.val_images else None,
        epoch_s=statistics.median(record.seconds for record in records) if records else None,
        images_per_s=last.images_per_s if last else None,
        matmul_share_pct=last.matmul_share_pct if last else None,
        spent=spent(run, head, by_job or {}),
        trend=tuple(_accuracy(record) for record in found[-trend_epochs:]) if trend_epochs else (),
        tier=head.tier if head else "T1",
    )


def progress_table(console: Console, rows: Sequence[RunProgress]) -> Table:
    """One row a run, for the machine on which all of them run."""
    table = plain_table(console)
    table.add_column("run", overflow="fold", min_width=12)
    table.add_column("state", no_wrap=True)
    for head in ("epoch", "test %", "left"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        epoch = f"{row.epoch}/{row.epochs}" if row.epochs else str(row.epoch)
        left = "-" if row.eta_s is None else duration(row.eta_s)
        state = Text(label(row.run.state, row.run.ending), style=state_style(row.run.state))
        table.add_row(Text(row.run.slug), state, epoch, percent(row.test_top1_pct), left)
    return table


class LineLog:
    """Plain lines for a log: what changed since the last look, not everything each time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, tuple[str, int]] = {}
        self._when: dict[str, float] = {}

    def update(self, rows: Sequence[RunProgress]) -> None:
        """Print a line for each run whose state changed, or whose epoch did and whose last line is old enough."""
        now = time.monotonic()
        is_first = not self._told
        for row in rows:
            fact = (row.run.state, row.epoch)
            # What was over or is not yet begun at the first look is no news: the plan has just said it.
            is_news = not is_first or row.run.state in ("running", "failed")
            state, epoch = self._told.get(row.run.run_id, ("", 0))
            is_due = epoch != row.epoch and now - self._when.get(row.run.run_id, -_LINE_EVERY_S) >= _LINE_EVERY_S
            if state == row.run.state and not is_due:
                continue
            if is_news and row.run.state not in ("queued", "waiting"):
                self._console.print(Text(f"{time.strftime('%H:%M:%S')} {row.line()}"))
                self._when[row.run.run_id] = now
            self._told[row.run.run_id] = fact


@contextlib.contextmanager
def showing(console: Console) -> Iterator[Callable[[Callable[[], Sequence[RunProgress]], bool], None]]:
    """A function that takes a look now and then (or at once, when told) and shows it: redrawn on a terminal, else as lines.

    It never raises for what a look raises, but says so once: one bad file among a sweep's must not end the runs that are watched.
    """
    next_look, is_warned = 0.0, False
    lines = LineLog(console)
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:

        def show(look: Callable[[], Sequence[RunProgress]], at_once: bool) -> None:
            nonlocal next_look, is_warned
            if not at_once and time.monotonic() < next_look:
                return
            try:
                rows = look()
            except Exception as error:
                next_look = time.monotonic() + _LINE_EVERY_S
                if not is_warned:
                    console.print(Text(f"progress cannot be shown, what runs goes on: {error}"), soft_wrap=True)
                is_warned = True
                return
            # Reading 1,000 journals takes a while: look less often rather than spend the cores that train.
            next_look = time.monotonic() + max(_LOOK_S, len(rows) * 0.02)
            if live is None:
                lines.update(rows)
            else:
                live.update(progress_table(console, rows), refresh=True)

        yield show


def duration(seconds: float) -> str:
    """For example "45 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def one_line(reason: str | None) -> str:
    """A reason without line breaks, cut where it would fill a screen."""
    text = " ".join((reason or "no reason recorded").split())
    return text if len(text) <= 300 else text[:297] + "..."


def percent(value: float | None) -> str:
    """Two digits, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def _accuracy(record: EpochRecord) -> float:
    return record.test_top1_pct if record.val_top1_pct is None else record.val_top1_pct


def _last_records(run: RunState, count: int) -> list[EpochRecord]:
    try:
        return journal.read_last(run.folder, count)
    except OSError:
        return []


def _result(run: RunState) -> TrainResult | None:
    with contextlib.suppress(ConfigError, OSError):
        return TrainResult.read(run.folder, is_whole=False)
    return None


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=4096)
def _head(folder: Path, stamp: int) -> RunHead | None:
    """What run.yaml asks for; cached by the file's time stamp, because a watch looks again and again."""
    try:
        return RunHead.read(RunFolder(path=folder))
    except ConfigError:
        return None
