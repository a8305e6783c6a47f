"""What a sweep's folders say of one run, and of all: the rows that tables, figures and pages are made of.

Reading them is hpc.gather's business. One invariant: nothing here is read from a disk but a history's columns, when they are asked for.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hpc.history import History
from hpc.spans import Span
from hpc.states import State
from seresnet.run_folder import TrainResult


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run as its folder tells it. result is set only in state finished."""

    sweep: str
    arms: tuple[str, ...]
    run_id: str
    slug: str
    state: State
    ending: str | None = None  # of the newest attempt
    reason: str = ""
    config: dict[str, dict[str, Any]] | None = None  # None where run.yaml cannot be read
    result: TrainResult | None = None
    history: History = field(default_factory=History)
    spans: tuple[Span, ...] = ()  # its attempts, oldest first
    spans_elsewhere: tuple[tuple[str | None, tuple[Span, ...]], ...] = ()  # arm of another sweep (None: any) -> its attempts there
    epochs_planned: int | None = None

    @property
    def restarts(self) -> int:
        """Attempts after the first, in each sweep that has it."""
        return sum(max(0, len(spans) - 1) for spans in self.costs())

    @property
    def device_kind(self) -> Literal["gpu", "cpu"] | None:
        """What device_hours count: GPUs, or CPU cores."""
        device = self.setting("train", "device")
        return {"cuda": "gpu", "cpu": "cpu"}.get(device) if isinstance(device, str) else None  # type: ignore[return-value]

    @property
    def device_hours(self) -> float:
        """Held by all its attempts, whatever came of them, in each sweep that has it."""
        return sum(span.device_hours for spans in self.costs() for span in spans)

    def costs(self, arm: str | None = None) -> list[tuple[Span, ...]]:
        """Its attempts, by sweep: those that an arm paid for, or all of them."""
        elsewhere = dict(self.spans_elsewhere)
        if arm in elsewhere and arm is not None:
            return [elsewhere[arm]]
        if arm is not None and None not in elsewhere:
            return [self.spans]
        return [self.spans, *{id(spans): spans for _, spans in self.spans_elsewhere}.values()]

    @property
    def epochs_done(self) -> int:
        return self.history.last_epoch or (self.result.epochs if self.result else 0)

    @property
    def seed(self) -> int | None:
        seed = self.setting("train", "seed")
        return seed if isinstance(seed, int) else None

    def setting(self, section: str, key: str) -> Any:
        """A config value, also of a key such as args.lr; None where the config is unknown."""
        value: Any = (self.config or {}).get(section)
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Every run of one or several sweeps; arms in the order of the YAML, as "sweep/arm" where there are several sweeps."""

    arms: tuple[str, ...]
    rows: tuple[RunRow, ...]
    skipped: tuple[str, ...]  # one line for each file that was not used, and why

    @property
    def finished(self) -> tuple[RunRow, ...]:
        """Those that some arm asks for: what is asked for no more is in no table, and no sentence speaks of it."""
        return tuple(row for row in self.rows if row.state == "finished" and row.arms)

    def of_arm(self, arm: str) -> tuple[RunRow, ...]:
        return self._by_arm.get(arm, ())

    @functools.cached_property
    def _by_arm(self) -> Mapping[str, tuple[RunRow, ...]]:
        """Made once: pages ask for each of hundreds of arms several times."""
        found: dict[str, list[RunRow]] = {}
        for row in self.rows:
            for arm in dict.fromkeys(row.arms):
                found.setdefault(arm, []).append(row)
        return {arm: tuple(rows) for arm, rows in found.items()}
