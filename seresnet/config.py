"""Every knob of a run, as frozen dataclasses, each key with its class, range and one line of help.

What a key's class means is in docs/adr/0002: identity keys make the run's id, numeric keys change bits but not the
experiment, extendable keys say where to stop, operational keys change nothing that is computed. Reading files is config_file's job.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Literal, cast

from seresnet.durable import canonical_json

#: Raised when the meaning or the default of an identity key changes. Part of every run id.
IDENTITY_SCHEMA = 1


#: Arguments for a callable of somebody else's code, in the order of their names: hashable, and one text for equal arguments.
ArgScalar = bool | int | float | str | None
ArgValue = ArgScalar | tuple[ArgScalar, ...]
Args = tuple[tuple[str, ArgValue], ...]
#: The keys that hold Args, and the target that they are for; below each stand keys such as model.args.depth.
ARGS_OF = {
    "model.args": "model.target",
    "data.args": "data.target",
    "train.loss_args": "train.loss_target",
    "program.args": "program.command",
}

DataName = Literal["digits", "cifar10", "cifar100", "svhn", "tiny_imagenet", "images"]


class KeyClass(Enum):
    """What changing a key does to a run that has started."""

    IDENTITY = "identity"
    NUMERIC = "numeric"
    EXTENDABLE = "extendable"
    OPERATIONAL = "operational"


@dataclass(frozen=True, kw_only=True)
class KeyRule:
    """The class, the help line and the range of one key; bounds are inclusive unless above or below says otherwise."""

    key_class: KeyClass
    help: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None


def _identity(default: Any, help: str, **rule: float) -> Any:
    return field(default=default, metadata={"rule": KeyRule(key_class=KeyClass.IDENTITY, help=help, **rule)})


def _numeric(default: Any, help: str, **rule: float) -> Any:
    return field(default=default, metadata={"rule": KeyRule(key_class=KeyClass.NUMERIC, help=help, **rule)})


def _extendable(default: Any, help: str, **rule: float) -> Any:
    return field(default=default, metadata={"rule": KeyRule(key_class=KeyClass.EXTENDABLE, help=help, **rule)})


def _operational(default: Any, help: str, **rule: float) -> Any:
    return field(default=default, metadata={"rule": KeyRule(key_class=KeyClass.OPERATIONAL, help=help, **rule)})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. The defaults are the report's baseline: 4,697,162 parameters for ten classes."""

    width: int = _identity(64, "channels of the first stage; every later stage doubles them", at_least=1)
    blocks: tuple[int, ...] = _identity((4, 4, 3), "residual blocks in each stage", at_least=1)
    block: Literal["basic", "bottleneck"] = _identity("basic", "residual block; a bottleneck's stage is 4 x as wide outside as its width")
    attention: Literal["none", "se", "eca", "cbam", "scse", "simam"] = _identity("none", "attention inside the residual branch")
    attention_at: Literal["every", "every_other"] | tuple[int, ...] = _identity(
        "every", "which blocks get it: every, every_other, or a list of stages counted from 1", at_least=1
    )
    reduction: int = _identity(16, "bottleneck of se, cbam and scse: channels are divided by it (Hu et al. 2018)", at_least=1)
    drop_path: float = _identity(0.0, "stochastic depth: rate of the last block, linear in depth (Huang et al. 2016)", at_least=0, below=1)
    target: str | None = _identity(None, "a network of your own instead: package.module:callable, see docs/own-code.md")
    args: Args = _identity((), "what model.target is called with, by name")  # noqa: RUF009 - a field, as the others are


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and which of them are for what. Subsets and the validation split are stratified by class."""

    name: DataName = _identity("cifar10", "the data set")  # noqa: RUF009 - a field, as the others are
    path: str | None = _operational(None, "source: official files, an archive or a folder split/class/image")
    dir: str | None = _operational(None, "where prepared arrays are kept; unset = the site's data_dir, else ./data")
    split_seed: int = _identity(0, "draws the validation split and the subsets", at_least=0)
    val_images: int = _identity(0, "images held out of train for validation; 0 = none", at_least=0)
    train_images: int | None = _identity(None, "train on this many images; unset = all", at_least=1)
    test_images: int | None = _identity(None, "test on this many images; unset = all", at_least=1)
    target: str | None = _identity(None, "a data set of your own instead of data.name: package.module:callable, see docs/own-code.md")
    args: Args = _identity((), "what data.target is called with, by name; data.path comes as path")  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to training images. The defaults are the report's."""

    crop_padding: int = _identity(4, "zero padding before the random crop; 0 = no crop", at_least=0, at_most=16)
    flip: bool = _identity(True, "random horizontal flip")
    autoaugment: Literal["none", "cifar10"] = _identity("cifar10", "AutoAugment policy (Cubuk et al. 2019)")
    augmix_severity: int = _identity(
        0, "AugMix (Hendrycks et al. 2020) without its JSD loss: strength, the paper's is 3; 0 = none", at_least=0, at_most=10
    )
    augmix_width: int = _identity(3, "chains of operations that AugMix mixes with the image", at_least=1, at_most=8)
    augmix_depth: int | None = _identity(None, "operations in each chain; unset = 1 to 3, drawn for each", at_least=1, at_most=8)
    noise_std: float = _identity(
        0.0, "Gaussian noise on pixels in [0, 1], its std drawn up to this for each image; 0 = none", at_least=0, at_most=1
    )
    mix_prob: float = _identity(1.0, "probability that a batch is mixed at all", at_least=0, at_most=1)
    cutmix_share: float = _identity(0.5, "share of CutMix among mixed batches, the rest is MixUp", at_least=0, at_most=1)
    mixup_alpha: float = _identity(1.0, "Beta(alpha, alpha) of MixUp's lambda", above=0)
    cutmix_alpha: float = _identity(1.0, "Beta(alpha, alpha) of CutMix's lambda", above=0)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """SGD with warm-up and a schedule, both pure functions of the epoch. The defaults are the report's."""

    lr: float = _identity(0.1, "learning rate after warm-up", above=0)
    momentum: float = _identity(0.9, "SGD momentum", at_least=0, below=1)
    nesterov: bool = _identity(False, "Nesterov momentum")
    weight_decay: float = _identity(5e-4, "L2 penalty", at_least=0)
    decay_on: Literal["all", "weights"] = _identity("all", "what it is on: all parameters, or not on biases and batch norm")
    clip_norm: float | None = _identity(None, "gradients are scaled to this L2 norm over all parameters if above; unset = never", above=0)
    ema_decay: float = _identity(
        0.0,
        "decay of averaged weights, which are then what is evaluated; 0 = none. After t steps at most (1 + t) / (10 + t)",
        at_least=0,
        below=1,
    )
    label_smoothing: float = _identity(0.0, "label smoothing of the cross-entropy (Szegedy et al. 2016)", at_least=0, below=1)
    schedule: Literal["cosine", "constant", "restarts", "steps"] = _identity("cosine", "learning rate after warm-up")
    restart_epochs: int = _identity(10, "restarts: epochs of the first cosine (SGDR, Loshchilov & Hutter 2017)", at_least=1)
    restart_factor: int = _identity(2, "restarts: every cosine is so many times as long as the one before", at_least=1)
    step_epochs: tuple[int, ...] | None = _identity(None, "steps: epochs, counted from 0, from which on the rate is multiplied", at_least=1)
    step_factor: float = _identity(0.1, "steps: what it is multiplied by at each of them", above=0, below=1)
    warmup_epochs: int = _identity(10, "linear warm-up, lr x (e + 1) / warmup_epochs", at_least=0)
    schedule_epochs: int | None = _identity(None, "horizon of the schedule; unset = train.epochs", at_least=1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, on how many samples at a time, on what, and how often the state is saved."""

    seed: int = _identity(0, "draws weights, order and augmentation", at_least=0)
    epochs: int = _extendable(900, "where to stop; may be raised up to the schedule's horizon", at_least=1)
    global_batch_size: int = _identity(1024, "samples of one optimiser step, over all ranks", at_least=1)
    micro_batch_size: int | None = _identity(
        None, "samples that share batch-norm statistics and mixing partners; unset = global_batch_size", at_least=1
    )
    loss_target: str | None = _identity(None, "a loss of your own instead of cross-entropy: package.module:callable")
    loss_args: Args = _identity((), "what train.loss_target is called with beside logits and targets, by name")  # noqa: RUF009
    device: Literal["cuda", "cpu"] = _numeric("cuda", "device kind; never falls back in silence")
    amp: Literal["bf16", "fp16", "off"] = _numeric("bf16", "autocast precision; fp16 adds gradient scaling")
    channels_last: bool = _numeric(True, "NHWC memory layout")
    compile: bool = _numeric(False, "torch.compile stem and blocks; evaluation and an epoch's short last micro-batch stay eager")
    deterministic: bool = _numeric(True, "same bits on the same machine kind; docs/reproducibility.md has the cost")
    fused_optimizer: bool = _numeric(False, "PyTorch's fused SGD kernel; fp16 on a GPU always takes it")
    threads: int = _numeric(1, "CPU threads of each rank", at_least=1)
    eval_batch_size: int = _numeric(500, "samples of one evaluation batch on each rank", at_least=1)
    data_on: Literal["auto", "device", "host"] = _operational("auto", "where the images wait: auto = on the device if they fit")
    ranks: int = _operational(1, "processes (GPUs) of this run; must divide the micro-batches of a global batch", at_least=1)
    nodes: int = _operational(1, "machines that the ranks are spread over, equally many on each", at_least=1)
    checkpoint_every_s: float = _operational(60.0, "seconds between saves", above=0)


@dataclass(frozen=True, kw_only=True)
class ProgramConfig:
    """Somebody's own script in place of seresnet.train. Without one the section stands in no record."""

    command: tuple[str, ...] | None = _identity(None, "a script of your own instead of the built-in training, see docs/own-script.md")
    args: Args = _identity((), "values for it, which it reads in run.yaml below config.program.args")  # noqa: RUF009


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: one config with one seed."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    program: ProgramConfig = field(default_factory=ProgramConfig)


Value = ArgValue | tuple[int, ...] | tuple[str, ...] | Args


def iter_keys(config: RunConfig) -> Iterator[tuple[str, KeyRule, Value, Value]]:
    """Yield (dotted key, rule, value, default) in the order of declaration."""
    for section in fields(config):
        part = getattr(config, section.name)
        for key in fields(part):
            yield f"{section.name}.{key.name}", key.metadata["rule"], getattr(part, key.name), key.default  # type: ignore[misc]


def to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Plain nested dict of every key, tuples as lists and arguments as dicts: what run.yaml holds."""
    result: dict[str, dict[str, Any]] = {}
    for dotted, _, value, _ in iter_keys(config):
        section, name = dotted.split(".")
        result.setdefault(section, {})[name] = _plain(dotted, value)
    if config.program == ProgramConfig():
        del result["program"]  # what older code wrote and reads
    return result


def to_dict_as_before(config: RunConfig, before: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """As to_dict, without keys that `before`, an earlier to_dict of this run, lacks and that have their defaults now.

    The code that wrote it does not know them and would refuse them: an older snapshot goes on with a run that a newer launcher sends.
    """
    found = to_dict(config)
    for dotted, _, value, default in iter_keys(config):
        section, name = dotted.split(".")
        known = before.get(section)
        if isinstance(known, Mapping) and name not in known and value == default:
            del found[section][name]
    return found


def _plain(dotted: str, value: Value) -> Any:
    if dotted in ARGS_OF:
        return plain_args(cast(Args, value))
    return list(value) if isinstance(value, tuple) else value


def plain_args(args: Args) -> dict[str, Any]:
    """The arguments by name, tuples as lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in args}


