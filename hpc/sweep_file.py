"""A sweep's YAML to a SweepSpec: sections, layers and their precedence; every fault of every file in one ConfigError.

Layers of a run, later ones win: defaults, base, arm, grid point, overrides. Keys of runs are config_file's business.
One invariant: every value of every arm can name the line or override that wrote it.
"""

import itertools
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hpc.paths import WandbSettings
from hpc.site import seen_from_here
from hpc.sweep_spec import Arm, PackRequest, SiteRequest, SweepSpec
from seresnet.config import KeyClass, KeyRule, RunConfig, slug
from seresnet.config_file import Setting, build, check, collect, collect_overrides, flatten, parse_override, show_value
from seresnet.strict_yaml import Bad, Faults, Located, Place, is_file, near_file, nearest, read_yaml
from seresnet.typed_values import MistypedError, convert

MAX_RUNS = 100_000
_DOTTED_SECTIONS = ("base", "grid", "pack", "site", "wandb")
_SECTIONS = ("name", "base", "arms", "grid", "seeds", "pack", "site", "wandb")
_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._=+-]{0,59}")
_WANDB_NAME = re.compile(r"[^/\\#?%:]{1,128}")
_SEED = KeyRule(key_class=KeyClass.IDENTITY, help="a seed", at_least=0)
_COUNT = KeyRule(key_class=KeyClass.OPERATIONAL, help="a count", at_least=1, at_most=MAX_RUNS)


@dataclass(frozen=True, kw_only=True)
class _Seeds:
    seeds: tuple[int, ...]
    place: Place


@dataclass(frozen=True, kw_only=True)
class _ArmDraft:
    name: str
    place: Place
    settings: Sequence[Setting] = ()
    seeds: _Seeds | None = None


@dataclass(frozen=True, kw_only=True)
class _Overrides:
    """Overrides by where they go: keys of every run, or entries of the sweep's own sections."""

    settings: Sequence[Setting]
    sections: Mapping[str, Located] = field(default_factory=dict)


def read_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep's YAML, or a run's as a sweep of one arm; overrides such as "optim.lr=0.05" or "seeds=3" apply last.

    Raises ConfigError with every fault of the file, of the base that it names, and of the overrides.
    """
    faults = Faults()
    tree, text = read_yaml(path, faults)
    texts = {str(path): text}
    overridden = _route_overrides(overrides, faults)
    if tree.value is Bad.BAD:
        faults.raise_any()
    is_run = _is_run(tree)
    sections = _merged({} if is_run else _sections(tree, faults), overridden.sections, faults)
    name = _name(sections.get("name"), path, faults)
    base = collect(tree, faults) if is_run else _base(sections.get("base"), path, texts, faults)
    drafts = _arm_drafts(sections.get("arms"), name, tree.place, faults)
    seeds = _seeds(sections.get("seeds"), "seeds", faults)
    if "seeds" in overridden.sections:
        drafts = [replace(draft, seeds=None) for draft in drafts]  # an override applies last, to every run
    grid = _grid(sections.get("grid"), faults)
    arms = _arms(drafts, grid, base, overridden.settings, seeds, faults)
    spec = SweepSpec(
        name=name,
        path=path,
        texts=texts,
        overrides=tuple(overrides),
        arms=tuple(arms),
        pack=_pack(sections.get("pack"), faults),
        site=_site(sections.get("site"), faults),
        wandb=_wandb(sections.get("wandb"), faults),
    )
    faults.raise_any()
    return spec


def _is_run(tree: Located) -> bool:
    """Whether this is a run's file: sections of a run, and no key that is, or nearly is, a sweep's."""
    run_sections = {section.name for section in fields(RunConfig)}
    heads = {key.partition(".")[0] for key in tree.value} if isinstance(tree.value, dict) else set()
    return bool(heads & run_sections) and not any(nearest(head, _SECTIONS) for head in heads - run_sections)


def _sections(tree: Located, faults: Faults) -> dict[str, Located]:
    """The sweep's sections by name; `wandb.mode: offline` at the top is the same as nested."""
    sections: dict[str, Located] = {}
    if not isinstance(tree.value, dict):
        given = "the file is empty" if tree.value is None else f"{tree.shown()} is not a mapping of keys"
        faults.add(tree.place, "", f"{given}. A sweep has at least base: or arms:.")
        return sections
    for key, entry in tree.value.items():
        head, dot, rest = key.partition(".")
        if key in _SECTIONS:
            _add_section(sections, key, entry, faults)
        elif dot and head in _DOTTED_SECTIONS:
            _add_section(sections, head, Located(value={rest: entry}, place=entry.place), faults)
        else:
            faults.add(entry.place, key, f"{_given(entry)} is given to a key that sweeps do not have. {_section_fix(key)}")
    if "base" not in sections and "arms" not in sections and not faults:
        faults.add(tree.place, "", "there is neither base: nor arms:, so nothing to run. Write one of them.")
    return sections


