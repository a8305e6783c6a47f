"""The paragraph that a paper's methods section needs, and the works that the runs rest on, from what the runs themselves say.

Pure. What configs tell is hpc.methods_recipe's; here are runs, numbers and what is missing. A sentence stands only where the records
carry it: a setting that differs between arms is called varied, one that is not known is left out.
One invariant: no work is cited that no run used.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hpc import methods_recipe, settings
from hpc.comparison import Comparison
from hpc.gather import RunRow
from hpc.methods_recipe import joined
from hpc.metrics import DEFAULT
from hpc.settings import Settings
from hpc.stats import ArmSummary

#: Arms that are named one by one; of more the table has the numbers.
_MOST_ARMS = 12


def paragraph(comparison: Comparison) -> str:
    """English prose; what a reader must add is which question the comparison answers."""
    rows = comparison.gathered.finished
    if not rows:
        return "No run has finished yet, so there is nothing to report."
    configs = settings.configs_of(rows)
    # Of a program's data its run.yaml has our defaults, which say nothing.
    common = settings.shared(configs) if len(_by_us(configs)) == len(configs) else {}
    parts = [
        _arms(comparison, configs),
        _data(rows, common),
        _programs(configs),
        *methods_recipe.sentences(_by_us(configs)),
        _hardware(rows, configs),
        _selection(rows),
        _numbers(comparison),
        _missing(comparison),
        _code(rows),
    ]
    return " ".join(part for part in parts if part)


def _programs(configs: Sequence[Settings]) -> str:
    """How scripts of their own are started: of their networks, optimisers and augmentations nothing is known here."""
    found = list(dict.fromkeys(shlex.join(map(str, config["program.command"])) for config in configs if config.get("program.command")))
    of = " of some configurations" if _by_us(configs) else ""
    return f"Training{of} is by {joined([f'`{command}`' for command in found])}." if found else ""


def _by_us(configs: Sequence[Settings]) -> list[Settings]:
    """Those whose every key is obeyed; a program's network, optimiser and precision are its own."""
    return [config for config in configs if not config.get("program.command")]


def _arms(comparison: Comparison, configs: Sequence[Settings]) -> str:
    named = [arm for arm in comparison.arms if arm.n]
    count = f"{len(named)} configurations" if len(named) > 1 else "one configuration"
    names = f" ({joined([arm.arm for arm in named])})" if len(named) <= _MOST_ARMS else ""
    keys = settings.varied(configs)
    differ = f" They differ in {joined([_values(key, configs) for key in keys])}." if keys and len(named) > 1 else ""
    return f"We trained {count}{names}.{differ}"


def _values(key: str, configs: Sequence[Settings]) -> str:
    found = list(dict.fromkeys(settings.text(config[key]) for config in configs if key in config))
    return f"{key} ({', '.join(found)})" if len(found) <= 6 else f"{key} ({len(found)} values)"


def _data(rows: Sequence[RunRow], common: Settings) -> str:
    found = {(r.data_name, r.train_images, r.val_images, r.test_images, len(r.classes)) for row in rows if (r := row.result)}
    return " ".join(_data_sentence(*one, common.get("data.split_seed")) for one in sorted(found))


def _data_sentence(name: str, train: int, held_out: int, test: int, classes: int, split_seed: Any) -> str:
    drawn = f", a stratified draw with seed {split_seed}" if isinstance(split_seed, int) else ""
    val = f", {held_out:,} held out for validation{drawn}" if held_out else ""
    kinds = f", {classes} classes" if classes else ""
    if not train and not test:  # a program that does not count them
        return f"Data: {name}{kinds}."
    return f"Data: {name}{kinds}, {train:,} training images{val}, and {test:,} test images."


def _hardware(rows: Sequence[RunRow], configs: Sequence[Settings]) -> str:
    places = Counter(
        f"{r.device.partition(': ')[2] or r.device}, {_count(r.world_size, 'process', 'es')} a run" for row in rows if (r := row.result)
    )
    return f"Hardware: {'; '.join(sorted(places))}{methods_recipe.precision(_by_us(configs))}."


def _selection(rows: Sequence[RunRow]) -> str:
    has_val = any(row.result and row.result.val_images for row in rows)
    chosen = " The table also gives the accuracy at the epoch of the best validation accuracy." if has_val else ""
    return f"We report the accuracy on the test images after the last epoch, so that no epoch was chosen on them.{chosen}"


def _numbers(comparison: Comparison) -> str:
    named = [arm for arm in comparison.arms if arm.last]
    if len(named) > _MOST_ARMS:
        return ""
    seeds = {
        arm.arm: sorted(row.seed for row in comparison.gathered.of_arm(arm.arm) if row.result and row.seed is not None) for arm in named
    }
    several = any(arm.n > 1 for arm in named)
    intro = "Test accuracy (mean ± sample standard deviation over seeds)" if several else "Test accuracy"
    lines = "; ".join(_accuracy(arm, seeds[arm.arm]) for arm in named)
    # Of another metric the difference would be called one of accuracies.
    is_of_accuracy = comparison.metrics[0].name == DEFAULT[0]
    changes = [text for arm in named if is_of_accuracy and (text := _difference(arm))]
    paired = f" Minus {comparison.baseline} at equal seeds: {'; '.join(changes)}." if changes else ""
    return f"{intro}: {lines}.{paired}"


def _accuracy(arm: ArmSummary, seeds: Sequence[int]) -> str:
    assert arm.last is not None
    spread = "" if arm.last.std is None else f" ± {arm.last.std:.2f}"
    return f"{arm.arm} {arm.last.mean:.2f}{spread} % (n = {arm.n}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def _difference(arm: ArmSummary) -> str:
    change = arm.difference
    if change is None:
        return ""
    pairs = _count(change.pairs, "pair")
    interval = "" if change.low is None else f", 95 % t interval {change.low:+.2f} to {change.high:+.2f}"
    return f"{arm.arm} {change.mean:+.2f} points ({pairs}{interval})"


def _missing(comparison: Comparison) -> str:
    rows = [row for row in comparison.gathered.rows if row.arms]
    missing = sum(row.state != "finished" for row in rows)
    return f"{missing} of {len(rows)} planned runs {'is' if missing == 1 else 'are'} not finished and not counted." if missing else ""


def _code(rows: Sequence[RunRow]) -> str:
    results = [row.result for row in rows if row.result]
    codes = sorted(
        {f"{_short(r.commit)} (code digest {r.code_digest[:8]})" if r.commit else f"digest {r.code_digest[:8]}" for r in results}
    )
    versions = sorted(
        {", ".join(f"{name} {version}" for name, version in r.versions.items() if name in ("python", "torch")) for r in results}
    )
    with_versions = f", with {' or '.join(versions)}" if any(versions) else ""
    return f"Code: hpc-seresnet, {'commit ' if results[0].commit else ''}{'; '.join(codes)}{with_versions}."


def _short(commit: str) -> str:
    digits, plus, mark = commit.partition("+")
    return digits[:8] + plus + mark


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
