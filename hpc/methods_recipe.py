"""The part of the methods paragraph that configs tell: networks, training, augmentation, each with the work that it rests on.

Pure. What only some configurations use is named too, and said to be used by some. One invariant: a work that hpc.bibliography lists for
these configs is named here, and no other.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hpc import settings
from hpc.bibliography import is_ours
from hpc.settings import Settings

_VARIED = "varied"
_SOME = "in some configurations "

_ATTENTION = {
    "se": "squeeze-and-excitation (Hu et al., 2018)",
    "eca": "efficient channel attention (Wang et al., 2020)",
    "cbam": "CBAM (Woo et al., 2018)",
    "scse": "spatial and channel squeeze-and-excitation (Roy et al., 2018)",
    "simam": "SimAM (Yang et al., 2021)",
}
_SGDR = "(Loshchilov & Hutter, 2017)"
_MIXUP = "MixUp (Zhang et al., 2018)"
_AMP = "mixed precision (Micikevicius et al., 2018)"


def sentences(configs: Sequence[Settings]) -> list[str]:
    """Networks, training, augmentation; nothing of what no config says."""
    common = settings.shared(configs)
    return [networks(configs), _training(common, configs), _augmentation(common, configs)]


def networks(configs: Sequence[Settings]) -> str:
    """What was trained, ours and somebody else's."""
    own = list(dict.fromkeys(str(config["model.target"]) for config in configs if config.get("model.target")))
    ours = [config for config in configs if is_ours(config)]
    if not own:
        return f"The networks are {_residual(ours)}" if ours else ""
    if not ours:
        return f"The network is {own[0]}." if len(own) == 1 else f"The networks are {joined(own)}."
    return f"Some networks are {joined(own)}, the others {_residual(ours)}"


def _residual(configs: Sequence[Settings]) -> str:
    common = settings.shared(configs)
    blocks, width = common.get("model.blocks"), common.get("model.width")
    kind = f"{common.get('model.block', 'basic or bottleneck')} blocks"
    if isinstance(blocks, list | tuple):
        wide = [f"{width * 2**stage}" for stage in range(len(blocks))] if isinstance(width, int) else []
        stages = f"{joined(list(map(str, blocks)))} {kind}" + (f", {joined(wide)} channels wide" if wide else "")
    else:
        stages = f"different numbers of {kind}"
    depth = _if_used(configs, "model.drop_path", "branches were dropped with stochastic depth, rate {} (Huang et al., 2016)")
    return f"residual (He et al., 2016), with stages of {stages}{_attention(common, configs)}." + (f" {_begin(depth)}." if depth else "")


def _attention(common: Settings, configs: Sequence[Settings]) -> str:
    kinds = dict.fromkeys(str(config.get("model.attention")) for config in configs)
    names = [_ATTENTION[kind] for kind in kinds if kind in _ATTENTION]
    if not names:
        return ""
    some = "" if len(kinds) == 1 else "some "
    reduction = f", reduction {common['model.reduction']}" if common.get("model.reduction") and {*kinds} & {"se", "cbam", "scse"} else ""
    where = common.get("model.attention_at")
    place = {"every": " in every block", "every_other": " in every other block"}.get(str(where), "")
    if isinstance(where, list | tuple):
        place = f" in stage{'s' if len(where) > 1 else ''} {joined([str(stage) for stage in where])}"
    return f", {some}with {joined(names)}{reduction}{place}"


def loss(configs: Sequence[Settings]) -> str:
    """Somebody else's by its target."""
    return joined(list(dict.fromkeys(str(config.get("train.loss_target") or "cross-entropy") for config in configs)) or ["cross-entropy"])


def _training(common: Settings, configs: Sequence[Settings]) -> str:
    if not any("optim.lr" in config or "train.epochs" in config for config in configs):
        return ""
    momentum = f"{'Nesterov ' if common.get('optim.nesterov') else ''}momentum {_say(common, 'optim.momentum')}"
    decay = f"weight decay {_say(common, 'optim.weight_decay')}" + (
        " on weights alone" if common.get("optim.decay_on") == "weights" else ""
    )
    parts = {
        "clipped": _if_used(configs, "optim.clip_norm", "gradients clipped to a norm of {}"),
        "smoothed": _if_used(configs, "optim.label_smoothing", "label smoothing {} (Szegedy et al., 2016)"),
    }
    clipped, smoothed = (f", {part}" if part else "" for part in parts.values())
    averaged = _if_used(
        configs, "optim.ema_decay", "exponential averages of the weights (decay {}; Tarvainen & Valpola, 2017) were evaluated"
    )
    return (
        f"Each run took {_say(common, 'train.epochs')} epochs of SGD with {momentum}, {decay}{clipped} and"
        f" batches of {_say(common, 'train.global_batch_size')} images, on the {loss(configs)}{smoothed}."
        f" {_learning_rate(common, configs)}" + (f" {_begin(averaged)}." if averaged else "")
    )