def _add_section(sections: dict[str, Located], name: str, entry: Located, faults: Faults) -> None:
    known = sections.get(name)
    if name == "site" and known is not None:
        known, entry = _as_mapping(known), _as_mapping(entry)
    if known is None:
        sections[name] = entry
    elif isinstance(known.value, dict) and isinstance(entry.value, dict):
        for key in (key for key in entry.value if key in known.value):
            faults.add(entry.place, f"{name}.{key}", f"the key is set a second time, first at {known.value[key].place}. Keep one.")
        sections[name] = replace(known, value={**known.value, **entry.value})
    else:
        faults.add(entry.place, name, f"the key is set a second time, first at {known.place}. Keep one.")


def _as_mapping(site: Located) -> Located:
    """`site: slurm` as `site: {extends: slurm}`, so that keys can stand beside it."""
    return Located(value={"extends": site}, place=site.place) if isinstance(site.value, str) else site


def _section_fix(key: str) -> str:
    head = key.partition(".")[0]
    if head in {section.name for section in fields(RunConfig)}:
        return f"A sweep keeps keys of runs below base: or an arm. Move {key} there."
    if head == "arms":
        return "Arms are written nested: arms:, and below it their names."
    near = nearest(head, _SECTIONS)
    return f"Did you mean {near}?" if near else f"Keys of a sweep: {', '.join(_SECTIONS)}."


def _route_overrides(overrides: Sequence[str], faults: Faults) -> _Overrides:
    """Sort overrides into keys of runs and sections of the sweep; the same key twice is a fault."""
    run_keys: list[tuple[str, Located]] = []
    sections: dict[str, Located] = {}
    for key, entry in filter(None, (parse_override(text, faults) for text in overrides)):
        head, dot, rest = key.partition(".")
        if key in ("name", "seeds", "pack", "site", "wandb"):
            _add_section(sections, key, entry, faults)
        elif dot and head in ("pack", "site", "wandb"):
            _add_section(sections, head, Located(value={rest: entry}, place=entry.place), faults)
        elif head in _SECTIONS:
            faults.add(entry.place, key, "an override is a key of every run (optim.lr), or seeds, name, pack.*, site.*, wandb.*.")
        else:
            run_keys.append((key, entry))
    return _Overrides(settings=collect_overrides(run_keys, faults), sections=sections)


def _merged(sections: dict[str, Located], overrides: Mapping[str, Located], faults: Faults) -> dict[str, Located]:
    """Sections with overrides on top, entry by entry in mappings."""
    merged = dict(sections)
    for name, entry in overrides.items():
        known = merged.get(name)
        if name == "site" and known is not None and isinstance(entry.value, dict):
            known = _as_mapping(known)
        is_both = known is not None and isinstance(known.value, dict) and isinstance(entry.value, dict)
        merged[name] = replace(known, value={**known.value, **entry.value}) if known and is_both else entry
    return merged


def _name(entry: Located | None, path: Path, faults: Faults) -> str:
    """The sweep's name, which is its folder's: slug-safe, by default made from the file's."""
    if entry is None:
        return slug(path.stem)
    if entry.value is Bad.BAD:
        return "bad"
    wanted = slug(entry.text)
    if not isinstance(entry.value, str) or entry.value != wanted:
        problem = f"{entry.shown()} cannot name a folder: lower case, digits, dots and dashes only."
        faults.add(entry.place, "name", f"{problem} Write {wanted if not wanted[0].isdigit() else repr(wanted)}.")
    return wanted


def _base(entry: Located | None, path: Path, texts: dict[str, str], faults: Faults) -> list[Setting]:
    """The settings under every arm: inline, or the file of a run named relative to the sweep."""
    if entry is None or not isinstance(entry.value, str):
        return collect(entry, faults, prefix="base") if entry else []
    file = path.parent / entry.value
    if not is_file(file):
        faults.add(entry.place, "base", f"{entry.shown()} is not a file, looked for at {file}. {near_file(file)}")
        return []
    tree, texts[str(file)] = read_yaml(file, faults)
    return collect(tree, faults)


