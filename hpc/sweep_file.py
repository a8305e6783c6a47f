"""A sweep's YAML to a SweepSpec: sections, layers and their precedence; every fault of every file in one ConfigError.

Layers of a run, later ones win: defaults, base, arm, point, overrides. What a point is, sweep_axes says; arms are made in sweep_arms,
and keys of runs are config_file's business. One invariant: a fault in one section hides no fault of another.
"""

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from hpc.own_targets import read_own_code
from hpc.sweep_arms import ArmDraft, Seeds, arms_at_points
from hpc.sweep_axes import read_axes
from hpc.sweep_exclude import read_conditions
from hpc.sweep_sections import COUNT, SEED, check_pack, given, read_mail, read_pack, read_site, read_wandb
from hpc.sweep_spec import SweepSpec
from seresnet.config import RunConfig, slug
from seresnet.config_file import Setting, collect, collect_overrides, key_fix, parse_override, show_value
from seresnet.strict_yaml import Bad, Faults, Located, Place, is_file, near_file, nearest, read_yaml
from seresnet.typed_values import MistypedError, convert

_DOTTED_SECTIONS = ("program", "base", "grid", "zip", "random", "pack", "site", "wandb")
SECTIONS = ("name", "code_root", "program", "base", "arms", "grid", "zip", "random", "exclude", "seeds", "pack", "site", "wandb", "mail")
#: What a section that is no mapping stands for: `site: slurm`, `program: [python, train.py, ...]`.
_SHORT_FOR = {"site": "extends", "program": "command"}
_OVERRIDDEN_WHOLE = ("name", "seeds", "pack", "site", "wandb", "mail")
_OVERRIDDEN_BY_KEY = ("pack", "site", "wandb")
_OVERRIDDEN = "name, seeds, mail, pack.*, site.*, wandb.*, random.count, random.seed"
#: Of the command line: an arm of such a name could not be meant.
_WORDS = ("all", "failed", "lost", "cancelled")
_ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._=+-]{0,59}")


@dataclass(frozen=True, kw_only=True)
class _Overrides:
    """Overrides by where they go: keys of every run, or entries of the sweep's own sections."""

    settings: Sequence[Setting]
    sections: Mapping[str, Located] = field(default_factory=dict)

    def keys(self) -> set[str]:
        """Keys that a condition may name and that the command line has changed."""
        return {setting.dotted for setting in self.settings} | ({"seed"} if "seeds" in self.sections else set())


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
    base = collect(tree, faults) if is_run else _base(sections, path, texts, faults)
    drafts = _arm_drafts(sections.get("arms"), name, tree.place, faults)
    seeds = _seeds(sections.get("seeds"), "seeds", faults)
    is_last = "seeds" in overridden.sections  # an override applies last, to every run
    drafts = [replace(draft, seeds=seeds if is_last else draft.seeds or seeds) for draft in drafts]
    axes = read_axes(sections, faults)
    conditions = read_conditions(sections.get("exclude"), overridden.keys(), faults)
    arms = arms_at_points(drafts, axes, base, overridden.settings, conditions, faults)
    pack = read_pack(sections.get("pack"), faults)
    check_pack(sections.get("pack"), pack, arms, faults)
    code_root, notes = read_own_code(sections.get("code_root"), path, arms, faults)
    spec = SweepSpec(
        name=name,
        code_root=code_root,
        notes=notes,
        path=path,
        texts=texts,
        overrides=tuple(overrides),
        arms=tuple(arms),
        pack=pack,
        site=read_site(sections.get("site"), faults),
        wandb=read_wandb(sections.get("wandb"), faults),
        mail=read_mail(sections.get("mail"), faults),
    )
    faults.raise_any()
    return spec


def _is_run(tree: Located) -> bool:
    """Whether this is a run's file: sections of a run, and no key that is, or nearly is, a sweep's."""
    run_sections = {section.name for section in fields(RunConfig)}
    heads = {key.partition(".")[0] for key in tree.value} if isinstance(tree.value, dict) else set()
    return bool(heads & run_sections) and not any(_is_near_section(head, run_sections) for head in heads - run_sections)


def _is_near_section(head: str, run_sections: Set[str]) -> bool:
    return nearest(head, [*SECTIONS, *run_sections]) in SECTIONS  # `rain` is nearer to train than to random


