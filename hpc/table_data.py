"""The comparison for programs: JSON with everything, CSV with a row an arm. Numbers are not rounded.

One invariant: a key of the JSON means the same for as long as SCHEMA stays; keys may be added.
"""

import json
from typing import Any

import pandas as pd

from hpc.checks import warnings
from hpc.comparison import Comparison
from hpc.gather import RunRow
from hpc.stats import CONFIDENCE, TEST, ArmSummary, Difference, Spread, inert
from hpc.tables import caption, headline

SCHEMA = 1


def json_text(comparison: Comparison) -> str:
    """The whole of table.json."""
    gathered = comparison.gathered
    value = {
        "schema": SCHEMA,
        "title": comparison.title,
        "headline": headline(gathered),
        "is_complete": all(row.state == "finished" for row in gathered.rows if row.arms),
        "warnings": list(warnings(comparison)),
        "grouped_by": list(comparison.grouped_by) or ["arm"],
        "baseline": comparison.baseline,
        "metrics": [{"name": each.name, "unit": each.unit, "meaning": each.meaning} for each in comparison.metrics],
        "difference": {"of": comparison.metrics[0].name, "paired_by": "train.seed", "test": TEST, "confidence": CONFIDENCE},
        "arms": [_arm(comparison, arm) for arm in comparison.arms],
        "runs": [_run(row) for row in gathered.rows],
        "caption": caption(comparison),
        "skipped_files": list(gathered.skipped),
    }
    # Not json_bytes: it sorts keys, and who opens the file wants the headline first.
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def csv_text(comparison: Comparison) -> str:
    """The whole of table.csv; what one line cannot tell (headline, warnings, reasons) is in table.json."""
    lines = [{key: inert(value) for key, value in _flat(comparison, arm).items()} for arm in comparison.arms]
    return pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")


def _arm(comparison: Comparison, arm: ArmSummary) -> dict[str, Any]:
    return {
        "arm": arm.arm,
        "is_baseline": arm.is_baseline,
        "parameters": list(arm.parameters),
        "multiply_adds": list(arm.multiply_adds),
        "n": arm.n,
        "seeds": list(arm.seeds),
        "metrics": {metric.name: _spread(arm.metrics[metric.name]) for metric in comparison.metrics},
        "difference": _difference(arm.difference),
        "gpu_hours": arm.device_hours.get("gpu"),
        "cpu_core_hours": arm.device_hours.get("cpu"),
        "seconds_per_epoch": _spread(arm.metrics["seconds_per_epoch"]),
        "restarts": arm.restarts,
        "states": dict(arm.states),
    }


def _run(row: RunRow) -> dict[str, Any]:
    return {
        "sweep": row.sweep,
        "arms": list(row.arms),
        "run_id": row.run_id,
        "slug": row.slug,
        "seed": row.seed,
        "state": row.state,
        "ending": row.ending,
        "reason": row.reason,
    }


def _spread(value: Spread | None) -> dict[str, Any] | None:
    return {"n": value.n, "mean": value.mean, "std": value.std} if value else None


def _difference(value: Difference | None) -> dict[str, Any] | None:
    if value is None:
        return None
    interval = {"low": value.low, "high": value.high}
    return {"pairs": value.pairs, "degrees_of_freedom": value.degrees_of_freedom, "mean": value.mean, **interval}


def _flat(comparison: Comparison, arm: ArmSummary) -> dict[str, Any]:
    difference, seconds = arm.difference, arm.metrics["seconds_per_epoch"]
    metrics: dict[str, Any] = {}
    for metric in comparison.metrics:
        value = arm.metrics[metric.name]
        metrics |= {
            f"{metric.name}_n": value.n if value else 0,
            f"{metric.name}_mean": value and value.mean,
            f"{metric.name}_std": value and value.std,
        }
    return {
        "arm": arm.arm,
        "is_baseline": arm.is_baseline,
        "parameters": " / ".join(map(str, arm.parameters)),
        "multiply_adds": " / ".join(map(str, arm.multiply_adds)),
        "runs": sum(count for _, count in arm.states),
        "n": arm.n,
        **metrics,
        "difference_of": comparison.metrics[0].name,
        "difference_pairs": difference.pairs if difference else 0,
        "difference_mean": difference and difference.mean,
        "difference_low": difference and difference.low,
        "difference_high": difference and difference.high,
        "gpu_hours": arm.device_hours.get("gpu"),
        "cpu_core_hours": arm.device_hours.get("cpu"),
        "seconds_per_epoch": seconds and seconds.mean,
        "restarts": arm.restarts,
        "states": ", ".join(f"{count} {state}" for state, count in arm.states),
    }