def _arm_drafts(entry: Located | None, name: str, place: Place, faults: Faults) -> list[_ArmDraft]:
    """The arms in the order of the file; without any, one that is called like the sweep."""
    if entry is None or entry.value is Bad.BAD:
        return [_ArmDraft(name=name, place=place)]
    if not isinstance(entry.value, dict) or not entry.value:
        faults.add(entry.place, "arms", f"{_given(entry)} is not a mapping of arms. Write lines such as `se: {{model.attention: se}}`.")
        return []
    return [_arm_draft(arm, value, faults) for arm, value in entry.value.items()]


def _arm_draft(name: str, entry: Located, faults: Faults) -> _ArmDraft:
    label = f"arms.{name}"
    if not _ARM_NAME.fullmatch(name):
        rule = "letters, digits, space and . _ = + - only, a letter or digit first, at most 60"
        faults.add(entry.place, label, f"{name!r} cannot name an arm: {rule}. Rename it, such as {slug(name)}.")
    if not isinstance(entry.value, dict):
        settings = collect(entry, faults, prefix=label)
        return _ArmDraft(name=name, place=entry.place, settings=settings)
    seeds = _seeds(entry.value.get("seeds"), f"{label}.seeds", faults)
    rest = {}
    for key, value in entry.value.items():
        if "." not in key and nearest(key, ("seeds",)) and key != "seeds":
            faults.add(value.place, f"{label}.{key}", f"{_given(value)} is given to an unknown key. Did you mean seeds?")
        elif key != "seeds":
            rest[key] = value
    settings = collect(replace(entry, value=rest), faults, prefix=label)
    return _ArmDraft(name=name, place=entry.place, settings=settings, seeds=seeds)


def _seeds(entry: Located | None, label: str, faults: Faults) -> _Seeds | None:
    """`3` means 0, 1, 2; a list means itself. None if unset or at fault."""
    if entry is None or entry.value is Bad.BAD:
        return None
    try:
        if type(entry.value) is int:
            return _Seeds(seeds=tuple(range(convert(entry, int, _COUNT))), place=entry.place)
        seeds = convert(entry, int | tuple[int, ...], _SEED)
    except MistypedError as problem:
        faults.add(entry.place, label, str(problem))
        return None
    if seeds is Bad.BAD:
        return None
    if len(set(seeds)) < len(seeds):
        faults.add(entry.place, label, f"{entry.shown()} names a seed twice. Write {show_value(tuple(dict.fromkeys(seeds)))}.")
    return _Seeds(seeds=seeds, place=entry.place)


def _grid(entry: Located | None, faults: Faults) -> list[list[Setting]]:
    """For each key of the grid its settings, in the order of the file."""
    if entry is None or entry.value is Bad.BAD or entry.value is None:
        return []
    if not isinstance(entry.value, dict):
        faults.add(entry.place, "grid", f"{entry.shown()} is not a mapping of lists. Write lines such as `optim.lr: [0.05, 0.1]`.")
        return []
    axes: dict[str, list[Setting]] = {}
    for dotted, values in flatten(entry, faults, prefix="grid"):
        if dotted in axes:
            faults.add(values.place, f"grid.{dotted}", f"the key is set a second time, first at {axes[dotted][0].place}. Keep one.")
        elif axis := _axis(dotted, values, faults):
            axes[dotted] = axis
    return list(axes.values())


def _axis(dotted: str, entry: Located, faults: Faults) -> list[Setting]:
    label = f"grid.{dotted}"
    if dotted == "train.seed":
        faults.add(entry.place, label, f"{_given(entry)} would make an arm of each seed. Use seeds: instead.")
        return []
    if entry.value is Bad.BAD:
        return []
    if not isinstance(entry.value, list) or not entry.value:
        faults.add(entry.place, label, f"{_given(entry)} is not a list of values. Write {label}: [..., ...].")
        return []
    checked = [check(dotted, replace(value, place=entry.place), label, faults) for value in entry.value]
    settings = [setting for setting in checked if setting and setting.value is not Bad.BAD]
    unique = {setting.value: setting for setting in settings}
    if len(unique) < len(settings):
        faults.add(entry.place, label, f"{entry.shown()} holds a value twice. Keep one.")
    return list(unique.values())


