"""What the device-hours of runs became: work that counts, work done again, and the rest. Computed from attempts and the record.

Of one attempt, in seconds times the devices that it held:

- held      from its start to its end (its own word, else its last beat).
- useful    training and evaluation of the epochs that the record has from it, and its part of an epoch that a later attempt completed.
            That part is known from the images that were left to the later one, at the pace of the run's median epoch.
- repeated  from the end of its last epoch in the record to its own end, that part taken off, where a later attempt recorded more: what
            it trained then was done again. The save at its end is in it.
- lost      the rest: starting up, an attempt that left no epoch, and what was done last in a run that nobody went on with.

One invariant: held = useful + repeated + lost, and an attempt whose start or end nobody knows counts in none of them, but as unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc.gather import RunRow
from hpc.history import History
from hpc.spans import Span

#: Rates are rounded to 0.1 image a second: less than this share of an epoch missing is nothing missing.
_ROUNDING = 0.01


@dataclass(frozen=True, kw_only=True)
class Fates:
    """Device-hours by what became of them; unknown is a number of attempts."""

    useful: float = 0.0
    repeated: float = 0.0
    lost: float = 0.0
    unknown: int = 0

    @property
    def held(self) -> float:
        return self.useful + self.repeated + self.lost

    def __add__(self, other: "Fates") -> "Fates":
        return Fates(
            useful=self.useful + other.useful,
            repeated=self.repeated + other.repeated,
            lost=self.lost + other.lost,
            unknown=self.unknown + other.unknown,
        )


def fates(rows: Sequence[RunRow]) -> Fates:
    """The sum over these runs. Hours of GPUs and of CPU cores are not to be added: see RunRow.device_kind."""
    return sum((of_run(row.history, row.spans) for row in rows), Fates())


def of_run(history: History, spans: Sequence[Span]) -> Fates:
    """The sum over the attempts of one run, spans oldest first."""
    total = Fates()
    handed = 0.0  # seconds that earlier attempts spent on the first epoch that the attempts seen so far recorded
    goes_on = False
    for span in reversed(spans):
        is_its = history.column("generation") == span.generation
        if span.started is None or span.ended is None:
            total += Fates(unknown=1)
        else:
            part, kept = _of_attempt(history, span, is_its, handed if goes_on else 0.0, goes_on)
            total += part
            handed -= kept
        if is_its.any():
            handed, goes_on = _handed_over(history, span, int(np.flatnonzero(is_its)[0])), True
    return total


def _of_attempt(history: History, span: Span, is_its: np.ndarray, handed: float, goes_on: bool) -> tuple[Fates, float]:
    """The attempt's hours, and how many of the handed seconds were its."""
    assert span.started is not None and span.ended is not None
    held = max(0.0, span.ended - span.started)
    recorded = min(held, float(_own_seconds(history, span)[is_its].sum()))
    since = float(history.column("time")[is_its][-1]) if is_its.any() else span.started
    tail = min(held - recorded, max(0.0, span.ended - since))
    kept = min(tail, handed)
    repeated = tail - kept if goes_on and is_its.any() else 0.0
    hours = span.devices / 3600
    lost = held - recorded - kept - repeated
    return Fates(useful=(recorded + kept) * hours, repeated=repeated * hours, lost=lost * hours), kept


def _own_seconds(history: History, span: Span) -> np.ndarray:
    """Of every epoch; of one that the attempt only evaluated again, whose record keeps the timing of who trained it, the evaluation."""
    seconds = np.nan_to_num(history.column("seconds"))
    return np.asarray(np.where(_is_again(history, span), np.nan_to_num(history.column("eval_seconds")), seconds))


def _is_again(history: History, span: Span) -> np.ndarray:
    began = history.column("time") - history.column("seconds")
    return np.asarray(began < (span.started if span.started is not None else -np.inf))


def _handed_over(history: History, span: Span, place: int) -> float:
    """Seconds that earlier attempts spent on the epoch at this place, which this attempt recorded."""
    if _is_again(history, span)[place]:
        return float(history.column("seconds")[place])
    train = history.column("train_seconds")
    images = history.column("images_per_s") * train
    if np.isnan(images).all():
        return 0.0
    only_evaluated = np.isnan(train[place]) and not np.isnan(history.column("eval_seconds")[place])
    missing = 1.0 if only_evaluated else 1 - float(images[place]) / float(np.nanmax(images))
    return missing * float(np.nanmedian(train)) if missing > _ROUNDING else 0.0
