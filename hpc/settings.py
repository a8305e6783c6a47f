"""Configs as flat "section.key" mappings: what runs share, and what tells them apart. For the page and the methods paragraph.

Takes plain dicts as run.yaml holds them, so that a config of another version, or of somebody else's program, is shown and never judged.
One invariant: a key that some config lacks is never said to be shared.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hpc.gather import RunRow
from hpc.regroup import show as text
from seresnet.config import RunConfig, to_dict

__all__ = ["SEED", "Settings", "configs_of", "flat", "shared", "text", "unusual", "varied"]

Settings = Mapping[str, Any]

_USUAL = to_dict(RunConfig())

#: They say nothing about an experiment, and a page that is sent around should not carry them.
PLACES = ("data.path", "data.dir")

#: Tells runs of one arm apart and says nothing about the arm.
SEED = "train.seed"


def flat(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keys in the order of the config; a section that is no mapping is one key. Places on somebody's disk are left out.

    A key that this version has and the config lacks was at its default, as run ids say, too.
    """
    found: dict[str, Any] = {}
    for section, part in (config or {}).items():
        if isinstance(part, Mapping):
            usual = _USUAL.get(section, {})
            whole = {**usual, **part} if usual.keys() & part.keys() else part
            found |= {
                key: value for name, entry in whole.items() for key, value in _leaves(f"{section}.{name}", entry) if key not in PLACES
            }
        else:
            found[str(section)] = part
    return found


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Arguments of somebody's code are keys of their own, as in a sweep's file."""
    if isinstance(value, Mapping):
        yield from ((f"{key}.{name}", part) for name, part in value.items())
    else:
        yield key, value


def configs_of(rows: Iterable[RunRow]) -> list[dict[str, Any]]:
    """Of the runs whose run.yaml can be read."""
    return [flat(row.config) for row in rows if row.config]


def shared(configs: Sequence[Settings]) -> dict[str, Any]:
    """What every config says, and says alike."""
    first, *others = configs or [{}]
    return {key: value for key, value in first.items() if all(key in other and other[key] == value for other in others)}


def varied(configs: Sequence[Settings]) -> list[str]:
    """Every other key but the seed, in the order in which they occur."""
    common = shared(configs)
    return [key for key in dict.fromkeys(key for config in configs for key in config) if key not in common and key != SEED]


def unusual(settings: Settings) -> dict[str, Any]:
    """Those that are not this version's defaults."""
    usual = flat(_USUAL)
    return {key: value for key, value in settings.items() if key not in usual or usual[key] != value}
