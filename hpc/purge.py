"""What a site will soon remove of a sweep, because nobody has opened it for too long: three files a run at most, never from all.

Sites count from the last access of each file. Status itself opens run.yaml, result.json, the newest claim and the journal's end, so what
it looks at are files that it does not open. One invariant: a look changes no file's times.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc.paths import Submission, SweepFolder
from hpc.states import RunState
from seresnet.durable import DISK

#: Times of access change by days: a watch need not look oftener.
LOOK_EVERY_S = 3600.0
WARN_DAYS = 14
_SHOWN = 4
_DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class _Due:
    what: str
    time: float  # when it may be removed, unix


def warnings(sweep: SweepFolder, states: Sequence[RunState], submissions: Sequence[Submission], now: float) -> list[str]:
    """A line where something goes within WARN_DAYS; none where the site of the last submission removes nothing, or is not here."""
    site = next((entry.site for entry in reversed(submissions) if entry.site.get("purge_days")), None)
    days = site.get("purge_days") if site else None
    if site is None or type(days) is not int or not _is_here(sweep, site.get("runs_dir")):
        return []
    files = [("the sweep's own files", sweep.sweep_yaml), *((state.slug, path) for state in states for path in _sample(state))]
    first: dict[str, float] = {}
    for what, path in files:
        if (used := _last_use(path)) is not None:
            first[what] = min(first.get(what, used + days * _DAY_S), used + days * _DAY_S)
    due = sorted((_Due(what=what, time=when) for what, when in first.items() if when - now <= WARN_DAYS * _DAY_S), key=lambda due: due.time)
    return [_line(sweep, str(site.get("name")), days, due, now)] if due else []


def _is_here(sweep: SweepFolder, runs_dir: object) -> bool:
    """Whether the sweep lies on the file system of which the site speaks: it may have been moved away, or copied to a laptop."""
    if not isinstance(runs_dir, str):
        return True
    try:
        return os.stat(os.path.expandvars(runs_dir)).st_dev == sweep.path.stat().st_dev  # noqa: PTH116
    except OSError:
        return False


def _sample(state: RunState) -> Iterator[Path]:
    """Files of a run that only people, and starts of it, open."""
    folder = state.folder
    yield folder.log
    yield folder.environment(1)
    try:
        yield from [folder.checkpoints / name for name in DISK.names(folder.checkpoints) if not name.startswith(".") and name != "bad"][:1]
    except OSError:
        return


def _last_use(path: Path) -> float | None:
    """Of access and change the later one: where times of access are not kept, changing is all that is known."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return max(facts.st_atime, facts.st_mtime)


def _line(sweep: SweepFolder, site: str, days: int, due: Sequence[_Due], now: float) -> str:
    named = ", ".join(f"{each.what} {_when(each.time, now)}" for each in due[:_SHOWN])
    more = f", and {len(due) - _SHOWN} more" if len(due) > _SHOWN else ""
    remedy = f"python -m hpc.archive {sweep.path} --output ELSEWHERE/{sweep.path.resolve().name}.tar"
    return f"{site} removes what nobody has opened for {days} days: {named}{more}. Keep it: {remedy}"


def _when(when: float, now: float) -> str:
    return "any time now" if when <= now else f"from {time.strftime('%a %d %b', time.localtime(when))} on"
