"""The flat sections of a sweep (pack, site, wandb, mail) to values. They say how runs are run, never which.

What a site's keys mean is hpc.site's business, what a pack is, packing's. One invariant: a fault is noted with its place and its
entry is left out, so that one reading finds the faults of all sections.
"""

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hpc.paths import WandbSettings
from hpc.site import seen_from_here
from hpc.sweep_spec import Arm, PackRequest, SiteRequest
from seresnet.config import KeyClass, KeyRule, RunConfig
from seresnet.strict_yaml import Bad, Faults, Located, nearest
from seresnet.typed_values import MistypedError, convert

MAX_RUNS = 100_000
SEED = KeyRule(key_class=KeyClass.IDENTITY, help="a seed", at_least=0)
COUNT = KeyRule(key_class=KeyClass.OPERATIONAL, help="a count", at_least=1, at_most=MAX_RUNS)
_WANDB_NAME = re.compile(r"[^/\\#?%:]{1,128}")
# Narrower than the standard: it stands on a line of an sbatch script.
_MAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9][A-Za-z0-9-]*(\.[A-Za-z0-9][A-Za-z0-9-]*)*")
_CONCURRENT_ONLY = ("per_gpu", "gpus_per_task")


def given(entry: Located) -> str:
    """A value for a message, also where its own fault is noted already."""
    return "a value" if entry.value is Bad.BAD else entry.shown()


def read_pack(entry: Located | None, faults: Faults) -> PackRequest:
    """`auto`, or a mapping."""
    if entry is not None and isinstance(entry.value, str):
        if entry.value == "auto":
            return PackRequest(auto=True)
        keys = ", ".join(_pack_keys())
        faults.add(entry.place, "pack", f"{entry.shown()} is no way of packing. Write auto, or pack's keys below it: {keys}.")
        return PackRequest()
    mode = _entry(entry, "mode")
    if mode and mode.value == "auto":
        faults.add(mode.place, "pack.mode", "'auto' is no mode. Write pack: auto, without keys below it.")
        return PackRequest()
    found = plain_section(entry, "pack", _pack_keys(), faults)
    if found.get("mode", "sequential") == "sequential" and (mode is None or mode.value == "sequential"):
        _drop_concurrent_only(entry, mode, found, faults)
    return PackRequest(**found)


def check_pack(entry: Located | None, request: PackRequest, arms: Sequence[Arm], faults: Faults) -> None:
    """Runs of several ranks are never side by side: concurrent needs an arm of one rank, the others are packed one after another."""
    ranks = {arm.loaded.config.train.ranks for arm in arms}
    if entry and ranks and 1 not in ranks and request.mode == "concurrent":
        place = (_entry(entry, "mode") or entry).place
        problem = f"concurrent is asked for, and every arm has train.ranks {' or '.join(map(str, sorted(ranks)))}; side by side need 1"
        faults.add(place, "pack.mode", f"{problem}. Write sequential, or train.ranks: 1.")


def read_wandb(entry: Located | None, faults: Faults) -> WandbSettings:
    """The settings of the mirror; names that W&B would refuse are refused here."""
    hints = typing.get_type_hints(WandbSettings)
    found = plain_section(entry, "wandb", {key: (hint, None) for key, hint in hints.items()}, faults)
    for key in ("project", "entity"):
        if found.get(key) and entry and not _WANDB_NAME.fullmatch(found[key]):
            problem = f"{found[key]!r} is no name for W&B: at most 128 characters, none of / \\ # ? % :. Rename it."
            faults.add(entry.value[key].place, f"wandb.{key}", problem)
    return WandbSettings(**found)


def read_mail(entry: Located | None, faults: Faults) -> str | None:
    """The address that hears of the end of an array; null is nobody."""
    if entry is None or entry.value is None or entry.value is Bad.BAD:
        return None
    if not isinstance(entry.value, str) or not _MAIL.fullmatch(entry.value):
        faults.add(entry.place, "mail", f"{entry.shown()} is not a mail address. Write one, such as you@example.org, or null.")
        return None
    return entry.value


def read_site(entry: Located | None, faults: Faults) -> SiteRequest:
    """Passed on as it is, but for paths relative to the sweep's file."""
    if entry is None or entry.value is None or entry.value is Bad.BAD:
        return SiteRequest()
    if isinstance(entry.value, dict):
        origins = {key: str(value.place) for key, value in entry.value.items()}
        asked = {key: seen_from_here(value) if key == "extends" else value.plain() for key, value in entry.value.items()}
        return SiteRequest(asked=asked, where=str(entry.place), origins=origins)
    if not isinstance(entry.value, str):
        faults.add(entry.place, "site", f"{entry.shown()} is not the name of a site. Write its name, a path, or its keys below it.")
        return SiteRequest()
    return SiteRequest(asked=seen_from_here(entry), where=str(entry.place))


def plain_section(
    entry: Located | None,
    name: str,
    keys: Mapping[str, tuple[Any, KeyRule | None]],
    faults: Faults,
    *,
    passed: Sequence[str] = (),
) -> dict[str, Any]:
    """The converted entries of a flat section; faults are noted and left out. passed: keys that somebody else reads."""
    if entry is None or entry.value is None or entry.value is Bad.BAD:
        return {}
    known = (*keys, *passed)
    if not isinstance(entry.value, dict):
        faults.add(entry.place, name, f"{entry.shown()} is given to a section. Write {name}'s keys below it: {', '.join(known)}.")
        return {}
    found = {}
    for key, value in entry.value.items():
        if key in passed:
            continue
        if key not in keys:
            faults.add(value.place, f"{name}.{key}", f"{given(value)} is given to an unknown key. {_key_fix(name, key, known)}")
            continue
        try:
            converted = convert(value, *keys[key])
        except MistypedError as problem:
            faults.add(value.place, f"{name}.{key}", str(problem))
            continue
        if converted is not Bad.BAD:
            found[key] = converted
    return found


def _key_fix(name: str, key: str, known: Sequence[str]) -> str:
    if "keys" in known and key.partition(".")[0] in {section.name for section in fields(RunConfig)}:
        return f"Keys of runs belong below {name}.keys. Move it there."
    near = nearest(key, known)
    return f"Did you mean {near}?" if near else f"Keys of {name}: {', '.join(known)}."


def _pack_keys() -> dict[str, tuple[Any, KeyRule | None]]:
    hints = typing.get_type_hints(PackRequest)
    return {key: (hints[key], COUNT if key != "mode" else None) for key in ("mode", "runs_per_task", *_CONCURRENT_ONLY)}


def _drop_concurrent_only(entry: Located | None, mode: Located | None, found: dict[str, Any], faults: Faults) -> None:
    """Keys that mean nothing in sequential mode are a fault, unless the command line turned off what the file asks for."""
    for key in _CONCURRENT_ONLY:
        value = _entry(entry, key)
        if value is None:
            continue
        is_turned_off = mode is not None and not mode.place.line and value.place.line
        if not is_turned_off:
            problem = f"{given(value)} is given, and only mode: concurrent puts runs side by side"
            faults.add(value.place, f"pack.{key}", f"{problem}. Add mode: concurrent, or remove {key}.")
        found.pop(key, None)


def _entry(section: Located | None, key: str) -> Located | None:
    entry = section.value.get(key) if section is not None and isinstance(section.value, dict) else None
    assert entry is None or isinstance(entry, Located)
    return entry