def _arms(
    drafts: Sequence[_ArmDraft],
    grid: Sequence[Sequence[Setting]],
    base: Sequence[Setting],
    overrides: Sequence[Setting],
    seeds: _Seeds | None,
    faults: Faults,
) -> Iterator[Arm]:
    """Every arm at every point of the grid, checked; nothing after a fault that would repeat itself a thousand times."""
    points = math.prod(len(axis) for axis in grid)
    runs = points * sum(len(own.seeds) if (own := draft.seeds or seeds) else 1 for draft in drafts)
    if drafts and runs > MAX_RUNS:
        faults.add(drafts[0].place, "", f"arms, grid and seeds make {runs} runs, more than {MAX_RUNS}. Ask for fewer at a time.")
        return
    _check_grid_is_alone(drafts, grid, overrides, faults)
    slugs: dict[str, str] = {}
    for draft, point in itertools.product(drafts, itertools.product(*grid)):
        name = " ".join([draft.name, *(f"{_leaf(axis.dotted)}={_label(axis)}" for axis in point)])
        other = slugs.setdefault(slug(name), name)
        if other != name:
            faults.add(draft.place, f"arms.{draft.name}", f"{name!r} and {other!r} would share the folder name {slug(name)!r}. Rename one.")
        layers = [*base, *draft.settings, *point, *overrides]
        if arm := _arm(name, draft.place, layers, draft.seeds or seeds, faults):
            yield arm


def _arm(name: str, place: Place, layers: Sequence[Setting], seeds: _Seeds | None, faults: Faults) -> Arm | None:
    fixed = [setting for setting in layers if setting.dotted == "train.seed"]
    if seeds and fixed:
        faults.add(fixed[-1].place, fixed[-1].label, f"{fixed[-1].value} is set beside seeds ({seeds.place}). Keep one of them.")
    loaded = build(layers, faults)
    if loaded is None:
        return None
    if seeds is None:
        return Arm(name=name, place=str(place), loaded=loaded, seeds=(loaded.config.train.seed,))
    train = replace(loaded.config.train, seed=seeds.seeds[0])
    origins = {**loaded.origins, "train.seed": str(seeds.place)}
    loaded = replace(loaded, config=replace(loaded.config, train=train), origins=origins)
    return Arm(name=name, place=str(place), loaded=loaded, seeds=seeds.seeds)


def _check_grid_is_alone(
    drafts: Sequence[_ArmDraft], grid: Sequence[Sequence[Setting]], overrides: Sequence[Setting], faults: Faults
) -> None:
    """A key of the grid that an arm or an override sets too would make arms whose names lie."""
    axes = {axis[0].dotted: axis[0].place for axis in grid}
    for setting in itertools.chain(overrides, *(draft.settings for draft in drafts)):
        if setting.dotted in axes:
            faults.add(setting.place, setting.label, f"the key is set here and in the grid ({axes[setting.dotted]}). Keep one of them.")


def _leaf(dotted: str) -> str:
    return dotted.rpartition(".")[2]


def _label(setting: Setting) -> str:
    value = setting.value
    assert not isinstance(value, Bad), "faulty values are not in the grid"
    return "-".join(map(str, value)) if isinstance(value, tuple) else show_value(value)


def _pack(entry: Located | None, faults: Faults) -> PackRequest:
    found = _plain_section(entry, "pack", {"runs_per_task": (int, _COUNT)}, faults)
    return PackRequest(**found)


def _wandb(entry: Located | None, faults: Faults) -> WandbSettings:
    hints = typing.get_type_hints(WandbSettings)
    found = _plain_section(entry, "wandb", {key: (hint, None) for key, hint in hints.items()}, faults)
    for key in ("project", "entity"):
        if found.get(key) and entry and not _WANDB_NAME.fullmatch(found[key]):
            problem = f"{found[key]!r} is no name for W&B: at most 128 characters, none of / \\ # ? % :. Rename it."
            faults.add(entry.value[key].place, f"wandb.{key}", problem)
    return WandbSettings(**found)


def _plain_section(entry: Located | None, name: str, keys: Mapping[str, tuple[Any, KeyRule | None]], faults: Faults) -> dict[str, Any]:
    """The converted entries of a flat section; faults are noted and left out."""
    if entry is None or entry.value is None or entry.value is Bad.BAD:
        return {}
    if not isinstance(entry.value, dict):
        faults.add(entry.place, name, f"{entry.shown()} is given to a section. Write {name}'s keys below it: {', '.join(keys)}.")
        return {}
    found = {}
    for key, value in entry.value.items():
        if key not in keys:
            near = nearest(key, list(keys))
            fix = f"Did you mean {near}?" if near else f"Keys of {name}: {', '.join(keys)}."
            faults.add(value.place, f"{name}.{key}", f"{_given(value)} is given to an unknown key. {fix}")
            continue
        try:
            converted = convert(value, *keys[key])
        except MistypedError as problem:
            faults.add(value.place, f"{name}.{key}", str(problem))
            continue
        if converted is not Bad.BAD:
            found[key] = converted
    return found


def _site(entry: Located | None, faults: Faults) -> SiteRequest:
    """Passed on as it is, but for paths relative to the sweep's file: which keys a site has is hpc.site's business."""
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


def _given(entry: Located) -> str:
    return "a value" if entry.value is Bad.BAD else entry.shown()