def _sections(tree: Located, faults: Faults) -> dict[str, Located]:
    """The sweep's sections by name; `wandb.mode: offline` at the top is the same as nested."""
    sections: dict[str, Located] = {}
    if not isinstance(tree.value, dict):
        what = "the file is empty" if tree.value is None else f"{tree.shown()} is not a mapping of keys"
        faults.add(tree.place, "", f"{what}. A sweep has at least base: or arms:.")
        return sections
    for key, entry in tree.value.items():
        head, dot, rest = key.partition(".")
        if key in SECTIONS:
            _add_section(sections, key, entry, faults)
        elif dot and head in _DOTTED_SECTIONS:
            _add_section(sections, head, Located(value={rest: entry}, place=entry.place), faults)
        else:
            faults.add(entry.place, key, f"{given(entry)} is given to a key that sweeps do not have. {_section_fix(key)}")
    if not sections.keys() & {"base", "arms", "program"} and not faults:
        faults.add(tree.place, "", "there is neither base: nor arms:, so nothing to run. Write one of them.")
    return sections


def _add_section(sections: dict[str, Located], name: str, entry: Located, faults: Faults) -> None:
    known = sections.get(name)
    if known is not None and name in _SHORT_FOR:
        known, entry = _as_mapping(name, known), _as_mapping(name, entry)
    if known is None:
        sections[name] = entry
    elif isinstance(known.value, dict) and isinstance(entry.value, dict):
        for key in (key for key in entry.value if key in known.value):
            faults.add(entry.place, f"{name}.{key}", f"the key is set a second time, first at {known.value[key].place}. Keep one.")
        sections[name] = replace(known, value={**known.value, **entry.value})
    else:
        faults.add(entry.place, name, f"the key is set a second time, first at {known.place}. Keep one.")


def _as_mapping(name: str, entry: Located) -> Located:
    """`site: slurm` as `site: {extends: slurm}`, so that keys can stand beside it."""
    return Located(value={_SHORT_FOR[name]: entry}, place=entry.place) if isinstance(entry.value, str | list) else entry


def _section_fix(key: str) -> str:
    head = key.partition(".")[0]
    run_sections = {section.name for section in fields(RunConfig)}
    if head in run_sections:
        return f"A sweep keeps keys of runs below base: or an arm. Move {key} there."
    if head == "arms":
        return "Arms are written nested: arms:, and below it their names."
    if (near := nearest(head, [*SECTIONS, *run_sections])) in SECTIONS:
        return f"Did you mean {near}?"
    of_runs = key_fix(key)
    if of_runs.startswith("Did you mean"):
        return f"{of_runs} A sweep keeps keys of runs below base: or an arm."
    return f"Keys of a sweep: {', '.join(SECTIONS)}."


def _route_overrides(overrides: Sequence[str], faults: Faults) -> _Overrides:
    """Sort overrides into keys of runs and sections of the sweep; the same key twice is a fault."""
    run_keys: list[tuple[str, Located]] = []
    sections: dict[str, Located] = {}
    for key, entry in filter(None, (parse_override(text, faults) for text in overrides)):
        head, dot, rest = key.partition(".")
        if key in _OVERRIDDEN_WHOLE:
            _add_section(sections, key, entry, faults)
        elif (dot and head in _OVERRIDDEN_BY_KEY) or key in ("random.count", "random.seed"):
            _add_section(sections, head, Located(value={rest: entry}, place=entry.place), faults)
        elif head in SECTIONS and head != "program":
            faults.add(entry.place, key, f"an override is a key of every run (optim.lr), or one of {_OVERRIDDEN}.")
        else:
            run_keys.append((key, entry))
    return _Overrides(settings=collect_overrides(run_keys, faults), sections=sections)


def _merged(sections: dict[str, Located], overrides: Mapping[str, Located], faults: Faults) -> dict[str, Located]:
    """Sections with overrides on top, entry by entry in mappings."""
    merged = dict(sections)
    for name, entry in overrides.items():
        known = merged.get(name)
        if name == "site" and known is not None and isinstance(entry.value, dict):
            known = _as_mapping(name, known)
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


