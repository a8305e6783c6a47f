"""What the page says about single runs: a section each, and those that are not in the numbers.

Words and numbers only; the template lays them out. One invariant: a run that is left out of the page is counted in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hpc import settings
from hpc.comparison import Comparison
from hpc.gather import RunRow
from hpc.spans import Span
from hpc.states import label

#: Sections and rows of a page. Of more runs it says how many are not shown; runs.csv has them all.
MOST_RUNS = 400

_UNKNOWN = "-"


@dataclass(frozen=True, kw_only=True)
class AttemptLine:
    number: int
    started: str
    lasted: str
    ending: str
    where: str  # job and host
    hours: str  # of all its devices


@dataclass(frozen=True, kw_only=True)
class Change:
    """One key of a run that the baseline has otherwise."""

    key: str
    value: str
    baseline: str


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """One run. facts: (name, value) of what it ran on and what it is."""

    slug: str
    run_id: str
    state: str
    is_finished: bool
    arms: tuple[str, ...]
    seed: str
    epochs: str
    accuracy: str
    reason: str
    is_baseline: bool
    changes: tuple[Change, ...] | None  # None where a config cannot be read
    attempts: tuple[AttemptLine, ...]
    facts: tuple[tuple[str, str], ...]


def sections(comparison: Comparison) -> tuple[RunSection, ...]:
    """In the order of the plan, finished or not."""
    baseline = {row.seed: settings.flat(row.config) for row in reversed(comparison.gathered.of_arm(comparison.baseline)) if row.config}
    several = len({row.sweep for row in comparison.gathered.rows}) > 1
    return tuple(_section(row, comparison.baseline, baseline, several) for row in comparison.gathered.rows[:MOST_RUNS])


def missing(comparison: Comparison) -> tuple[RunSection, ...]:
    """Those of the sections' runs, and of any after them, that are not finished."""
    rows = [row for row in comparison.gathered.rows if row.state != "finished"][:MOST_RUNS]
    return tuple(_section(row, comparison.baseline, {}, False) for row in rows)


def _section(row: RunRow, baseline: str, configs: Mapping[int | None, settings.Settings], several: bool) -> RunSection:
    return RunSection(
        slug=row.slug,
        run_id=row.run_id,
        state=label(row.state, row.ending),
        is_finished=row.state == "finished",
        arms=row.arms,
        seed=_UNKNOWN if row.seed is None else str(row.seed),
        epochs=f"{row.epochs_done} of {_UNKNOWN if row.epochs_planned is None else row.epochs_planned}",
        accuracy=f"{row.result.last_test_top1_pct:.2f} %" if row.result else "",
        reason=row.reason or ("" if row.state in ("finished", "running") else row.ending or ""),
        is_baseline=baseline in row.arms,
        changes=_changes(row, configs),
        attempts=tuple(map(_attempt, row.spans)),
        facts=tuple((name, value) for name, value in _facts(row, several).items() if value),
    )


def _changes(row: RunRow, configs: Mapping[int | None, settings.Settings]) -> tuple[Change, ...] | None:
    """Against the baseline's run with the same seed, else its first; the seed itself is no change."""
    reference = configs.get(row.seed) or next(iter(configs.values()), None)
    if not row.config or reference is None:
        return None
    own = settings.flat(row.config)
    keys = [key for key in {**reference, **own} if key != settings.SEED and own.get(key) != reference.get(key)]
    return tuple(Change(key=key, value=settings.text(own.get(key)), baseline=settings.text(reference.get(key))) for key in keys)


def _attempt(span: Span) -> AttemptLine:
    known = span.started is not None and span.ended is not None
    return AttemptLine(
        number=span.generation,
        started=_UNKNOWN if span.started is None else f"{datetime.fromtimestamp(span.started, UTC):%Y-%m-%d %H:%M}",
        lasted=_duration((span.ended or 0) - (span.started or 0)) if known else _UNKNOWN,
        ending=span.ending or "no record of its end",
        where=", ".join(part for part in (f"job {span.job}" if span.job else "", span.host or "") if part) or _UNKNOWN,
        hours=f"{span.device_hours:.2f}" if known else _UNKNOWN,
    )


def _duration(seconds: float) -> str:
    minutes = round(max(0.0, seconds) / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min" if minutes else "under a minute"


def _facts(row: RunRow, several: bool) -> dict[str, str]:
    """Of a run without a result only what its folder says anyway."""
    folder = f"{row.sweep}/" if several else ""
    unit = {"gpu": "GPU-hours", "cpu": "core-hours"}.get(row.device_kind or "", "device-hours")
    speed = row.history.seconds_per_epoch
    own = {"folder": f"{folder}{row.slug}-{row.run_id}", "run id": row.run_id, unit: f"{row.device_hours:.2f}" if row.spans else ""}
    own["seconds an epoch"] = "" if speed is None else f"{speed:.3g}"
    return own | (_result_facts(row.result) if row.result else {})


def _result_facts(result: Any) -> dict[str, str]:
    chosen = result.val_chosen_epoch
    return {
        "test accuracy": f"{result.last_test_top1_pct:.2f} % at the last epoch"
        + (f", {result.val_chosen_test_top1_pct:.2f} % at epoch {chosen}, chosen on validation" if chosen else "")
        + f"; best on test {result.best_on_test_top1_pct:.2f} % at epoch {result.best_on_test_epoch}",
        "parameters": "" if result.parameters is None else f"{result.parameters:,}",  # a program may not say
        "device": f"{result.device}, {result.world_size} rank{'s' if result.world_size > 1 else ''}, amp {result.amp}",
        "tier": result.tier,
        "data": result.data_name + (f", digest {result.data_digest}" if result.data_digest else ""),
        "commit": result.commit or "",
        "code digest": result.code_digest,
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "state digest": result.state_digest,
        "began as": str(result.parent) if result.parent else "",
    }


def note_of_rest(shown: int, of: Sequence[object]) -> str:
    """What the page says in place of what it leaves out."""
    return f"{shown} of {len(of)} runs are shown; runs.csv has all of them." if shown < len(of) else ""