def _learning_rate(common: Settings, configs: Sequence[Settings]) -> str:
    """From the first epoch to the last; a warm-up that is longer than the run is told as what it was."""
    lr, warmup, epochs = _say(common, "optim.lr"), common.get("optim.warmup_epochs"), common.get("train.epochs")
    kinds = list(dict.fromkeys(str(config["optim.schedule"]) for config in configs if "optim.schedule" in config))
    names = {"cosine": f"a cosine {_SGDR}", "restarts": f"cosines with warm restarts {_SGDR}", "steps": "steps", "constant": "a constant"}
    of_some = f" Its schedule varied: {joined([names.get(kind, kind) for kind in kinds])}." if len(kinds) > 1 else ""
    if isinstance(warmup, int) and isinstance(epochs, int) and warmup >= epochs:
        # The schedule never began, but the works that a config rests on are cited by config.
        kind = f" Its schedule would have been {names[kinds[0]]}." if kinds and kinds[0] in ("cosine", "restarts") else ""
        return f"The learning rate rose linearly towards {lr}, which it would have reached after {warmup} epochs.{of_some or kind}"
    start = f"rose linearly to {lr} over {warmup} epochs" if warmup else f"was {lr} at first"
    return f"The learning rate {start}{_schedule(common)}.{of_some}"


def _schedule(common: Settings) -> str:
    kind, horizon = common.get("optim.schedule"), common.get("optim.schedule_epochs") or common.get("train.epochs")
    until = f" at epoch {horizon:,}" if isinstance(horizon, int) else ""
    first, factor = _say(common, "optim.restart_epochs"), _say(common, "optim.restart_factor")
    steps = common.get("optim.step_epochs")
    at = f"epochs {joined([str(epoch) for epoch in steps])}" if isinstance(steps, list | tuple) and steps else "some epochs"
    said = {
        "constant": " and stayed there",
        "cosine": f" and then fell along a cosine {_SGDR} towards zero{until}",
        "restarts": f" and then fell along cosines with warm restarts {_SGDR}, the first of {first} epochs and each"
        f" {factor} times as long as the one before",
        "steps": f" and was multiplied by {_say(common, 'optim.step_factor')} at {at}",
    }
    return said.get(str(kind), "")


def _augmentation(common: Settings, configs: Sequence[Settings]) -> str:
    padding = common.get("augment.crop_padding")
    policy = _if_used(configs, "augment.autoaugment", "AutoAugment's {} policy (Cubuk et al., 2019)")
    parts = [
        f"random crops after a zero padding of {padding} pixels" if padding else "",
        "random horizontal flips" if common.get("augment.flip") else "",
        policy.replace("cifar10", "CIFAR-10"),
        _if_used(configs, "augment.augmix_severity", "AugMix of severity {} (Hendrycks et al., 2020)"),
        _if_used(configs, "augment.noise_std", "Gaussian noise with a deviation of up to {} (Lopes et al., 2019)"),
        _mixing(configs),
    ]
    named = [part for part in parts if part]
    return f"Training images were augmented by {joined(named)}." if named else ""


def _mixing(configs: Sequence[Settings]) -> str:
    mixed = [config for config in configs if config.get("augment.mix_prob") and _is_number(config.get("augment.cutmix_share"))]
    if not mixed:
        return ""
    shares = _distinct(mixed, "augment.cutmix_share")
    some = f"; {_or(f'{100 * share:g}' for share in shares)} % of the mixed batches"
    cutmix = f"CutMix (Yun et al., 2019{'' if shares == [1] else some})"
    kinds = [_MIXUP] * any(share < 1 for share in shares) + [cutmix] * any(share > 0 for share in shares)
    probabilities = _distinct(mixed, "augment.mix_prob")
    on = "every batch" if probabilities == [1] else f"{_or(f'{100 * probability:g}' for probability in probabilities)} % of the batches"
    return f"{'' if len(mixed) == len(configs) else _SOME}{' or '.join(kinds)} on {on}"


def precision(configs: Sequence[Settings]) -> str:
    """Of the arithmetic, as the end of a sentence."""
    kinds = [str(kind) for kind in _distinct(configs, "train.amp")]
    words = [f"{kind} {_AMP}" for kind in kinds if kind in ("bf16", "fp16")] + ["single precision"] * ("off" in kinds)
    return f", in {' or '.join(words)}" if words else ""


def joined(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _if_used(configs: Sequence[Settings], key: str, words: str) -> str:
    """The words with the values that are in use, said to be of some where others do without; nothing where none has it."""
    using = [config for config in configs if config.get(key) and config[key] not in ("none", "off")]
    if not using:
        return ""
    return ("" if len(using) == len(configs) else _SOME) + words.format(_or(settings.text(value) for value in _distinct(using, key)))


def _distinct(configs: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    found: list[Any] = []  # lists are no keys of a dict
    for config in configs:
        if key in config and config[key] not in found:
            found.append(config[key])
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _or(words: Iterable[str]) -> str:
    return " or ".join(words)


def _begin(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _say(common: Settings, key: str) -> str:
    value = common.get(key, _VARIED)
    return f"{value:,}" if isinstance(value, int) else settings.text(value)
