"""The sections grid, zip and random of a sweep to axes, whose product are the points at which every arm is trained.

Values are checked as those of any other key are; which points exclude leaves out is sweep_exclude's business. One invariant: every
point of an axis sets the same keys, no two points of it are equal, and no key is on two axes.
"""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hpc.sweep_draws import Law, draw_choices, draw_numbers
from hpc.sweep_sections import COUNT, SEED, given, plain_section
from seresnet.config_file import Setting, check, flatten, key_fix, show_value, spec_of
from seresnet.strict_yaml import Bad, Faults, Located, nearest

Point = tuple[Setting, ...]
_LAWS = ("uniform", "log_uniform", "choice")
_LIST_EXAMPLE = "Write lines such as `optim.lr: [0.05, 0.1]`."
_OF_RANDOM = {"count": "20, the number of draws", "seed": "0", "keys": "{optim.lr: {log_uniform: [0.01, 1.0]}}"}
_LAW_EXAMPLE = "{uniform: [LOW, HIGH]}, {log_uniform: [LOW, HIGH]} or {choice: [A, B]}"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Points that are walked one by one. section: how messages call where it is written."""

    section: str
    points: tuple[Point, ...]

    def settings(self) -> Point:
        """One setting of each key, for its name and place."""
        return self.points[0]


def read_axes(sections: Mapping[str, Located], faults: Faults) -> list[Axis]:
    """All axes, grid before zip before random, each in the order of the file; what is at fault is noted and left out."""
    axes: list[Axis] = []
    for axis in (*_grid(sections.get("grid"), faults), *_zips(sections.get("zip"), faults), *_random(sections.get("random"), faults)):
        known = {setting.dotted: (setting, other.section) for other in axes for setting in other.settings()}
        twice = [setting for setting in axis.settings() if setting.dotted in known]
        for setting in twice:
            other, section = known[setting.dotted]
            faults.add(setting.place, setting.label, f"the key is set here and in {section} ({other.place}). Keep one of them.")
        if not twice:
            axes.append(axis)
    return axes


def point_name(arm: str, point: Point) -> str:
    """The name of an arm at a point, "se lr=0.05"."""
    return " ".join([arm, *(f"{setting.dotted.rpartition('.')[2]}={_value_name(setting)}" for setting in point)])


def _value_name(setting: Setting) -> str:
    assert not isinstance(setting.value, Bad), "faulty values are on no axis"
    return "-".join(map(str, setting.value)) if isinstance(setting.value, tuple) else show_value(setting.value)


def _grid(entry: Located | None, faults: Faults) -> list[Axis]:
    """One axis for each key."""
    columns = _columns(entry, "grid", faults, distinct=True)
    return [Axis(section="the grid", points=tuple((value,) for value in column)) for column in columns if column]


def _zips(entry: Located | None, faults: Faults) -> list[Axis]:
    """One axis for each mapping."""
    if entry is None or not isinstance(entry.value, list):
        return _zip(entry, faults)
    if not entry.value:
        faults.add(entry.place, "zip", f"[] is not a mapping of lists. {_LIST_EXAMPLE}")
    return [axis for part in entry.value for axis in _zip(part, faults)]


def _zip(entry: Located | None, faults: Faults) -> list[Axis]:
    """The axis of one mapping: row i holds every list's value i."""
    columns = [column for column in _columns(entry, "zip", faults, distinct=False) if column]
    for column in columns[1:]:
        if len(column) != len(columns[0]):
            first = f"{columns[0][0].dotted} ({columns[0][0].place}) has {len(columns[0])}"
            problem = f"the list has {_counted(len(column))}, {first}. Lists that are walked together need equally many."
            faults.add(column[0].place, column[0].label, problem)
            return []
    rows = list(zip(*columns, strict=True))
    if not rows or any(setting.value is Bad.BAD for row in rows for setting in row):
        return []
    for second, row in enumerate(rows):
        if (first_row := rows.index(row)) < second:
            faults.add(row[0].place, "zip", f"values {first_row + 1} and {second + 1} of all its lists are equal. Keep one.")
    return [Axis(section="zip", points=tuple(dict.fromkeys(rows)))]


def _counted(number: int) -> str:
    return "1 value" if number == 1 else f"{number} values"


def _columns(entry: Located | None, section: str, faults: Faults, *, distinct: bool) -> list[list[Setting]]:
    """For each key of a mapping of lists its settings, in the order of the file."""
    if entry is None or entry.value is Bad.BAD or entry.value is None:
        return []
    if not isinstance(entry.value, dict):
        faults.add(entry.place, section, f"{entry.shown()} is not a mapping of lists. {_LIST_EXAMPLE}")
        return []
    columns: dict[str, list[Setting]] = {}
    for dotted, values in flatten(entry, faults, prefix=section):
        label = f"{section}.{dotted}"
        if columns.get(dotted):
            faults.add(values.place, label, f"the key is set a second time, first at {columns[dotted][0].place}. Keep one.")
            continue
        columns[dotted] = _listed(dotted, values, label, faults, distinct=distinct)
    return list(columns.values())


def _listed(dotted: str, entry: Located, label: str, faults: Faults, *, distinct: bool) -> list[Setting]:
    """A list's values, each checked alone; [] for what is no list, or no key. distinct: doubles and what is at fault are left out."""
    if _is_seed(dotted, entry, label, faults) or entry.value is Bad.BAD:
        return []
    if not isinstance(entry.value, list) or not entry.value:
        faults.add(entry.place, label, f"{given(entry)} is not a list of values. Write {label}: [..., ...].")
        return []
    values = entry.value if spec_of(dotted) else entry.value[:1]
    checked = [check(dotted, replace(value, place=entry.place), label, faults) for value in values]
    settings = [setting for setting in checked if setting]
    if not distinct:
        return settings
    sound = [setting for setting in settings if setting.value is not Bad.BAD]
    unique = {setting.value: setting for setting in sound}
    if len(unique) < len(sound):
        faults.add(entry.place, label, f"{entry.shown()} holds a value twice. Keep one.")
    return list(unique.values())


