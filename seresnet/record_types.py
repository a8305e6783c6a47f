"""Whether a record that was read from JSON holds what its dataclass says: journals and results may be torn, or somebody else's.

Checks only; what a misfit means is the reader's business. One invariant: a bool is no number, and no number is infinite, NaN, too
long for 64 bits, or so large that sums and squares of it are infinite.
"""

import functools
import types
import typing
from dataclasses import fields
from typing import Any

_LARGEST = 1e100


def misfits(record: Any) -> list[str]:
    """Names of a dataclass instance's fields whose values are not of the annotated type, or not finite."""
    kind: type = type(record)
    return [
        name for name, hint in _hints(kind).items() if not _is_plainly(value := getattr(record, name), hint) and not conforms(value, hint)
    ]


def _is_plainly(value: Any, hint: Any) -> bool:
    # Most fields, without looking at what the annotation is made of.
    return type(value) is hint and hint is not float and hint is not int


def is_finite(value: float) -> bool:
    """Whether it is a number that readers may square and add: a script may write 1e308, no training of ours comes near."""
    return abs(value) < _LARGEST  # NaN is below nothing


def is_short(value: int) -> bool:
    """Whether an integer fits into 64 bits: JSON has any, and a longer one ends the arithmetic of readers with an OverflowError."""
    return value.bit_length() < 64


def conforms(value: Any, hint: Any) -> bool:
    """Whether value is of type hint: a class, a union, or a list, a tuple of any length or a dict of such."""
    if hint is Any:
        return True
    if hint is float:
        return conforms(value, int) or (isinstance(value, float) and is_finite(value))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and is_short(value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return any(conforms(value, arg) for arg in args)
    if origin is list:
        if args == (int,) and isinstance(value, list) and set(map(type, value)) == {int}:
            return is_short(max(value)) and is_short(min(value))  # a confusion matrix has 100 or 10,000 of them
        return isinstance(value, list) and all(conforms(item, args[0]) for item in value)
    if origin is tuple:
        return isinstance(value, tuple) and all(conforms(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(conforms(item, args[1]) for item in value.values())
    return isinstance(value, hint)


@functools.cache
def plain_kinds(kind: type) -> tuple[tuple[str, frozenset[type]], ...]:
    """(field, types that its values may have) of a dataclass of plain values: the same rule as misfits, compiled for many records."""
    return tuple((name, frozenset(_plain(hint))) for name, hint in _hints(kind).items())


def _plain(hint: Any) -> tuple[type, ...]:
    if typing.get_origin(hint) is types.UnionType:
        return tuple(kind for part in typing.get_args(hint) for kind in _plain(part))
    assert isinstance(hint, type), f"{hint} is not a plain type"
    return (float, int) if hint is float else (hint,)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    # Resolving the annotations takes longer than reading a journal's line.
    hints = typing.get_type_hints(kind)
    return {key.name: hints[key.name] for key in fields(kind)}
