"""What a table can show of a run: the names that --metric takes, and what each means.

A name is a column of runs.csv, too; hpc.stats computes. One invariant: a name says how its epoch was chosen, and on which split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from seresnet.errors import ConfigError
from seresnet.strict_yaml import nearest


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number a finished run."""

    name: str
    heading: str  # of its column
    unit: str  # "%", "s", "h", or nothing
    digits: int  # after the point, where people read it
    meaning: str


_ALL = (
    Metric(name="last_test_top1_pct", heading="last epoch", unit="%", digits=2, meaning="test accuracy of the last epoch"),
    Metric(
        name="val_chosen_test_top1_pct",
        heading="validation-chosen",
        unit="%",
        digits=2,
        meaning="test accuracy of the epoch of the best validation accuracy",
    ),
    Metric(
        name="best_on_test_top1_pct",
        heading="best-on-test",
        unit="%",
        digits=2,
        meaning="best test accuracy of all epochs: chosen on the test set, biased upwards",
    ),
    Metric(name="last_test_loss", heading="last test loss", unit="", digits=4, meaning="test loss of the last epoch"),
    Metric(name="last_val_top1_pct", heading="last validation", unit="%", digits=2, meaning="validation accuracy of the last epoch"),
    Metric(name="val_chosen_val_top1_pct", heading="best validation", unit="%", digits=2, meaning="best validation accuracy of all epochs"),
    Metric(name="train_loss", heading="train loss", unit="", digits=4, meaning="training loss of the last epoch, as it was optimised"),
    Metric(name="val_chosen_epoch", heading="validation-chosen epoch", unit="", digits=1, meaning="epoch of the best validation accuracy"),
    Metric(name="best_on_test_epoch", heading="best-on-test epoch", unit="", digits=1, meaning="epoch of the best test accuracy"),
    Metric(
        name="seconds_per_epoch",
        heading="seconds an epoch",
        unit="s",
        digits=3,
        meaning="training and evaluation, mean over the epochs that were kept",
    ),
    Metric(
        name="device_hours",
        heading="device-hours a run",
        unit="h",
        digits=3,
        meaning="GPU-hours, of cpu runs core-hours, of all attempts of a finished run",
    ),
    Metric(name="restarts", heading="restarts a run", unit="", digits=1, meaning="attempts after the first, of a finished run"),
)

METRICS = {metric.name: metric for metric in _ALL}

#: What a table shows unless it is told otherwise; the difference is of the first.
DEFAULT = ("last_test_top1_pct", "val_chosen_test_top1_pct", "best_on_test_top1_pct")


def chosen(names: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of these names, each once; raises ConfigError for a name that is none."""
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        near = nearest(unknown[0], list(METRICS))
        advice = f"Did you mean {near}? " if near else ""
        raise ConfigError(f"--metric {unknown[0]}: there is no such metric. {advice}Metrics: {', '.join(METRICS)}.")
    return tuple(METRICS[name] for name in dict.fromkeys(names))