def _is_seed(dotted: str, entry: Located, label: str, faults: Faults) -> bool:
    if dotted == "train.seed":
        faults.add(entry.place, label, f"{given(entry)} would make an arm of each seed. Use seeds: instead.")
    return dotted == "train.seed"


def _random(entry: Located | None, faults: Faults) -> list[Axis]:
    """One axis of count points; equal draws are one point."""
    found = plain_section(entry, "random", {"count": (int, COUNT), "seed": (int, SEED)}, faults, passed=("keys",))
    if entry is None or not isinstance(entry.value, dict):
        return []
    if set(entry.value) <= _OF_RANDOM.keys():  # a key too many is probably the one that is missing
        for key in (key for key in ("count", "keys") if key not in entry.value):
            faults.add(entry.place, "random", f"{key} is missing. Write {key}: {_OF_RANDOM[key]}.")
    keys = entry.value.get("keys")
    if keys is None or keys.value is Bad.BAD:
        return []
    if not isinstance(keys.value, dict) or not keys.value:
        faults.add(
            keys.place, "random.keys", f"{given(keys)} is not a mapping of keys. Write lines such as `optim.lr: {{uniform: [0, 1]}}`."
        )
        return []
    columns: dict[str, list[Setting]] = {}
    for dotted, law in flatten(keys, faults, prefix="random.keys"):
        label = f"random.keys.{dotted}"
        if dotted in columns:
            faults.add(law.place, label, "the key is set a second time. Keep one.")
        columns[dotted] = _drawn(dotted, law, label, found.get("seed", 0), found.get("count", 1), faults)
    points = tuple(dict.fromkeys(zip(*columns.values(), strict=True))) if columns and all(columns.values()) else ()
    return [Axis(section="random", points=points)] if points else []


def _drawn(dotted: str, entry: Located, label: str, seed: int, count: int, faults: Faults) -> list[Setting]:
    """The draws of one key; [] after a fault."""
    if _is_seed(dotted, entry, label, faults) or entry.value is Bad.BAD:
        return []
    if spec_of(dotted) is None:
        faults.add(entry.place, label, f"{given(entry)} is given to an unknown key. {key_fix(dotted)}")
        return []
    if not isinstance(entry.value, dict) or len(entry.value) != 1:
        faults.add(entry.place, label, f"{given(entry)} does not say what to draw from. Write {_LAW_EXAMPLE}.")
        return []
    ((kind, value),) = entry.value.items()
    if kind not in _LAWS:
        fix = f"Did you mean {near}?" if (near := nearest(kind, _LAWS)) else f"Write {_LAW_EXAMPLE}."
        faults.add(value.place, f"{label}.{kind}", f"{given(value)} is given to an unknown law. {fix}")
        return []
    if kind == "choice":
        options = _listed(dotted, value, f"{label}.choice", faults, distinct=True)
        return [options[index] for index in draw_choices(len(options), seed, dotted, count)] if options else []
    law = _law(dotted, kind, value, f"{label}.{kind}", faults)
    numbers = draw_numbers(law, seed, dotted, count) if law else []
    checked = [check(dotted, Located(value=number, place=value.place, text=str(number)), label, faults) for number in numbers]
    return [setting for setting in checked if setting and setting.value is not Bad.BAD]


def _law(dotted: str, kind: str, entry: Located, label: str, faults: Faults) -> Law | None:
    """The law of a key that holds numbers; bounds are values of the key themselves, so that every draw is one."""
    spec = spec_of(dotted)
    assert spec, "an unknown key has no bounds"
    kinds = set(typing.get_args(spec.hint) or (spec.hint,)) & {int, float}
    if not kinds:
        faults.add(entry.place, label, f"{dotted} is not a number. Write {{choice: [...]}} with its values.")
        return None
    if entry.value is Bad.BAD:
        return None
    if not isinstance(entry.value, list) or len(entry.value) != 2:
        faults.add(entry.place, label, f"{given(entry)} is not a lower and an upper bound. Write [LOW, HIGH].")
        return None
    low, high = (_bound(dotted, bound, entry, label, faults) for bound in entry.value)
    if low is None or high is None:
        return None
    if problem := _range_problem(kind, low, high, entry):
        faults.add(entry.place, label, problem)
        return None
    return Law(kind="uniform" if kind == "uniform" else "log_uniform", low=low, high=high, whole=float not in kinds)


def _range_problem(kind: str, low: float, high: float, entry: Located) -> str | None:
    if low == high:
        return f"{entry.shown()} holds one value only. Set it in base:, or widen the range."
    if low > high:
        return f"{entry.shown()} is not a range, the lower bound comes first. Write [{show_value(high)}, {show_value(low)}]."
    if kind == "log_uniform" and low <= 0:
        return f"{entry.shown()} has no logarithm at its lower bound. Use a lower bound above 0, or uniform."
    return None


def _bound(dotted: str, entry: Located, law: Located, label: str, faults: Faults) -> float | None:
    setting = check(dotted, replace(entry, place=law.place), label, faults)
    if setting is None or setting.value is Bad.BAD:
        return None
    if isinstance(setting.value, int | float) and not isinstance(setting.value, bool):
        return setting.value
    faults.add(law.place, label, f"{entry.shown()} is not a number. Write [LOW, HIGH].")
    return None