def split_target(target: str) -> tuple[str, str]:
    """(module, name in it) of "package.module:callable"; without a colon the last dot stands for it."""
    module, colon, name = target.partition(":")
    if not colon:
        module, _, name = target.rpartition(".")
    return module, name


def schedule_epochs(config: RunConfig) -> int:
    """The schedule's horizon in epochs: optim.schedule_epochs, or train.epochs where that is unset."""
    return config.optim.schedule_epochs or config.train.epochs


def micro_batch_size(config: RunConfig) -> int:
    """Samples that share batch-norm statistics: train.micro_batch_size, or the global batch where that is unset."""
    return config.train.micro_batch_size or config.train.global_batch_size


def fitting_world_sizes(config: RunConfig) -> tuple[int, ...]:
    """World sizes W with W x accumulation x micro_batch_size = global_batch_size, smallest first."""
    return divisors(config.train.global_batch_size // micro_batch_size(config))


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, smallest first."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return tuple(sorted({*small, *(number // n for n in small)}))


def identity(config: RunConfig) -> dict[str, Any]:
    """The identity keys that differ from their defaults, with the horizon and the micro-batch resolved.

    A key added later at its default changes no id. 0.1 and 1e-1 are one value, and so are 1 and 1.0.
    """
    resolved = {"optim.schedule_epochs": schedule_epochs(config), "train.micro_batch_size": micro_batch_size(config)}
    defaults = {"optim.schedule_epochs": 900, "train.micro_batch_size": config.train.global_batch_size}
    result: dict[str, Any] = {}
    for dotted, rule, value, default in iter_keys(config):
        value, default = resolved.get(dotted, value), defaults.get(dotted, default)
        if rule.key_class is KeyClass.IDENTITY and value != default:
            # timm.create_model and timm:create_model are one function, so they are one run.
            is_target = dotted in ARGS_OF.values() and isinstance(value, str)
            result[dotted] = ":".join(split_target(str(value))) if is_target else _plain(dotted, value)
    return result


def run_id(config: RunConfig, parent: str | None = None) -> str:
    """12 hex digits that equal experiments share, whatever machine, precision or number of ranks they run on.

    parent: of a fork, the state_digest that it began with. A fork never has the id of a run that began at step 0.
    """
    text = canonical_json({"schema": IDENTITY_SCHEMA, "identity": identity(config)} | ({} if parent is None else {"parent": parent}))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def numeric_keys(config: RunConfig) -> dict[str, Any]:
    """The keys that change bits but not the experiment; pinned in run.yaml at the first start."""
    return {dotted: value for dotted, rule, value, _ in iter_keys(config) if rule.key_class is KeyClass.NUMERIC}


def slug(text: str) -> str:
    """A name that is safe as a folder and in a shell: lower case, digits, dots and dashes, at most 60 characters."""
    cleaned = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    return cleaned[:60].rstrip("-.") or "run"
