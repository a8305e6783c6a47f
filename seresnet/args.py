"""Keys for somebody else's code: targets such as `my.models:build`, the arguments below them, and what does not go together.

Torch-free, and nothing is imported here: what a target names is looked up by targets.py, where it runs. One invariant: arguments are
plain values in the order of their names, so that equal ones are one run.
"""

import re
from collections.abc import Iterator
from typing import Any, cast

from seresnet.config import ARGS_OF, Args, ArgValue, DataConfig, KeyClass, KeyRule, ModelConfig, RunConfig, iter_keys
from seresnet.strict_yaml import Bad, Located
from seresnet.typed_values import MistypedError, convert

ARG_RULE = KeyRule(key_class=KeyClass.IDENTITY, help="an argument for the target beside it, handed over by this name")

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_TARGET = re.compile(rf"{_NAME}(\.{_NAME})*:{_NAME}(\.{_NAME})*|{_NAME}(\.{_NAME})+")
_EXAMPLE = "Write package.module:callable, such as my_models.nets:build, or timm.create_model"
#: Names alone: `${HOME}`, `{}` and `{"lr": 1}` mean something to others.
_PLACEHOLDER = re.compile(r"(?<!\$)\{([A-Za-z_]\w*)\}")
_SCALARS = {bool: bool, int: int, float: float, str: str}


def arg_of(dotted: str) -> str | None:
    """The key that holds it, where this is one argument: model.args for model.args.depth."""
    return next((args for args in ARGS_OF if dotted.startswith(f"{args}.")), None)


def convert_argument(dotted: str, entry: Located) -> ArgValue | Bad:
    """One argument's value: a plain value or a list of them. Raises MistypedError."""
    args = arg_of(dotted)
    if args is None:
        raise MistypedError(f"{entry.shown()} is not a mapping of arguments. Write {dotted}: {{name: value}}.")
    name = dotted.removeprefix(f"{args}.")
    if not re.fullmatch(_NAME, name):
        raise MistypedError(f"{name!r} cannot be the name of an argument. Use letters, digits and _.")
    if isinstance(entry.value, list):
        values = tuple(_scalar(part) for part in entry.value)
        return Bad.BAD if Bad.BAD in values else cast(ArgValue, values)
    return cast(ArgValue | Bad, _scalar(entry))


def _scalar(entry: Located) -> Any:
    if isinstance(entry.value, dict | list):
        raise MistypedError(
            f"{entry.shown()} is given, a plain value or a list of plain values is wanted. Hand its parts over as arguments of their own."
        )
    if entry.value is None or entry.value == "" or entry.value is Bad.BAD:
        return entry.value
    return convert(entry, _SCALARS[type(entry.value)])


def show_args(args: Args) -> str:
    """Arguments as YAML writes them."""
    return f"{{{', '.join(f'{name}: {_shown(value)}' for name, value in args)}}}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else "null" if value is None else str(value)


def target_problems(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys involved, problem) for each rule over targets and the keys beside them."""
    values = {dotted: value for dotted, _, value, _ in iter_keys(config)}
    for args, target in ARGS_OF.items():
        found = values[target]
        if isinstance(found, str) and not _TARGET.fullmatch(found):
            yield (target,), f"{found!r} does not say where a callable is. {_EXAMPLE}."
        if values[args] and found is None:
            yield (args, target), f"{args} has arguments, and {target} is not set. Set it, or leave them away."
    if config.model.target is not None:
        yield from _beside_a_network(config)
    if config.data.target is not None:
        yield from _beside_a_data_set(config.data)
    if config.program.command is not None:
        yield from _of_a_program(config)


def _of_a_program(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    command, key = config.program.command or (), "program.command"
    if not command or not all(part.strip() for part in command):
        yield (key,), f"{key} has no words, or an empty one. Write [python, train.py, '{{run_dir}}/run.yaml']."
        return
    held = {name for part in command for name in _PLACEHOLDER.findall(part)}
    for name in sorted(held - {"run_dir"}):
        yield (key,), f"{{{name}}} in {' '.join(command)!r} is nothing that would be filled in. Write {{run_dir}}; the rest is in run.yaml."
    if not held:
        yield (key,), f"{' '.join(command)!r} is not told which run it is. Add '{{run_dir}}/run.yaml'."
    if config.train.nodes > 1:
        yield (key, "train.nodes"), f"train.nodes {config.train.nodes} is set beside a program, which runs on one node. Set train.nodes: 1."


def _beside_a_data_set(data: DataConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    usual = DataConfig().name
    if data.name != usual:
        problem = f"data.name {data.name} is one of the built-in data sets, and data.target is {data.target}."
        yield ("data.name", "data.target"), f"{problem} Leave one of them away; below a base that says the name, write data.name: {usual}."
    if data.path and any(name == "path" for name, _ in data.args):
        yield (
            ("data.args", "data.path"),
            "data.args.path is given, and data.path comes as path, too. Keep data.path: a place is no identity.",
        )


def _beside_a_network(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    own, target = ModelConfig(), config.model.target
    for name in ("width", "blocks", "block", "attention", "attention_at", "reduction", "drop_path"):
        if (value := getattr(config.model, name)) != getattr(own, name):
            problem = f"model.{name} {value} is a key of the built-in network, and model.target is {target}."
            yield (f"model.{name}", "model.target"), f"{problem} Leave one of them away, or hand it over as model.args.{name}."
    if config.train.compile:
        problem = f"train.compile true compiles the blocks of the built-in network, and model.target is {target}."
        yield ("train.compile", "model.target"), f"{problem} Set train.compile: false."
