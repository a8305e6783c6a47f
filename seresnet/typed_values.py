"""One located value against one type hint and one range: the Python value, or a sentence that says what is wrong and the fix.

Used for every key of every file, so that a mistake reads the same everywhere. One invariant: nothing is converted but a whole
number to a float; a bool is never a number and text is never anything else.
"""

import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from seresnet.config import KeyRule
from seresnet.strict_yaml import Bad, Located, nearest

#: Beyond it a JSON reader or a float loses digits, so two values would share one identity.
_LARGEST_WHOLE = 2**53

#: No folder, address or comment has one, and a NUL is an error of the system where the text is used.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_KINDS = {type(None): "nothing", bool: "a boolean", int: "a whole number", float: "a decimal number", str: "text", list: "a list"}
_YAML_1_1_NUMBER = re.compile(r"[-+]?(0[0-7]+|0[xob][0-9A-Fa-f_]+|[0-9][0-9_]*(\.[0-9_]*)?|[0-9]+(:[0-9]+)+(\.[0-9]*)?)")


class MistypedError(Exception):
    """What is wrong with a value, as "VALUE is ... RULE. FIX."."""


def convert(node: Located, hint: Any, rule: KeyRule | None = None) -> Any:
    """The value that node holds, as hint wants it; raises MistypedError. rule bounds numbers, also those inside a list.

    Bad.BAD for a value whose fault is noted already.
    """
    if node.value is Bad.BAD or (isinstance(node.value, list) and any(entry.value is Bad.BAD for entry in node.value)):
        return Bad.BAD
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for alternative in alternatives:
        if _fits(node, alternative):
            return _checked(node, alternative, rule)
    raise MistypedError(_mismatch(node, alternatives))


def _fits(node: Located, kind: Any) -> bool:
    value = node.value
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str) and value in typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        item = _item(kind)
        # An empty list of numbers describes nothing; an empty list of lines takes back those of a layer below.
        return isinstance(value, list) and (bool(value) or item is str) and all(_fits(entry, item) for entry in value)
    if kind is float:
        return type(value) in (int, float) and not isinstance(value, bool)
    return type(value) is kind and value != ""


def _checked(node: Located, kind: Any, rule: KeyRule | None) -> Any:
    if typing.get_origin(kind) is tuple:
        return tuple(_checked(entry, _item(kind), rule) for entry in node.value)
    if kind is str and _CONTROL.search(node.value):
        raise MistypedError(f"{node.shown()} holds a line break or another control character. Write it on one line, without.")
    if kind not in (int, float):
        return node.value
    if _LARGEST_WHOLE <= abs(node.value) < math.inf:  # math.isfinite would raise for an int that no float can hold
        raise MistypedError(f"{node.shown()} is too large a number. Use one below 2^53.")
    value = float(node.value) + 0.0 if kind is float else node.value  # + 0.0: -0.0 and 0.0 are one value
    if not math.isfinite(value):
        raise MistypedError(f"{node.shown()} is not a finite number. {_range_fix(rule)}")
    if rule and not _within(value, rule):
        raise MistypedError(f"{node.shown()} is out of range. {_range_fix(rule)}")
    return value


def _item(kind: Any) -> Any:
    """What a list of this kind holds: tuple[int, ...] whole numbers, tuple[str, ...] lines of text."""
    return typing.get_args(kind)[0]


def _within(value: float, rule: KeyRule) -> bool:
    return (
        (rule.at_least is None or value >= rule.at_least)
        and (rule.at_most is None or value <= rule.at_most)
        and (rule.above is None or value > rule.above)
        and (rule.below is None or value < rule.below)
    )


def _range_fix(rule: KeyRule | None) -> str:
    words = {"at_least": "at least", "above": "above", "at_most": "at most", "below": "below"}
    bounds = [f"{word} {getattr(rule, name):g}" for name, word in words.items() if getattr(rule, name, None) is not None]
    return f"Use a number that is {' and '.join(bounds)}." if bounds else "Use a finite number."


def _mismatch(node: Located, alternatives: Sequence[Any]) -> str:
    options = [option for kind in alternatives if typing.get_origin(kind) is Literal for option in typing.get_args(kind)]
    if isinstance(node.value, str) and node.value and options and len(alternatives) == 1:
        return f"{node.shown()} is not one of {', '.join(options)}. {_option_fix(node.value, options)}"
    wanted = " or ".join(_wanted(kind) for kind in alternatives)
    if node.value == "":
        return f"empty text is given, {wanted} is wanted. {'Write null for unset' if type(None) in alternatives else 'Write a value'}."
    what = "a mapping is given" if isinstance(node.value, dict) else f"{node.shown()} is {_kind(node, alternatives)}"
    return f"{what}, {wanted} is wanted. {_fix(node, alternatives, options)}"


def _kind(node: Located, alternatives: Sequence[Any]) -> str:
    if isinstance(node.value, list):
        if not node.value:
            return "an empty list"
        item = next((_item(kind) for kind in alternatives if typing.get_origin(kind) is tuple), int)
        return next((f"a list with {entry.shown()} in it" for entry in node.value if not _fits(entry, item)), "a list")
    return _KINDS.get(type(node.value), type(node.value).__name__)


def _wanted(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "a list of lines" if _item(kind) is str else "a list of whole numbers"
    return {type(None): "null", bool: "true or false", float: "a number"}.get(kind) or _KINDS[kind]


def _option_fix(value: str, options: Sequence[str]) -> str:
    if value.lower() in ("no", "off", "false", "none", "n"):
        # difflib would read `off` as `offline`.
        for switch in ("off", "none", "disabled"):
            if switch in options:
                return f"Write {switch}."
    near = "cuda" if value.lower() == "gpu" and "cuda" in options else nearest(value, options)  # difflib would say cpu
    return f"Did you mean {near}?" if near else "Use one of them."


def _fix(node: Located, alternatives: Sequence[Any], options: Sequence[str]) -> str:
    value = node.value
    if bool in alternatives:
        return _bool_fix(value)
    if options and (value is None or value is False):
        return _option_fix("none", options)
    if options and isinstance(value, str):
        return _option_fix(value, options)
    if int in alternatives and isinstance(value, float) and value.is_integer():
        return f"Write {int(value)}."
    if (int in alternatives or float in alternatives) and isinstance(value, str):
        return _number_fix(value)
    lists = [_item(kind) for kind in alternatives if typing.get_origin(kind) is tuple]
    if str in lists:
        return "Write one `- line` each."
    if type(value) is int and lists:
        return f"Write [{value}]."
    if str in alternatives and value is not None and not isinstance(value, list | dict):
        return f'Write "{node.text}" in quotes, if it is meant.'
    return f"Write {' or '.join(_wanted(kind) for kind in alternatives)}."


def _bool_fix(value: Any) -> str:
    if str(value).lower() in ("no", "off", "n", "0"):
        return "Write false."
    return "Write true." if str(value).lower() in ("yes", "on", "y", "1") else "Write true or false."


def _number_fix(value: str) -> str:
    if value.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        return "Write a finite number."
    try:
        float(value)
    except ValueError:
        pass
    else:
        if not value.lstrip("+-").startswith("0") or value.startswith("0."):
            return f"Write {value.strip()} without quotes." if "_" not in value else f"Write {value.replace('_', '')}."
    return "Write it in plain decimal digits." if _YAML_1_1_NUMBER.fullmatch(value) else "Write a number."
