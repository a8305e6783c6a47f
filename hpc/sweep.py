"""What a sweep asks for: arms, and from them the runs. `expand` is pure and ordered, and equal configs are one run.

Reading the YAML is sweep_file's job, and which task trains which run is packing's. One invariant: two planned runs of a sweep
differ in run id and in slug.
"""

from dataclasses import dataclass, replace

from hpc.sweep_arms import arm_slug
from hpc.sweep_file import read_sweep
from hpc.sweep_spec import Arm, SiteRequest, SweepSpec
from seresnet.config import RunConfig, identity, iter_keys, run_id
from seresnet.config_file import explain, show_value
from seresnet.errors import ConfigError

__all__ = ["Arm", "PlannedRun", "SiteRequest", "SweepSpec", "expand", "explain_sweep", "read_sweep", "run_slug"]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep; an experiment that several arms ask for is one run, called after the first of them."""

    config: RunConfig
    run_id: str
    slug: str
    arms: tuple[str, ...]


def expand(spec: SweepSpec) -> tuple[PlannedRun, ...]:
    """The runs, arm by arm and seed by seed, each where it is first asked for; raises ConfigError where one id means two configs."""
    runs: dict[str, PlannedRun] = {}
    clashes: dict[tuple[str, str], str] = {}
    for arm in spec.arms:
        for seed in arm.seeds:
            config = replace(arm.loaded.config, train=replace(arm.loaded.config.train, seed=seed))
            key = run_id(config)
            known = runs.setdefault(key, PlannedRun(config=config, run_id=key, slug=run_slug(arm.name, seed), arms=()))
            if known.config != config:
                clashes.setdefault((known.arms[0], arm.name), _clash(known, config, arm))
            runs[key] = replace(known, arms=(*known.arms, arm.name))
    if clashes:
        raise ConfigError("\n".join(clashes.values()))
    return tuple(runs.values())


def run_slug(arm: str, seed: int) -> str:
    """The readable name of a run, "se-lr-0.05-s0"."""
    return f"{arm_slug(arm)}-s{seed}"


def explain_sweep(spec: SweepSpec, dotted: str) -> str:
    """config_file.explain for every arm, arms that agree together; raises ConfigError for an unknown key."""
    if dotted == "train.seed":
        return "\n".join(f"{arm.name}: train.seed = {_seeds(arm)}, from {arm.loaded.origins[dotted]}" for arm in spec.arms)
    groups: dict[str, list[str]] = {}
    for arm in spec.arms:
        groups.setdefault(explain(arm.loaded, dotted), []).append(arm.name)
    if len(groups) == 1:
        return next(iter(groups))
    return "\n".join(f"{', '.join(arms)}: {text}" for text, arms in groups.items())


def _seeds(arm: Arm) -> str:
    return ", ".join(map(str, arm.seeds))


def _clash(known: PlannedRun, config: RunConfig, arm: Arm) -> str:
    """Why two configs with one run id cannot stand in one sweep."""
    pairs = zip(iter_keys(known.config), iter_keys(config), strict=True)
    different = [f"{dotted} {show_value(one)} and {show_value(other)}" for (dotted, _, one, _), (_, _, other, _) in pairs if one != other]
    arms = f"{arm.place}: arms.{arm.name}: this arm and {known.arms[0]!r}"
    if identity(known.config) != identity(config):
        return f"{arms} have one run id {known.run_id} for two experiments: {'; '.join(different)}. Change any identity key of one."
    return (
        f"{arms} are one experiment (run {known.run_id}) asked for in two ways: {'; '.join(different)}. "
        "Those keys make no run of its own. Make them equal, or launch two sweeps."
    )
