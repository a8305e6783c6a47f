"""A run's YAML and overrides to a RunConfig, strictly: every fault of every source in one ConfigError, each with place, key and fix.

YAML itself is strict_yaml's job, single values are typed_values', what follows from two keys together is checked here.
One invariant: each key of a LoadedConfig has one value and one origin, and a key written twice in one source is a fault.
"""

import functools
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from seresnet.args import ARG_RULE, arg_of, convert_argument, show_args, target_problems
from seresnet.config import (
    ARGS_OF,
    Args,
    ArgValue,
    KeyClass,
    KeyRule,
    OptimConfig,
    RunConfig,
    Value,
    divisors,
    fitting_world_sizes,
    iter_keys,
    micro_batch_size,
    schedule_epochs,
)
from seresnet.errors import ConfigError
from seresnet.strict_yaml import SECRET_PROBLEM, Bad, Faults, Located, Place, hide_secrets, located, nearest, parse_yaml, read_yaml
from seresnet.typed_values import MistypedError, convert

DEFAULT = "default"
_CLASS_HELP = {
    KeyClass.IDENTITY: "what is computed; part of the run's id",
    KeyClass.NUMERIC: "changes bits, not the experiment; pinned at the first start",
    KeyClass.EXTENDABLE: "where to stop; may be raised up to the horizon",
    KeyClass.OPERATIONAL: "changes nothing that is computed",
}
_SWEEP_KEYS = ("code_root", "base", "arms", "grid", "zip", "random", "exclude", "seeds", "pack", "mail", "site", "wandb")


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """A valid config, and for every dotted key the place its value came from: "FILE:LINE", "override '...'" or "default"."""

    config: RunConfig
    origins: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key as one source sets it, converted and within its range. label is the key's path in that source."""

    dotted: str
    value: Value | Bad  # Bad: its fault is noted, and rules over several keys pass it over
    place: Place
    label: str


@dataclass(frozen=True, kw_only=True)
class KeySpec:
    """What a run's key may hold."""

    hint: Any
    rule: KeyRule
    default: Value


def read_run_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read a run's YAML; overrides are "optim.lr=0.05" and win. Raises ConfigError with every fault of file and overrides."""
    faults = Faults()
    tree, _ = read_yaml(path, faults)
    settings = collect(tree, faults)
    settings += collect_overrides([entry for text in overrides if (entry := parse_override(text, faults))], faults)
    if tree.value is Bad.BAD:
        faults.raise_any()  # rules over several keys say nothing about a file that was not read
    loaded = build(settings, faults)
    faults.raise_any()
    assert loaded, "a config without faults was not built"
    return loaded


def config_from_dict(mapping: Mapping[str, Any], source: str) -> RunConfig:
    """The config that to_dict wrote, as strictly as a file; source names it in messages. Absent keys have their defaults."""
    faults = Faults()
    loaded = build(collect(located(mapping, source), faults), faults)
    faults.raise_any()
    assert loaded, "a config without faults was not built"
    return loaded.config


def explain(loaded: LoadedConfig, dotted: str) -> str:
    """Value, origin, class, default and meaning of one key, in five lines; raises ConfigError for an unknown key."""
    spec, values = spec_of(dotted), _values(loaded.config)
    if spec is None or (arg_of(dotted) and dotted not in values):
        raise ConfigError(f"{dotted}: there is no such key. {key_fix(dotted)}")
    value = values[dotted]
    rows = {
        "from": loaded.origins[dotted],
        "class": f"{spec.rule.key_class.value}: {_CLASS_HELP[spec.rule.key_class]}",
        "default": "{}" if dotted in ARGS_OF else show_value(spec.default),
        "meaning": spec.rule.help,
    }
    return "\n".join([f"{dotted} = {show_value(value)}", *(f"  {name:8} {text}" for name, text in rows.items())])


