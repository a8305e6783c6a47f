"""The section exclude of a sweep: conditions on keys of runs, arms and seeds, and which seeds of a candidate they leave.

Conditions see raw values before rules over several keys are checked, so that exclude can leave out what those rules would refuse.
One invariant: conditions only ever filter, and no run depends on their order.
"""

import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hpc.sweep_sections import SEED, given
from seresnet.config_file import check, flatten, key_specs, show_value, spec_of
from seresnet.strict_yaml import Bad, Faults, Located, Place, nearest
from seresnet.typed_values import MistypedError, convert

_EXAMPLE = "Write lines such as `- {arm: se, optim.lr: 0.1}`."
_OWN = ("arm", "seed")
_SHOWN_VALUES = 8


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An arm at a point, before anything is left out. arms: its own name and that of the arm that it was made from."""

    arms: tuple[str, ...]
    values: Mapping[str, Any]  # dotted key -> value; what is not in it has its default
    seeds: tuple[int, ...]

    def found(self, key: str) -> tuple[Any, ...]:
        """The values that this candidate has for a key of a condition."""
        if key == "arm":
            return self.arms
        spec = spec_of(key)
        return self.seeds if key == "seed" else (self.values.get(key, spec.default if spec else None),)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Runs that have, for each key, one of its values. may_miss: an override took away what it would match."""

    place: Place
    wanted: Mapping[str, tuple[Any, ...]]
    may_miss: bool = False

    def seeds_of(self, candidate: Candidate) -> tuple[int, ...]:
        """The seeds of the candidate that this condition leaves out."""
        if any(set(values).isdisjoint(candidate.found(key)) for key, values in self.wanted.items() if key != "seed"):
            return ()
        return tuple(seed for seed in candidate.seeds if seed in self.wanted.get("seed", (seed,)))


def read_conditions(entry: Located | None, overridden: Set[str], faults: Faults) -> list[Condition]:
    """The conditions of a list of mappings, or of one mapping; overridden: keys (and "seed") that the command line sets."""
    if entry is None or entry.value is None or entry.value is Bad.BAD:
        return []
    parts = entry.value if isinstance(entry.value, list) else [entry]
    conditions = [_condition(part, overridden, faults) for part in parts]
    if not parts:
        faults.add(entry.place, "exclude", f"[] is not a list of conditions. {_EXAMPLE}")
    return [condition for condition in conditions if condition]


def remaining(conditions: Sequence[Condition], candidate: Candidate, matched: set[int]) -> tuple[int, ...]:
    """The candidate's seeds that no condition leaves out; adds to matched the indices of those that matched."""
    gone: set[int] = set()
    for index, condition in enumerate(conditions):
        if seeds := condition.seeds_of(candidate):
            matched.add(index)
            gone.update(seeds)
    return tuple(seed for seed in candidate.seeds if seed not in gone)


def note_misses(
    conditions: Sequence[Condition], matched: Set[int], is_any_left: bool, candidates: Iterable[Candidate], faults: Faults
) -> None:
    """A condition that matches nothing is a typo, and a sweep of which nothing is left is a mistake."""
    missed = [condition for index, condition in enumerate(conditions) if index not in matched and not condition.may_miss]
    everyone = list(candidates) if missed else []
    for condition in missed:
        faults.add(condition.place, "exclude", _why_missed(condition, everyone))
    if conditions and not is_any_left:
        last = conditions[-1].place
        faults.add(last, "exclude", "nothing is left to run, every run of the sweep is excluded. Remove or narrow a condition.")


def _why_missed(condition: Condition, everyone: Sequence[Candidate]) -> str:
    """The first key whose value occurs nowhere, with what does; else that it is the combination."""
    for key, values in condition.wanted.items():
        there = list(dict.fromkeys(value for candidate in everyone for value in candidate.found(key)))
        if set(values).isdisjoint(there):
            near = nearest(values[0], [value for value in there if isinstance(value, str)]) if isinstance(values[0], str) else None
            fix = f"Did you mean {near}?" if near else "Correct or remove the condition."
            shown = list(dict.fromkeys(candidate.arms[-1] for candidate in everyone)) if key == "arm" else there
            return f"no run has {_phrase(key, values)}, only {_some(shown)}. {fix}"
    both = " and ".join(_phrase(key, values) for key, values in condition.wanted.items())
    return f"no run has {both} together. Correct or remove the condition."


def _phrase(key: str, values: Sequence[Any]) -> str:
    return f"{key} {' or '.join(map(show_value, values))}"


def _some(values: Sequence[Any]) -> str:
    more = f" and {len(values) - _SHOWN_VALUES} more" if len(values) > _SHOWN_VALUES else ""
    return ", ".join(map(show_value, islice(values, _SHOWN_VALUES))) + more


def _condition(entry: Located, overridden: Set[str], faults: Faults) -> Condition | None:
    """One mapping's condition; None after a fault."""
    if entry.value is Bad.BAD:
        return None
    if not isinstance(entry.value, dict) or not entry.value:
        faults.add(entry.place, "exclude", f"{'{}' if entry.value == {} else given(entry)} is not a condition. {_EXAMPLE}")
        return None
    wanted: dict[str, tuple[Any, ...]] = {}
    is_sound = True
    for dotted, value in flatten(entry, faults, prefix="exclude"):
        key = "seed" if dotted == "train.seed" else dotted
        values = tuple(_values(key, value, faults))
        if key in wanted:
            faults.add(value.place, f"exclude.{dotted}", "the key is in this condition twice. Keep one.")
        is_sound &= bool(values)
        wanted[key] = values
    is_sound &= bool(wanted)
    return Condition(place=entry.place, wanted=wanted, may_miss=not overridden.isdisjoint(wanted)) if is_sound else None


def _values(key: str, entry: Located, faults: Faults) -> Iterator[Any]:
    """The values that one key of a condition names, each checked; nothing after a fault."""
    label = f"exclude.{key}"
    if "." not in key and key not in _OWN:
        fix = (
            f"Did you mean {near}?"
            if (near := nearest(key, _OWN))
            else "Keys of a condition: arm, seed, and keys of runs such as optim.lr."
        )
        faults.add(entry.place, label, f"{given(entry)} is given to an unknown key. {fix}")
        return
    parts = entry.value if isinstance(entry.value, list) and not _is_one_list(key, entry) else [entry]
    if not parts:
        faults.add(entry.place, label, "[] names no value. Write one, or a list of them.")
    checked = [_value(key, Located(value=part.value, place=entry.place, text=part.text), label, faults) for part in parts]
    if Bad.BAD not in checked:
        yield from checked


def _is_one_list(key: str, entry: Located) -> bool:
    """Whether a list is one value of a key that holds lists ([1, 2] of model.blocks), not several ([[1], [1, 2]])."""
    hint = key_specs()[key].hint if key in key_specs() else None
    holds_lists = any(typing.get_origin(kind) is tuple for kind in (hint, *typing.get_args(hint)))
    return holds_lists and bool(entry.value) and all(type(part.value) is int for part in entry.value)


def _value(key: str, entry: Located, label: str, faults: Faults) -> Any:
    if key not in _OWN:
        setting = check(key, entry, label, faults)
        return setting.value if setting else Bad.BAD
    try:
        return convert(entry, str if key == "arm" else int, None if key == "arm" else SEED)
    except MistypedError as problem:
        faults.add(entry.place, label, str(problem))
        return Bad.BAD