def _base(sections: Mapping[str, Located], path: Path, texts: dict[str, str], faults: Faults) -> list[Setting]:
    """The settings under every arm: those of base:, and program:, which may stand beside it."""
    entry = sections.get("program")
    program = collect(Located(value={"program": entry}, place=entry.place), faults) if entry else []
    base = _settings_of_base(sections.get("base"), path, texts, faults)
    known = {setting.dotted: setting for setting in base}
    for setting in program:
        if (other := known.get(setting.dotted)) is not None:
            faults.add(setting.place, setting.label, f"the key is set here and in base ({other.place}). Keep one of them.")
    return [*base, *program]


def _settings_of_base(entry: Located | None, path: Path, texts: dict[str, str], faults: Faults) -> list[Setting]:
    """Inline, or the file of a run named relative to the sweep."""
    if entry is None or not isinstance(entry.value, str):
        return collect(entry, faults, prefix="base") if entry else []
    file = path.parent / entry.value
    if not is_file(file):
        faults.add(entry.place, "base", f"{entry.shown()} is not a file, looked for at {file}. {near_file(file)}")
        return []
    tree, texts[str(file)] = read_yaml(file, faults)
    return collect(tree, faults)


def _arm_drafts(entry: Located | None, name: str, place: Place, faults: Faults) -> list[ArmDraft]:
    """The arms in the order of the file; without any, one that is called like the sweep."""
    if entry is None or entry.value is Bad.BAD:
        return [ArmDraft(name=name, place=place)]
    if not isinstance(entry.value, dict) or not entry.value:
        faults.add(entry.place, "arms", f"{given(entry)} is not a mapping of arms. Write lines such as `se: {{model.attention: se}}`.")
        return []
    return [_arm_draft(arm, value, faults) for arm, value in entry.value.items()]


def _arm_draft(name: str, entry: Located, faults: Faults) -> ArmDraft:
    label = f"arms.{name}"
    if not _ARM_NAME.fullmatch(name):
        rule = "letters, digits, space and . _ = + - only, a letter or digit first, at most 60"
        faults.add(entry.place, label, f"{name!r} cannot name an arm: {rule}. Rename it, such as {slug(name)}.")
    if name in _WORDS:
        faults.add(entry.place, label, f"{name!r} is a word of --retry, --rerun and --cancel. Rename it, such as arm-{name}.")
    if not isinstance(entry.value, dict):
        settings = collect(entry, faults, prefix=label)
        return ArmDraft(name=name, place=entry.place, settings=settings)
    seeds = _seeds(entry.value.get("seeds"), f"{label}.seeds", faults)
    rest = {}
    for key, value in entry.value.items():
        if "." not in key and nearest(key, ("seeds",)) and key != "seeds":
            faults.add(value.place, f"{label}.{key}", f"{given(value)} is given to an unknown key. Did you mean seeds?")
        elif key in SECTIONS and key not in ("seeds", "program"):
            advice = "; exclude: takes points from single arms" if key in ("grid", "zip", "random") else ""
            problem = f"{given(value)} is given to an arm, and {key} belongs to the sweep as a whole"
            faults.add(value.place, f"{label}.{key}", f"{problem}. Write {key}: beside arms:{advice}.")
        elif key != "seeds":
            rest[key] = value
    settings = collect(replace(entry, value=rest), faults, prefix=label)
    return ArmDraft(name=name, place=entry.place, settings=settings, seeds=seeds)


def _seeds(entry: Located | None, label: str, faults: Faults) -> Seeds | None:
    """`3` means 0, 1, 2; a list means itself. None if unset or at fault."""
    if entry is None or entry.value is Bad.BAD:
        return None
    try:
        if type(entry.value) is int:
            return Seeds(seeds=tuple(range(convert(entry, int, COUNT))), place=entry.place)
        seeds = convert(entry, int | tuple[int, ...], SEED)
    except MistypedError as problem:
        faults.add(entry.place, label, str(problem))
        return None
    if seeds is Bad.BAD:
        return None
    if len(set(seeds)) < len(seeds):
        faults.add(entry.place, label, f"{entry.shown()} names a seed twice. Write {show_value(tuple(dict.fromkeys(seeds)))}.")
    return Seeds(seeds=seeds, place=entry.place)
