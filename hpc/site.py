"""A cluster as data: how it wants to be asked, and where things lie there. Reading it strictly is all that happens here.

A site is a YAML file, `configs/site/NAME.yaml` or a path, that may say `extends: NAME`. Personal values (account, mail) live in
`~/.config/hpc/site.yaml`, never in the repository: with `extends: NAME` they join that site, which is then also the automatic choice;
without it they join every Slurm site. Later layers win: site file, personal file, the sweep's `site:` section; `sbatch:` option by
option. What the keys are is hpc.site_keys', live limits hpc.limits' business. One invariant: every fault of every layer is told at once.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpc.site_keys import BY_ENTRY, Site, entries, expanded, value_of
from hpc.site_rules import LEAST_TRAINING_S, broken_rules
from seresnet.errors import ConfigError
from seresnet.strict_yaml import Bad, Faults, Located, Place, is_file, located, nearest, read_yaml

__all__ = ["LEAST_TRAINING_S", "SHIPPED", "Site", "personal_file", "read_site", "require_account", "require_sbatch", "seen_from_here"]

SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "site"

_Layer = dict[str, Located]  # every value of a layer knows the file and line that wrote it


def read_site(
    asked: str | Mapping[str, Any] | None = None,
    *,
    where: str = "site",
    origins: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Site:
    """The site that a sweep asks for: a name, a path, a mapping (with `extends:` or without), or None for automatic choice.

    where, and for single keys origins ("walltime_min" -> "FILE:LINE"), say in messages who asked; paths are relative to the working
    directory. Automatic is what the personal file extends, else `slurm`, where sbatch is on PATH, else `local`. Raises ConfigError
    with every fault of every layer.
    """
    environ = os.environ if environ is None else environ
    own: _Layer = {}
    if isinstance(asked, Mapping):
        own = {key: located(value, (origins or {}).get(key, where)) for key, value in asked.items()}
    base = own.pop("extends", None) if isinstance(asked, Mapping) or asked is None else located(asked, where)
    faults = Faults()
    layers = _base_layers(base, personal_file(environ), shutil.which("sbatch", path=environ.get("PATH")) is not None, faults)
    return _build([*layers, own], faults)


def seen_from_here(name: Located) -> Any:
    """What an `extends:` or a sweep's `site:` says; a path in a file is relative to that file, and made relative to where we are."""
    if name.place.line and isinstance(name.value, str) and _is_path(name.value):
        return str(Path(name.place.source).parent / expanded(name.value))
    return name.plain()


def require_account(site: Site) -> None:
    """Raise ConfigError if this site wants an account and has none, naming who knows it."""
    if site.scheduler == "slurm" and site.account_required and not site.charged_account:
        of_partition = f", or `{site.partitions[0]}: NAME` below partition_accounts" if site.partition_accounts and site.partitions else ""
        raise ConfigError(
            f"site {site.name}: account is required and not set. "
            "`sacctmgr -n show associations user=$USER format=account%40` lists yours; "
            f"put `account: NAME` into ~/.config/hpc/site.yaml{of_partition}, or say site.account=NAME."
        )


def require_sbatch(site: Site) -> None:
    """Raise ConfigError if jobs cannot be sent from this machine."""
    if site.scheduler == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError(f"site {site.name}: sbatch is not on PATH. Launch where it is, or say --local to run on this machine.")


def personal_file(environ: Mapping[str, str]) -> Path:
    """Where personal values live, whether or not the file exists."""
    config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or '~'}/.config"
    return expanded(config).absolute() / "hpc" / "site.yaml"


def _base_layers(base: Located | None, personal: Path, has_sbatch: bool, faults: Faults) -> list[_Layer]:
    """The layers below the sweep's own values: site files, and the personal one where it belongs."""
    extra = _read_file(personal, faults) if is_file(personal) else {}
    extends = extra.pop("extends", None)
    if base is None and extends is not None:
        layers = [layer for _, layer in _chain(located(str(personal), str(personal)), (), faults)]
        if has_sbatch or _scheduler(layers) == "local":
            return layers
    files = list(_chain(base or located("slurm" if has_sbatch else "local", "automatic choice"), (), faults))
    paths, layers = [path for path, _ in files], [layer for _, layer in files]
    joins = _look_up(extends) in paths if extends is not None else _scheduler([extra]) == _scheduler(layers)
    return [*layers, extra] if joins and personal not in paths else layers