def show_value(value: Value) -> str:
    """A value as YAML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        if value and isinstance(value[0], tuple):
            return show_args(value)
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)


#: A section that a single value may stand for: `program: [python, train.py, ...]`.
SHORT_FOR = {"program": "program.command"}


@functools.cache
def key_specs() -> Mapping[str, KeySpec]:
    """Every dotted key of a run, in the order of declaration."""
    hints = {section.name: typing.get_type_hints(section.type) for section in fields(RunConfig)}
    specs = {}
    for dotted, rule, _, default in iter_keys(RunConfig()):
        section, name = dotted.split(".")
        specs[dotted] = KeySpec(hint=hints[section][name], rule=rule, default=default)
    return specs


def spec_of(dotted: str) -> KeySpec | None:
    """What a key may hold, also one such as model.args.depth; None for an unknown key."""
    return KeySpec(hint=ArgValue, rule=ARG_RULE, default=None) if arg_of(dotted) else key_specs().get(dotted)


def collect(tree: Located, faults: Faults, *, prefix: str = "") -> list[Setting]:
    """The settings of one source, nested or dotted, each checked alone; faults of keys, values and doubles are noted."""
    if tree.value is Bad.BAD or tree.value is None:
        return []  # an empty file or section sets nothing
    if not isinstance(tree.value, dict):
        hint = " Put a space after the colon." if isinstance(tree.value, str) and ":" in tree.value else ""
        faults.add(tree.place, prefix, f"{tree.shown()} is not a mapping of keys. Write lines such as `optim.lr: 0.1`.{hint}")
        return []
    found: dict[str, Setting] = {}
    for dotted, entry in flatten(tree, faults, prefix=prefix):
        label = f"{prefix}.{dotted}" if prefix else dotted
        if dotted in found:
            faults.add(entry.place, label, f"{entry.shown()} is set a second time, first at {found[dotted].place}. Keep one.")
        elif setting := check(dotted, entry, label, faults):
            found[dotted] = setting
    return list(found.values())


def flatten(tree: Located, faults: Faults, *, prefix: str) -> Iterator[tuple[str, Located]]:
    """(dotted key, value) of a mapping whose sections may be nested; a section that is not one is a fault."""
    sections = {section.name for section in fields(RunConfig)}
    for key, entry in tree.value.items():
        if key not in sections:
            yield from _leaves(key, entry)
        elif isinstance(entry.value, dict):
            for name, leaf in entry.value.items():
                yield from _leaves(f"{key}.{name}", leaf)
        elif key in SHORT_FOR and entry.value is not None:
            yield SHORT_FOR[key], entry
        elif entry.value is not None and entry.value is not Bad.BAD:
            label = f"{prefix}.{key}" if prefix else key
            faults.add(entry.place, label, f"{entry.shown()} is given to a section. Write {key}'s keys below it, indented.")


def _leaves(dotted: str, entry: Located) -> Iterator[tuple[str, Located]]:
    """The key itself, or one for each argument of a mapping of them: layers add up by name, as sections do."""
    if dotted not in ARGS_OF:
        yield dotted, entry
    elif isinstance(entry.value, dict):
        yield from ((f"{dotted}.{name}", value) for name, value in entry.value.items())
    elif entry.value is not None:
        yield dotted, entry


def check(dotted: str, entry: Located, label: str, faults: Faults) -> Setting | None:
    """One key's value against its type and range, faults noted; None for an unknown key."""
    spec = spec_of(dotted)
    if spec is None:
        given = "a value" if entry.value is Bad.BAD else entry.shown()
        faults.add(entry.place, label, f"{given} is given to an unknown key. {key_fix(dotted)}")
        return None
    value: Value | Bad = Bad.BAD
    try:
        value = convert_argument(dotted, entry) if dotted in ARGS_OF or arg_of(dotted) else convert(entry, spec.hint, spec.rule)
    except MistypedError as problem:
        faults.add(entry.place, label, str(problem))
    return Setting(dotted=dotted, value=value, place=entry.place, label=label)


def parse_override(text: str, faults: Faults) -> tuple[str, Located] | None:
    """(dotted key, value) of "optim.lr=0.05"; the value is read as YAML. None after noting a fault."""
    key, equals, value = text.partition("=")
    key, shown = hide_secrets(key), hide_secrets(value)
    source = f"override {key + equals + shown!r}"
    if not equals or not key.strip():
        faults.add(Place(source), "", "this is not KEY=VALUE. Write it like optim.lr=0.05.")
        return None
    if shown != value:  # also in what YAML would drop as a comment: overrides are stored as they were typed
        faults.add(Place(source), "", SECRET_PROBLEM)
        return key.strip(), Located(value=Bad.BAD, place=Place(source))
    return key.strip(), parse_yaml(value, source, faults, line_less=True)


