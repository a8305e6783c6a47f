"""The paragraph that a paper's methods section needs, and the works that the runs rest on, from what the runs themselves say.

Pure. A sentence stands only where the records carry it: a setting that differs between arms is called varied, one that is not known is
left out. One invariant: no work is cited that no run used.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hpc import settings
from hpc.comparison import Comparison
from hpc.gather import RunRow
from hpc.metrics import DEFAULT
from hpc.settings import Settings
from hpc.stats import ArmSummary

#: Arms that are named one by one; of more the table has the numbers.
_MOST_ARMS = 12

_VARIED = "varied"

_ATTENTION = {
    "se": "squeeze-and-excitation (Hu et al., 2018)",
    "eca": "efficient channel attention (Wang et al., 2020)",
    "cbam": "CBAM (Woo et al., 2018)",
    "scse": "spatial and channel squeeze-and-excitation (Roy et al., 2018)",
    "simam": "SimAM (Yang et al., 2021)",
}


def paragraph(comparison: Comparison) -> str:
    """English prose; what a reader must add is which question the comparison answers."""
    rows = comparison.gathered.finished
    if not rows:
        return "No run has finished yet, so there is nothing to report."
    configs = settings.configs_of(rows)
    common = settings.shared(configs)
    programs = _programs(configs)
    parts = [
        _arms(comparison, configs),
        _data(rows, common),
        *([programs] if programs else [_networks(common, configs), _training(common, _loss(configs)), _augmentation(common)]),
        _hardware(rows, common),
        _selection(rows),
        _numbers(comparison),
        _missing(comparison),
        _code(rows),
    ]
    return " ".join(part for part in parts if part)


def _programs(configs: Sequence[Settings]) -> str:
    """How scripts of their own are started: of their networks, optimisers and augmentations nothing is known here."""
    found = list(dict.fromkeys(" ".join(config["program.command"]) for config in configs if config.get("program.command")))
    return f"Training is by {_and([f'`{command}`' for command in found])}." if found else ""


def _arms(comparison: Comparison, configs: Sequence[Settings]) -> str:
    named = [arm for arm in comparison.arms if arm.n]
    count = f"{len(named)} configurations" if len(named) > 1 else "one configuration"
    names = f" ({_and([arm.arm for arm in named])})" if len(named) <= _MOST_ARMS else ""
    keys = settings.varied(configs)
    differ = f" They differ in {_and([_values(key, configs) for key in keys])}." if keys and len(named) > 1 else ""
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
    kinds = f" {classes} classes," if classes else ""
    return f"Data: {name},{kinds} {train:,} training images{val}, and {test:,} test images."


def _networks(common: Settings, configs: Sequence[Settings]) -> str:
    own = list(dict.fromkeys(str(config["model.target"]) for config in configs if config.get("model.target")))
    if own:
        is_all = all(config.get("model.target") for config in configs)
        others = "" if is_all else ", the others residual (He et al., 2016)"
        return (
            f"The network is {own[0]}." if is_all and len(own) == 1 else f"{'The' if is_all else 'Some'} networks are {_and(own)}{others}."
        )
    blocks, width = common.get("model.blocks"), common.get("model.width")
    if not isinstance(blocks, list | tuple):
        return ""
    kind = f"{common.get('model.block', 'residual')} blocks"
    widths = f", {_and([f'{width * 2**stage}' for stage in range(len(blocks))])} channels wide" if isinstance(width, int) else ""
    stages = f"with stages of {_and(list(map(str, blocks)))} {kind}{widths}"
    dropped = common.get("model.drop_path")
    depth = f" Branches were dropped with stochastic depth, rate {dropped} (Huang et al., 2016)." if dropped else ""
    return f"The networks are residual (He et al., 2016), {stages}{_attention(common, configs)}.{depth}"


def _attention(common: Settings, configs: Sequence[Settings]) -> str:
    kinds = dict.fromkeys(str(config.get("model.attention")) for config in configs)
    names = [_ATTENTION[kind] for kind in kinds if kind in _ATTENTION]
    if not names:
        return ""
    some = "" if len(kinds) == 1 else "some "
    reduction = f", reduction {common['model.reduction']}" if common.get("model.reduction") and {*kinds} & {"se", "cbam", "scse"} else ""
    place = {"every": " in every block", "every_other": " in every other block"}.get(str(common.get("model.attention_at")), "")
    return f", {some}with {_and(names)}{reduction}{place}"


def _loss(configs: Sequence[Settings]) -> str:
    return _and(list(dict.fromkeys(str(config.get("train.loss_target") or "cross-entropy") for config in configs)) or ["cross-entropy"])


def _training(common: Settings, loss: str) -> str:
    if "optim.lr" not in common and "train.epochs" not in common:
        return ""
    momentum = f"{'Nesterov ' if common.get('optim.nesterov') else ''}momentum {_say(common, 'optim.momentum')}"
    decay = f"weight decay {_say(common, 'optim.weight_decay')}" + (
        " on weights alone" if common.get("optim.decay_on") == "weights" else ""
    )
    clipped = f", gradients clipped to a norm of {common['optim.clip_norm']}" if common.get("optim.clip_norm") else ""
    smoothing = f", label smoothing {common['optim.label_smoothing']} (Szegedy et al., 2016)" if common.get("optim.label_smoothing") else ""
    averaged = f" Averaged weights (decay {common['optim.ema_decay']}) were evaluated." if common.get("optim.ema_decay") else ""
    return (
        f"Each run took {_say(common, 'train.epochs')} epochs of SGD with {momentum}, {decay}{clipped} and"
        f" batches of {_say(common, 'train.global_batch_size')} images, on the {loss}{smoothing}."
        f" {_learning_rate(common)}{averaged}"
    )


def _learning_rate(common: Settings) -> str:
    """From the first epoch to the last; a warm-up that is longer than the run is told as what it was."""
    lr, warmup, epochs = _say(common, "optim.lr"), common.get("optim.warmup_epochs"), common.get("train.epochs")
    if isinstance(warmup, int) and isinstance(epochs, int) and warmup >= epochs:
        return f"The learning rate rose linearly towards {lr}, which it would have reached after {warmup} epochs."
    start = f"rose linearly to {lr} over {warmup} epochs" if warmup else f"was {lr} at first"
    return f"The learning rate {start}{_schedule(common)}."


def _schedule(common: Settings) -> str:
    kind, horizon = common.get("optim.schedule"), common.get("optim.schedule_epochs") or common.get("train.epochs")
    until = f" at epoch {horizon:,}" if isinstance(horizon, int) else ""
    first, factor = _say(common, "optim.restart_epochs"), _say(common, "optim.restart_factor")
    steps = common.get("optim.step_epochs")
    at = f"epochs {_and([str(epoch) for epoch in steps])}" if isinstance(steps, list | tuple) and steps else "some epochs"
    said = {
        "constant": " and stayed there",
        "cosine": f" and then fell along a cosine (Loshchilov & Hutter, 2017) towards zero{until}",
        "restarts": f" and then fell along cosines with warm restarts (Loshchilov & Hutter, 2017), the first of {first} epochs and each"
        f" {factor} times as long as the one before",
        "steps": f" and was multiplied by {_say(common, 'optim.step_factor')} at {at}",
    }
    return said.get(str(kind), "")


def _say(common: Settings, key: str) -> str:
    value = common.get(key, _VARIED)
    return f"{value:,}" if isinstance(value, int) else settings.text(value)


def _when(common: Settings, key: str, words: str) -> str:
    return words.format(_say(common, key)) if common.get(key) else ""


def _augmentation(common: Settings) -> str:
    padding, policy = common.get("augment.crop_padding"), common.get("augment.autoaugment")
    parts = [
        f"random crops after a zero padding of {padding} pixels" if padding else "",
        "random horizontal flips" if common.get("augment.flip") else "",
        f"AutoAugment's {str(policy).upper().replace('CIFAR10', 'CIFAR-10')} policy (Cubuk et al., 2019)"
        if policy not in (None, "none")
        else "",
        _when(common, "augment.augmix_severity", "AugMix of severity {} (Hendrycks et al., 2020)"),
        _when(common, "augment.noise_std", "Gaussian noise with a deviation of up to {} (Lopes et al., 2019)"),
        _mixing(common),
    ]
    named = [part for part in parts if part]
    return f"Training images were augmented by {_and(named)}." if named else ""


def _mixing(common: Settings) -> str:
    probability, share = common.get("augment.mix_prob"), common.get("augment.cutmix_share")
    if not probability or share is None:
        return ""
    kinds = {0: "MixUp (Zhang et al., 2018)", 1: "CutMix (Yun et al., 2019)"}
    kind = kinds.get(share, f"MixUp (Zhang et al., 2018) or CutMix (Yun et al., 2019; {100 * share:g} % of the mixed batches)")
    return f"{kind} on {'every batch' if probability == 1 else f'{100 * probability:g} % of the batches'}"


def _hardware(rows: Sequence[RunRow], common: Settings) -> str:
    places = Counter(
        f"{r.device.partition(': ')[2] or r.device}, {_count(r.world_size, 'process', 'es')} a run" for row in rows if (r := row.result)
    )
    amp = common.get("train.amp") if not common.get("program.command") else None  # a program's precision is its own
    precision = (
        f", in {amp} mixed precision (Micikevicius et al., 2018)"
        if amp in ("bf16", "fp16")
        else ", in single precision"
        if amp == "off"
        else ""
    )
    return f"Hardware: {'; '.join(sorted(places))}{precision}."


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


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