def _scheduler(layers: list[_Layer]) -> Any:
    return next((layer["scheduler"].value for layer in reversed(layers) if "scheduler" in layer), "slurm")


def _chain(name: Located, seen: tuple[Path, ...], faults: Faults) -> Iterator[tuple[Path, _Layer]]:
    """A site file and its layer, after those of what it extends."""
    path = _find(name)
    if path in seen:
        loop = " -> ".join(entry.stem for entry in (*seen, path))
        raise ConfigError(f"{name.place}: site {name.value} extends itself: {loop}. Remove one `extends:`.")
    layer = _read_file(path, faults)
    extends = layer.pop("extends", None)
    if extends is not None:
        yield from _chain(extends, (*seen, path), faults)
    # A personal file is called site.yaml everywhere: it keeps the name of what it extends.
    if extends is None or path.name != "site.yaml":
        layer.setdefault("name", Located(value=path.stem, place=Place(str(path))))
    yield path, layer


def _find(name: Located) -> Path:
    if found := _look_up(name):
        return found
    if not isinstance(name.value, str):
        raise ConfigError(f"{name.place}: site: {name.shown()} is not the name of a site. Sites: {_known()}.")
    if _is_path(name.value):
        raise ConfigError(f"{name.place}: site {seen_from_here(name)}: no such file. Sites that have a name: {_known()}.")
    near = nearest(name.value, _names())
    meant = f" Did you mean {near}?" if near else ""
    raise ConfigError(f"{name.place}: site {name.value!r} is not known.{meant} Sites: {_known()}, or the path of a YAML file.")


def _look_up(name: Located) -> Path | None:
    """The file of a site that is given by name or path; None if there is none."""
    if not isinstance(name.value, str):
        return None
    places = [expanded(seen_from_here(name))]
    if not _is_path(name.value):
        places = [folder / f"{name.value}.yaml" for folder in _folders()]
    # Without `..`, so that a loop is seen, but not resolved: a personal file may be a link to one of another name.
    return next((Path(os.path.abspath(path)) for path in places if is_file(path)), None)  # noqa: PTH100


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".yaml", ".yml"))


def _folders() -> list[Path]:
    return list(dict.fromkeys((Path.cwd() / "configs" / "site", SHIPPED)))


def _names() -> list[str]:
    return sorted({path.stem for folder in _folders() if folder.is_dir() for path in folder.glob("*.yaml")})


def _known() -> str:
    return ", ".join(_names()) or "none shipped beside this code"


def _read_file(path: Path, faults: Faults) -> _Layer:
    tree, _ = read_yaml(path, faults)
    if tree.value not in (None, Bad.BAD) and not isinstance(tree.value, dict):
        faults.add(tree.place, "", "a site is a mapping of keys, such as `account: NAME`.")
    return dict(tree.value) if isinstance(tree.value, dict) else {}


def _build(layers: list[_Layer], faults: Faults) -> Site:
    """The Site of the merged layers; raises ConfigError with every fault, each naming the place that wrote it."""
    values: dict[str, Any] = {"name": "unnamed"}
    places: dict[str, Place] = {}
    for layer in layers:
        for key, entry in entries(layer):
            values[key], places[key] = value_of(key, entry, faults), entry.place
    faults.raise_any()
    for name in BY_ENTRY:
        values[name] = {key.partition(".")[2]: values.pop(key) for key in list(values) if key.startswith(f"{name}.")}
    site = Site(**values, places={key: str(place) for key, place in places.items()})
    for key, problem in broken_rules(site):
        label, _, sentence = problem.partition(": ")
        faults.add(places.get(key) or Place("site"), label, sentence)
    faults.raise_any()
    return site