def collect_overrides(entries: Iterable[tuple[str, Located]], faults: Faults) -> list[Setting]:
    """The settings of overrides of a run's keys; the same key twice is a fault."""
    found: dict[str, Setting] = {}
    leaves = [leaf for key, value in entries for leaf in _leaves(SHORT_FOR.get(key, key), value)]
    for dotted, entry in leaves:
        if dotted in found:
            faults.add(entry.place, dotted, f"the key is overridden twice, first by {found[dotted].place}. Keep one.")
        elif setting := check(dotted, entry, dotted, faults):
            found[dotted] = setting
    return list(found.values())


def build(settings: Sequence[Setting], faults: Faults) -> LoadedConfig | None:
    """The config of settings in layers, later ones winning. Notes faults of keys together; None if a setting is at fault."""
    last = {setting.dotted: (layer, setting) for layer, setting in enumerate(settings)}
    bad = {dotted for dotted, (_, setting) in last.items() if setting.value is Bad.BAD}
    parts: dict[str, dict[str, Any]] = {section.name: {} for section in fields(RunConfig)}
    for dotted in sorted(last.keys() - bad):
        section, name = (arg_of(dotted) or dotted).split(".")
        value: Any = last[dotted][1].value
        # In the order of their names, whatever the order of the file.
        parts[section][name] = (*parts[section].get(name, ()), (dotted.rpartition(".")[2], value)) if arg_of(dotted) else value
    config = RunConfig(**{section.name: section.type(**parts[section.name]) for section in fields(RunConfig)})  # type: ignore[operator]
    # Whose training it is decides which rules hold.
    joint = _joint_problems(config) if "program.command" not in bad else ()
    problems = [(keys, problem) for keys, problem in joint if bad.isdisjoint(keys)]
    for keys, problem in problems:
        # The defaults fit each other, so at least one of the keys was set.
        _, culprit = max((last[key] for key in last if key in keys or arg_of(key) in keys), key=lambda pair: pair[0])
        faults.add(culprit.place, culprit.label, problem.removeprefix(f"{culprit.dotted} "))
    origins = {dotted: str(last[dotted][1].place) if dotted in last else DEFAULT for dotted in [*key_specs(), *filter(arg_of, last)]}
    origins |= {args: origins[dotted] for dotted in last if (args := arg_of(dotted))}
    return None if problems or bad else LoadedConfig(config=config, origins=origins)


