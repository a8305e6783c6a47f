"""Which runs a sweep asks for now, by the plan.json that lies beside their folders. Planning is hpc's business; here it is only read.

One invariant: without a plan, or with one that cannot be read, every run counts.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from seresnet.durable import parse_json
from seresnet.errors import ConfigError
from seresnet.run_folder import RunFolder


def asked_for(sweep: Path, runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Those of a sweep's runs that some arm asks for, in the order of the arms; what is left out is said on stderr.

    sweep: as the user gave it; where that is no sweep's folder, the runs as they are. Raises ConfigError where no run is left.
    """
    try:
        plan = parse_json((sweep / "plan.json").read_text())
        order = [str(plan["runs"][run_id]["folder"]) for ids in plan["arms"].values() for run_id in ids]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return list(runs)
    places = {name: place for place, name in reversed(list(enumerate(order)))}
    kept = sorted((run for run in runs if run.path.name in places), key=lambda run: places[run.path.name])
    if runs and not kept:
        raise ConfigError(f"{sweep}: none of its {len(runs)} runs is asked for any more. Name a run's folder, or launch the sweep again.")
    if left := len(runs) - len(kept):
        print(f"{left} of {len(runs)} runs are no longer asked for by {sweep.name} and are left out", file=sys.stderr)
    return kept
