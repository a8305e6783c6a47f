"""`hpc.status --watch`: the same look again and again, redrawn on a terminal, as lines of what changed elsewhere.

One invariant: the scheduler is asked no more often than every ASK_S, or the site's status_every_s where that is longer; a site that
names it means all looks, so files are then read no more often either.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from hpc import status_look
from hpc.paths import SweepFolder
from hpc.plan_view import make_console
from hpc.progress_view import LineLog
from hpc.states import OWNED
from hpc.status_look import Look, Memory
from hpc.status_view import render
from seresnet.errors import ToolkitError

ASK_S = 15.0
LOOK_S = 5.0
#: Of accuracy, as a column beside each run.
TREND_EPOCHS = 16
#: Of the time a watch may spend on looking: login nodes are shared.
_SHARE = 0.1


def print_look(look: Look) -> None:
    """One look on stdout."""
    console = make_console()
    # Folding by rich costs more than all the rest: lines go out as they are, the terminal folds those that are too long.
    console.print(render(look, console.width, is_ascii=not console.is_terminal), soft_wrap=True)


def watch(sweep: SweepFolder, console: Console | None = None, sleep: Callable[[float], None] = time.sleep) -> Look:
    """Show until nobody has a run any more, or Ctrl-C; returns the last look. Raises ConfigError if not even the first succeeds."""
    console, memory = console or make_console(), Memory(trend_epochs=TREND_EPOCHS)
    look = status_look.take(sweep, memory)
    if not console.is_terminal:
        return _as_lines(look, memory, console, sleep)
    # The alternate screen would take the last state away with it.
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:

        def draw(look: Look) -> None:
            live.update(render(look, console.width, is_ascii=False, height=console.height - 1), refresh=True)

        look = _until_over(look, memory, draw, sleep)
    console.print(render(look, console.width, is_ascii=False), soft_wrap=True)
    return look


def _as_lines(look: Look, memory: Memory, console: Console, sleep: Callable[[float], None]) -> Look:
    lines = LineLog(console)

    def say(look: Look) -> None:
        lines.update(look.rows)
        console.file.flush()

    look = _until_over(look, memory, say, sleep)
    console.print(render(look, console.width, is_ascii=True), soft_wrap=True)
    return look


def _until_over(look: Look, memory: Memory, show: Callable[[Look], None], sleep: Callable[[float], None]) -> Look:
    """Show one look after another until nobody has a run any more, or Ctrl-C; the last of them."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            show(look)
            if not any(row.run.state in OWNED for row in look.rows):
                break
            look = _next(look, memory, sleep)
    return look


def _next(look: Look, memory: Memory, sleep: Callable[[float], None]) -> Look:
    """Wait as long as is due and look again; where that fails (a file system that hangs, a torn plan) the last look stays, with a note."""
    rule_s = max((_number(entry.site.get("status_every_s")) for entry in look.submissions), default=0.0)
    sleep(max(LOOK_S, rule_s, memory.took_s / _SHARE))
    began = time.monotonic()
    try:
        return status_look.take(look.sweep, memory, max(ASK_S, rule_s))
    except (ToolkitError, OSError) as error:
        return replace(look, notes=(f"the last look failed, this is from {time.strftime('%H:%M:%S', time.localtime(look.time))}: {error}",))
    finally:
        memory.took_s = time.monotonic() - began


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