def _joint_problems(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys involved, problem) for each rule over several keys. The setting that came last among the keys is blamed."""
    if config.program.command is not None:
        yield from target_problems(config)
        return  # what the built-in training's keys mean to somebody's script is its own business
    train, batch, micro = config.train, config.train.global_batch_size, micro_batch_size(config)
    if batch % micro:
        fitting = _listed(list(divisors(batch)))
        problem = f"train.micro_batch_size {micro} does not divide train.global_batch_size {batch}. Sizes that do: {fitting}."
        yield ("train.micro_batch_size", "train.global_batch_size"), problem
    elif train.ranks not in fitting_world_sizes(config):
        yield ("train.ranks", "train.micro_batch_size", "train.global_batch_size"), _ranks_problem(config)
    if train.ranks % train.nodes:
        problem = f"train.nodes {train.nodes} cannot share train.ranks {train.ranks} equally."
        yield ("train.nodes", "train.ranks"), f"{problem} Use one of {_listed(divisors(train.ranks))} nodes, or other train.ranks."
    horizon = schedule_epochs(config)
    horizon_key = "optim.schedule_epochs" if config.optim.schedule_epochs else "train.epochs"
    if train.epochs > horizon:
        problem = f"train.epochs {train.epochs} is beyond optim.schedule_epochs {horizon}. Use {horizon} epochs or fewer."
        yield ("train.epochs", "optim.schedule_epochs"), problem
    if config.optim.warmup_epochs >= horizon:
        problem = f"optim.warmup_epochs {config.optim.warmup_epochs} leaves nothing of a schedule of {horizon} epochs."
        yield ("optim.warmup_epochs", horizon_key), f"{problem} Set optim.warmup_epochs below {horizon}."
    stages, wanted = range(1, len(config.model.blocks) + 1), config.model.attention_at
    if not isinstance(wanted, str) and not set(wanted) <= set(stages):
        problem = f"model.attention_at {show_value(wanted)} names a stage that is not there. Name some of {_listed(stages)}."
        yield ("model.attention_at", "model.blocks"), problem
    elif not isinstance(wanted, str) and list(wanted) != sorted(set(wanted)):
        # One spelling only: another order would be the same network under another run id.
        problem = f"{show_value(wanted)} is not in ascending order, each stage once. Write {show_value(tuple(sorted(set(wanted))))}."
        yield ("model.attention_at",), problem
    if config.augment.augmix_severity and config.augment.autoaugment != "none":
        problem = f"augment.augmix_severity {config.augment.augmix_severity} is set beside augment.autoaugment"
        problem = f"{problem} {config.augment.autoaugment}. Set augment.autoaugment: none, or augment.augmix_severity: 0."
        yield ("augment.augmix_severity", "augment.autoaugment"), problem

    yield from _schedule_problems(config.optim, horizon)
    yield from target_problems(config)


def _schedule_problems(optim: OptimConfig, horizon: int) -> Iterator[tuple[tuple[str, ...], str]]:
    steps, keys = optim.step_epochs or (), ("optim.step_epochs", "optim.schedule")
    if (optim.schedule == "steps") != bool(steps):
        problem = f"optim.step_epochs is {show_value(optim.step_epochs)}, and optim.schedule is {optim.schedule}."
        yield keys, f"{problem} Set both, such as optim.schedule: steps with optim.step_epochs: [{horizon // 2}], or neither."
    elif list(steps) != sorted(set(steps)) or (steps and steps[-1] >= horizon):
        problem = f"optim.step_epochs {show_value(steps)} are not ascending epochs, each once, below the horizon of {horizon}."
        yield ("optim.step_epochs",), f"{problem} Correct them."


def _ranks_problem(config: RunConfig) -> str:
    ranks, batch, micro = config.train.ranks, config.train.global_batch_size, micro_batch_size(config)
    fitting = fitting_world_sizes(config)
    problem = f"train.ranks {ranks} cannot share train.global_batch_size {batch} in micro-batches of {micro}. "
    if batch % ranks == 0:
        return f"{problem}Use {_listed(fitting)}, or set train.micro_batch_size to {batch // ranks}."
    return f"{problem}Use one of {_listed(fitting)}." if len(fitting) > 1 else f"{problem}Use {fitting[0]}."


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[-12:]))
    return shown if len(numbers) <= 12 else f"..., {shown}"


def key_fix(dotted: str) -> str:
    """The key that was most probably meant, else the keys there are. A mistyped section comes first: the rest may be right."""
    head, _, rest = dotted.partition(".")
    if head in _SWEEP_KEYS:
        own = "It is a key of sweeps, and this is read as one run. Launch a sweep's file with --sweep."
        return own if not rest else "It is a key of sweeps, not of runs. Write it at the top of a sweep's file."
    sections = [part.name for part in fields(RunConfig)]
    names = list(dict.fromkeys(key.partition(".")[2] for key in key_specs()))
    meant = nearest(head, [*sections, *_SWEEP_KEYS, *([] if rest else names)])
    if meant in _SWEEP_KEYS:
        return f"Did you mean {meant}{'.' * bool(rest)}{rest}, a key of sweeps?"
    near = _below(meant, rest, names) if rest else meant if meant in sections else _namesakes(meant)
    if near:
        return f"Did you mean {near}?"
    below = [key.partition(".")[2] for key in key_specs() if key.startswith(f"{meant}.")]
    return f"Keys of {meant}: {', '.join(below)}." if below else f"Sections: {', '.join(sections)}."


def _below(section: str | None, rest: str, names: Sequence[str]) -> str | None:
    """The key that was meant: this one of that section, the only one of this name, or what is near."""
    if spec_of(f"{section}.{rest}"):
        return f"{section}.{rest}"
    same = [key for key in key_specs() if key.endswith(f".{rest.rpartition('.')[2]}")]
    own = nearest(rest, [key.partition(".")[2] for key in key_specs() if key.startswith(f"{section}.")])
    if len(same) != 1 and own:
        return f"{section}.{own}"
    return " or ".join(same) or _namesakes(nearest(rest, names))


def _namesakes(name: str | None) -> str | None:
    """The keys of this name, each in its section."""
    return " or ".join(key for key in key_specs() if key.partition(".")[2] == name) or None


def _values(config: RunConfig) -> dict[str, Value]:
    values = {dotted: value for dotted, _, value, _ in iter_keys(config)}
    arguments: dict[str, Value] = {f"{args}.{name}": value for args in ARGS_OF for name, value in cast(Args, values[args])}
    return {**values, **arguments}
