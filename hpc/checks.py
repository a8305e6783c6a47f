"""Warnings about a comparison: what makes its numbers say less than they seem to, with arms, values and what to do.

Looks at what was compared, not at how it is shown. One invariant: a warning needs evidence in the records; what an arm is meant to
differ in raises none. The rules are in docs/collect.md.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from hpc.comparison import Comparison
from hpc.gather import RunRow
from hpc.regroup import show
from hpc.stats import ArmSummary
from seresnet.config import KeyClass, RunConfig

#: Keys that change how long, on what or in which batches an arm trains: with them different, an arm's own change is not what is compared.
RECIPE = ("train.epochs", "train.global_batch_size", "train.micro_batch_size")
#: Best-on-test is much above the last epoch from so many standard deviations of the last epoch over seeds on, ...
MANY_STDS = 2.0
#: ... but never below this many points; with one seed there is no standard deviation, and this is the limit.
FEW_POINTS, FEW_POINTS_OF_ONE = 0.2, 0.5
_MOST_NAMES = 8
_SEED = "train.seed"

_KEYS = {
    f"{section.name}.{key.name}": key
    for section in fields(RunConfig)
    for key in fields(section.default_factory)  # type: ignore[arg-type]
}

Recipe = Mapping[str, tuple[str, ...]]  # key -> the values that the runs of one arm have


def warnings(comparison: Comparison) -> tuple[str, ...]:
    """One sentence or two each, the gravest first."""
    rows: dict[str, list[RunRow]] = {arm: [] for arm in comparison.gathered.arms}
    for row in comparison.gathered.rows:
        for name in row.arms:
            rows[name].append(row)
    recipes = {arm: _recipe(mine) for arm, mine in rows.items()}
    return (
        *_unequal_recipes(comparison, recipes),
        *_mixed_arms(comparison, recipes),
        *_repeated_seeds(comparison, recipes),
        *_diverged(comparison),
        *_unequal_seeds(comparison),
        *_single_runs(comparison),
        *_chosen_on_test(comparison),
        *_far_above_last(comparison),
        *_forks(rows),
        *_averaged(rows),
    )


# --- recipes ---


def _recipe(rows: Sequence[RunRow]) -> Recipe:
    """What the runs of an arm were asked to compute, but for the seed; empty where no config can be read."""
    # By their texts, because most runs of an arm have one: value by value 10,000 runs would take seconds.
    configs = {repr(_without_seed(row.config)): row.config for row in rows if row.config}
    values: dict[str, dict[str, None]] = {}
    for config in configs.values():
        for section, part in config.items():
            for name, value in part.items() if isinstance(part, dict) else ():
                key = f"{section}.{name}"
                if key != _SEED and _is_of_recipe(key):
                    values.setdefault(key, {})[show(value)] = None
    return {key: tuple(found) for key, found in values.items()}


def _without_seed(config: dict[str, dict[str, Any]]) -> dict[str, Any]:
    train = config.get("train")
    return {**config, "train": {**train, "seed": None}} if isinstance(train, dict) else config


def _unequal_recipes(comparison: Comparison, recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """Arms that differ from the baseline in data, epochs or batch, or in several sections whose effects no other arm tells apart."""
    base = recipes[comparison.baseline]
    differences = {arm: _difference(recipe, base) for arm, recipe in recipes.items() if recipe and base and arm != comparison.baseline}
    known = {frozenset(difference.items()) for difference in differences.values()}
    alike: dict[tuple[str, ...], list[str]] = {}
    for arm, difference in differences.items():
        keys = tuple(key for key in difference if key not in comparison.grouped_by)
        if (_in_recipe(keys) or _is_confounded(difference, known, comparison.grouped_by)) and keys:
            alike.setdefault(tuple(difference), []).append(arm)
    for differing, arms in alike.items():
        example = "; ".join(
            f"{key}: {' / '.join(_values(recipes[arms[0]], key))} against {' / '.join(_values(base, key))}" for key in differing
        )
        whose = f" of {arms[0]}" if len(arms) > 1 else ""
        several = "differs" if len(arms) == 1 else "differ"
        yield (
            f"UNEQUAL RECIPES: {_names(arms)} {several} from {comparison.baseline} in {', '.join(differing)} ({example}{whose})."
            " The difference is of all of them together: add an arm that changes one thing, or choose another --baseline."
        )


def _is_of_recipe(key: str) -> bool:
    """Whether it changes what is computed; a key that this version does not know may."""
    return key not in _KEYS or _KEYS[key].metadata["rule"].key_class in (KeyClass.IDENTITY, KeyClass.EXTENDABLE)


def _difference(recipe: Recipe, base: Recipe) -> dict[str, tuple[str, ...]]:
    keys = dict.fromkeys([*base, *recipe])
    return {key: _values(recipe, key) for key in keys if set(_values(recipe, key)) != set(_values(base, key))}


def _values(recipe: Recipe, key: str) -> tuple[str, ...]:
    """A config that was written before a key was there ran with its default, as run ids say, too."""
    return recipe.get(key) or (show(_KEYS[key].default if key in _KEYS else None),)


def _in_recipe(keys: Collection[str]) -> bool:
    return any(key in RECIPE or key.startswith("data.") for key in keys)


def _is_confounded(difference: Mapping[str, Any], known: Collection[frozenset[Any]], meant: Sequence[str]) -> bool:
    """Whether several sections differ and not each of them has an arm that differs by it alone, as in a full grid."""
    parts: dict[str, dict[str, Any]] = {}
    for key, values in difference.items():
        parts.setdefault(key.partition(".")[0], {})[key] = values
    if len(parts) < 2 or set(difference) <= set(meant):
        return False
    return not all(frozenset(part.items()) in known for part in parts.values())


def _mixed_arms(comparison: Comparison, recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """An arm whose own runs differ in more than their seed: the sweep was edited, or several sweeps call different things alike."""
    if comparison.grouped_by:
        return
    for arm, recipe in recipes.items():
        mixed = {key: values for key, values in recipe.items() if len(values) > 1}
        if mixed:
            what = "; ".join(f"{key}: {', '.join(values)}" for key, values in mixed.items())
            yield f"MIXED ARM: runs of {arm} differ in {what}. Its mean is over different recipes: --by {','.join(mixed)} tells them apart."


def _repeated_seeds(comparison: Comparison, recipes: Mapping[str, Recipe]) -> Iterator[str]:
    twice = [arm.arm for arm in comparison.arms if len(set(arm.seeds)) < len(arm.seeds)]
    if not twice:
        return
    varied = dict.fromkeys(key for arm in twice for key, values in recipes[arm].items() if len(values) > 1)
    advice = f"--by {','.join([*comparison.grouped_by, *varied])} pairs them." if varied else "Compare the sweeps one by one."
    yield f"NOT PAIRED: in {_names(twice)} a seed occurs more than once, so that there is no difference by seed. {advice}"


# --- seeds ---


def _diverged(comparison: Comparison) -> Iterator[str]:
    found = {arm.arm: count for arm in comparison.arms for state, count in arm.states if state == "failed: diverged"}
    if found:
        said = ", ".join(f"{count} of {arm}" for arm, count in list(found.items())[:_MOST_NAMES])
        more = f" and of {len(found) - _MOST_NAMES} more arms" if len(found) > _MOST_NAMES else ""
        yield f"DIVERGED: {said}{more}. Their arms' means are over the runs that survived, and flatter them: say so where you quote one."


def _unequal_seeds(comparison: Comparison) -> Iterator[str]:
    every = sorted({seed for arm in comparison.arms for seed in arm.seeds})
    lacking: dict[tuple[int, ...], list[str]] = {}
    for arm in comparison.arms:
        there = set(arm.seeds)
        if missing := tuple(seed for seed in every if seed not in there):
            lacking.setdefault(missing, []).append(arm.arm)
    for seeds, arms in lacking.items():
        yield (
            f"MISSING SEEDS: {_names(arms)} {_have(arms)} no finished run of seed {_ranges(seeds)}, which other arms have. Means are over"
            " different seeds, the paired difference is over equal ones: finish these runs, ask for them (`seeds:`),"
            " or quote the difference."
        )


def _single_runs(comparison: Comparison) -> Iterator[str]:
    single = [arm.arm for arm in comparison.arms if arm.n == 1]
    if single:
        yield f"ONE RUN: {_names(single)} {_have(single)} one finished run (n = 1): no spread and no interval. Train three seeds or more."


# --- choice of the epoch ---


def _chosen_on_test(comparison: Comparison) -> Iterator[str]:
    without = [arm.arm for arm in comparison.arms if arm.n and arm.val_chosen is None]
    if comparison.metrics[0].name == "best_on_test_top1_pct":
        yield "CHOSEN ON TEST: the difference is of best-on-test, whose epoch was chosen on the test set. Compare another --metric."
    elif without:
        yield (
            f"NO VALIDATION: {_names(without)} {_have(without)} no validation split, so that best-on-test is the only choice of an epoch,"
            " and it is made on the test set. Quote the last epoch, or hold images out (data.val_images; a program says val_top1_pct)."
        )


def _far_above_last(comparison: Comparison) -> Iterator[str]:
    far = [arm for arm in comparison.arms if _gap(arm) > _limit(arm)]
    if far:
        said = "; ".join(f"{arm.arm} by {_gap(arm):.2f} points, limit {_limit(arm):.2f}" for arm in far[:_MOST_NAMES])
        more = f"; and {len(far) - _MOST_NAMES} more" if len(far) > _MOST_NAMES else ""
        yield (
            f"BEST FAR ABOVE LAST: best-on-test is much above the last epoch ({said}{more}). It was picked in hindsight from a curve that"
            " still moves: quote the last epoch, or see whether training ends too late or its schedule too early."
        )


def _gap(arm: ArmSummary) -> float:
    return arm.best_on_test.mean - arm.last.mean if arm.best_on_test and arm.last else 0.0


def _limit(arm: ArmSummary) -> float:
    std = arm.last.std if arm.last else None
    return FEW_POINTS_OF_ONE if std is None else max(MANY_STDS * std, FEW_POINTS)


# --- what trained ---


def _forks(rows: Mapping[str, Sequence[RunRow]]) -> Iterator[str]:
    for arm, mine in rows.items():
        forks = [row for row in mine if row.result and row.result.parent]
        if forks:
            shown = "; ".join(f"{row.slug} ({row.run_id}) began as {row.result.parent}" for row in forks[:3] if row.result)
            more = f"; and {len(forks) - 3} more" if len(forks) > 3 else ""
            yield (
                f"FORK: in {arm} {shown}{more}. Such a run is no answer to what one from step 0 would give: compare it with forks of the"
                " same parent, or leave it out."
            )


def _averaged(rows: Mapping[str, Sequence[RunRow]]) -> Iterator[str]:
    found = {arm: {row.result.averaged for row in mine if row.result} for arm, mine in rows.items()}
    averaged = [arm for arm, kinds in found.items() if kinds == {True}]
    mixed = [arm for arm, kinds in found.items() if len(kinds) == 2]
    plain = [arm for arm, kinds in found.items() if kinds == {False}]
    if mixed or (averaged and plain):
        others = f"those of {_names(plain)} are not" if plain else "in other runs they are not"
        yield (
            f"AVERAGED IN SOME: the numbers of {_names([*averaged, *mixed])} are those of averaged weights (optim.ema_decay), {others}."
            " Averaging alone can raise them: set it in all arms or in none."
        )


def _names(arms: Sequence[str]) -> str:
    shown = ", ".join(arms[:_MOST_NAMES])
    return f"{shown} and {len(arms) - _MOST_NAMES} more" if len(arms) > _MOST_NAMES else shown


def _have(arms: Sequence[str]) -> str:
    return "has" if len(arms) == 1 else "have"


def _ranges(numbers: Sequence[int]) -> str:
    """ "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
