"""Arms at the points of a sweep's axes, checked and named; what exclude leaves out is left out here.

Reading sections is others' job. One invariant: two arms differ in name and in what their folders are called after, and every value
of an arm can name the line or override that wrote it.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hpc.sweep_axes import Axis, point_name
from hpc.sweep_exclude import Candidate, Condition, note_misses, remaining
from hpc.sweep_sections import MAX_RUNS
from hpc.sweep_spec import Arm
from seresnet.config import slug
from seresnet.config_file import Setting, build, key_specs
from seresnet.strict_yaml import Bad, Faults, Place

_SLUG_CHARACTERS = 48  # of an arm: with the seed, a run's folder name stays far below 255
_DIGEST_CHARACTERS = 8  # with 4, a grid of 1,000 long names would nearly always hold two that are cut to the same


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Seeds and where they are written."""

    seeds: tuple[int, ...]
    place: Place


@dataclass(frozen=True, kw_only=True)
class ArmDraft:
    """An arm as the file has it. seeds: its own, else those of the sweep."""

    name: str
    place: Place
    settings: Sequence[Setting] = ()
    seeds: Seeds | None = None


@dataclass(frozen=True, kw_only=True)
class _PlacedArm:
    """A draft at a point, all layers in order, later ones winning."""

    draft: ArmDraft
    name: str
    layers: Sequence[Setting]

    def candidate(self) -> Candidate:
        values = {setting.dotted: setting.value for setting in self.layers}
        seed = values.get("train.seed", key_specs()["train.seed"].default)
        seeds = self.draft.seeds.seeds if self.draft.seeds else (seed if isinstance(seed, int) else 0,)
        return Candidate(arms=(self.name, self.draft.name), values=values, seeds=seeds)


def arms_at_points(
    drafts: Sequence[ArmDraft],
    axes: Sequence[Axis],
    base: Sequence[Setting],
    overrides: Sequence[Setting],
    conditions: Sequence[Condition],
    faults: Faults,
) -> list[Arm]:
    """Every draft at every point, in that order; nothing after a fault that would repeat itself a thousand times."""
    runs = math.prod(len(axis.points) for axis in axes) * sum(len(draft.seeds.seeds) if draft.seeds else 1 for draft in drafts)
    if drafts and runs > MAX_RUNS:
        sections = ", ".join(dict.fromkeys(["arms", *(axis.section.removeprefix("the ") for axis in axes)]))
        problem = f"{sections} and seeds make {runs} runs, more than {MAX_RUNS}. Ask for fewer at a time."
        faults.add(drafts[0].place, "", problem)
        return []
    is_sound = not faults
    _check_axes_are_alone(drafts, axes, overrides, faults)
    arms, matched, is_any_left = [], set[int](), False
    for placed in _uniquely_named(_placed(drafts, axes, base, overrides), faults):
        seeds = remaining(conditions, placed.candidate(), matched) if conditions else None
        if seeds is None or seeds:
            is_any_left = True
            arms.append(_arm(placed, seeds, faults))
    if is_sound and drafts:  # where a value is at fault, a condition on it would miss
        note_misses(conditions, matched, is_any_left, (each.candidate() for each in _placed(drafts, axes, base, overrides)), faults)
    return [arm for arm in arms if arm]


def arm_slug(arm: str) -> str:
    """How folders are called after an arm, "se-lr-0.05"; a long name is cut and told apart by hex digits."""
    if len(arm) <= _SLUG_CHARACTERS:
        return slug(arm)
    digest = hashlib.sha256(arm.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{slug(arm)[: _SLUG_CHARACTERS - _DIGEST_CHARACTERS - 1].rstrip('-.')}-{digest}"


def _placed(
    drafts: Sequence[ArmDraft], axes: Sequence[Axis], base: Sequence[Setting], overrides: Sequence[Setting]
) -> Iterator[_PlacedArm]:
    for draft, parts in itertools.product(drafts, itertools.product(*(axis.points for axis in axes))):
        point = tuple(itertools.chain.from_iterable(parts))
        yield _PlacedArm(draft=draft, name=point_name(draft.name, point), layers=[*base, *draft.settings, *point, *overrides])


def _uniquely_named(placed: Iterator[_PlacedArm], faults: Faults) -> Iterator[_PlacedArm]:
    """All of them; the first of each draft whose folder would be another's too is noted."""
    names: dict[str, str] = {}
    noted: set[str] = set()
    for each in placed:
        other = names.setdefault(arm_slug(each.name), each.name)
        if other != each.name and each.draft.name not in noted:
            noted.add(each.draft.name)
            problem = f"{each.name!r} and {other!r} would share the folder name {arm_slug(each.name)!r}. Rename one."
            faults.add(each.draft.place, f"arms.{each.draft.name}", problem)
        yield each


def _arm(placed: _PlacedArm, left: tuple[int, ...] | None, faults: Faults) -> Arm | None:
    """The arm with its own seeds, or with those that are left of them."""
    seeds = placed.draft.seeds
    fixed = [setting for setting in placed.layers if setting.dotted == "train.seed"]
    if seeds and fixed:
        value = "a seed" if isinstance(fixed[-1].value, Bad) else fixed[-1].value
        faults.add(fixed[-1].place, fixed[-1].label, f"{value} is set beside seeds ({seeds.place}). Keep one of them.")
    loaded, place = build(placed.layers, faults), str(placed.draft.place)
    if loaded is None:
        return None
    if seeds is None:
        return Arm(name=placed.name, place=place, loaded=loaded, seeds=(loaded.config.train.seed,))
    chosen = left or seeds.seeds
    train = replace(loaded.config.train, seed=chosen[0])
    origins = {**loaded.origins, "train.seed": str(seeds.place)}
    loaded = replace(loaded, config=replace(loaded.config, train=train), origins=origins)
    return Arm(name=placed.name, place=place, loaded=loaded, seeds=chosen)


def _check_axes_are_alone(drafts: Sequence[ArmDraft], axes: Sequence[Axis], overrides: Sequence[Setting], faults: Faults) -> None:
    """A key of an axis that an arm or an override sets too would make arms whose names lie."""
    known = {setting.dotted: (setting.place, axis.section) for axis in axes for setting in axis.settings()}
    for setting in itertools.chain(overrides, *(draft.settings for draft in drafts)):
        if setting.dotted in known:
            place, section = known[setting.dotted]
            faults.add(setting.place, setting.label, f"the key is set here and in {section} ({place}). Keep one of them.")
