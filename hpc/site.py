"""A cluster as data: how it wants to be asked, and where things lie there. Reading it strictly is all that happens here.

A site is a YAML file, `configs/site/NAME.yaml` or a path, that may say `extends: NAME`. Personal values (account, mail) live in
`~/.config/hpc/site.yaml`, never in the repository: with `extends: NAME` they join that site, which is then also the automatic choice;
without it they join every Slurm site. Later layers win: site file, personal file, the sweep's `site:` section; `sbatch:` option by
option. Live limits of a cluster are the scheduler's business. One invariant: no text of a Site holds a line break or a secret.
"""

import dataclasses
import functools
import os
import re
import shutil
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seresnet.config import KeyClass, KeyRule
from seresnet.errors import ConfigError
from seresnet.strict_yaml import Bad, Faults, Located, Place, is_file, located, nearest, read_yaml
from seresnet.typed_values import MistypedError, convert

#: Beside signal_delay_s: Slurm sends its warning up to 60 s early, Python and torch take up to a minute to start, and a minute of work.
LEAST_TRAINING_S = 180
SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "site"
_OPTION = re.compile(r"sbatch\.[A-Za-z][A-Za-z0-9_-]*")
#: What would end a line of the job's script and start another.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# NAME=VALUE with a value that may be a secret itself: no reference, no path, no switch, no count.
_ASSIGNMENT = re.compile(r"(?<![\w$.-])([A-Za-z_]\w*)\+?=(?=[^\s;])(?![\"']?(?:[$`/~]|(?:true|false|[0-9]{1,6})\b))", re.IGNORECASE)
#: The names that the mirror keeps from W&B, too.
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|JWT|PRIVATE|(^|_)(API_?)?KEY$|(^|_)(AUTH|PAT)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Site:
    """How a cluster is asked for one task. Unset is None and leaves the option out of the sbatch script."""

    name: str
    scheduler: Literal["slurm", "local"] = "slurm"
    account: str | None = None
    account_required: bool = False
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    comment: str | None = None
    gpu_request: Literal["gres", "gpus_per_node", "none"] = "gres"  # the option that asks for one GPU a rank
    gpu_type: str | None = None  # "h200" asks for gpu:h200:N
    cpus_per_rank: int = field(default=2, metadata={"at_least": 1})
    mem_gb_per_rank: int | None = field(default=None, metadata={"at_least": 1})
    walltime_min: int = field(default=60, metadata={"at_least": 1})
    # 30 s of grace must do (design.md, "Stopping"); Slurm may send it up to 60 s early, never late.
    signal_delay_s: int = field(default=60, metadata={"at_least": 0, "at_most": 65535})
    array_parallelism: int | None = field(default=None, metadata={"at_least": 1})  # tasks of one array at a time
    max_parallel: int | None = field(default=None, metadata={"at_least": 1})  # runs at a time in local mode; unset = by cores
    exclude: str | None = None
    setup: tuple[str, ...] = ()  # shell lines before the task; the first that fails stops it
    python: str | None = None  # interpreter on the job side; unset = the one that launches
    data_dir: str | None = None  # prepared arrays; $VARIABLES are expanded where the launcher runs
    runs_dir: str | None = None
    cache_dir: str | None = None  # where libraries may cache, never HOME
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)  # further options, by their long names

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as submission.json keeps them."""
        return {**dataclasses.asdict(self), "setup": list(self.setup), "sbatch": dict(self.sbatch)}

    def folder(self, key: Literal["data_dir", "runs_dir", "cache_dir"]) -> Path | None:
        """The folder with its $VARIABLES expanded, None if unset; raises ConfigError for a variable that this machine lacks."""
        value = getattr(self, key)
        if value is None:
            return None
        expanded = os.path.expandvars(value)
        if missing := re.findall(r"\$\{?(\w+)", expanded):
            raise ConfigError(
                f"site {self.name}: {key}: {value} needs ${missing[0]}, which is not set here. Set it, or say site.{key}=/a/folder."
            )
        return _expanded(expanded)


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
        return str(Path(name.place.source).parent / _expanded(name.value))
    return name.plain()


def require_account(site: Site) -> None:
    """Raise ConfigError if this site wants an account and has none, naming who knows it."""
    if site.scheduler == "slurm" and site.account_required and not site.account:
        raise ConfigError(
            f"site {site.name}: account is required and not set. "
            "`sacctmgr -n show associations user=$USER format=account%40` lists yours; "
            "put `account: NAME` into ~/.config/hpc/site.yaml, or say site.account=NAME."
        )


def require_sbatch(site: Site) -> None:
    """Raise ConfigError if jobs cannot be sent from this machine."""
    if site.scheduler == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError(f"site {site.name}: sbatch is not on PATH. Launch where it is, or say --local to run on this machine.")


def personal_file(environ: Mapping[str, str]) -> Path:
    """Where personal values live, whether or not the file exists."""
    config = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME') or '~'}/.config"
    return _expanded(config).absolute() / "hpc" / "site.yaml"


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
    places = [_expanded(seen_from_here(name))]
    if not _is_path(name.value):
        places = [folder / f"{name.value}.yaml" for folder in _folders()]
    # Without `..`, so that a loop is seen, but not resolved: a personal file may be a link to one of another name.
    return next((Path(os.path.abspath(path)) for path in places if is_file(path)), None)  # noqa: PTH100


def _expanded(text: str) -> Path:
    return Path(os.path.expanduser(text))  # noqa: PTH111  (the method raises where the user after ~ is unknown)


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
    for layer in layers:
        for key, entry in _with_options(layer):
            values[key] = _value(key, entry, faults)
    faults.raise_any()
    options = {key.removeprefix("sbatch."): values.pop(key) for key in list(values) if _OPTION.fullmatch(key)}
    site = Site(**values, sbatch=options)
    _refuse_no_time_to_train(site, layers)
    return site


def _with_options(layer: _Layer) -> Iterator[tuple[str, Located]]:
    """The entries of a layer, with those below `sbatch:` under dotted keys, so that layers add to it option by option."""
    for key, entry in layer.items():
        if key == "sbatch" and isinstance(entry.value, dict):
            yield from ((f"sbatch.{option}", value) for option, value in entry.value.items())
        else:
            yield key, entry


@functools.cache
def _keys() -> dict[str, tuple[Any, KeyRule]]:
    """Type and range of every key that is not a mapping."""
    hints = typing.get_type_hints(Site)
    rules = {key.name: KeyRule(key_class=KeyClass.OPERATIONAL, help="", **key.metadata) for key in dataclasses.fields(Site)}
    return {name: (hints[name], rule) for name, rule in rules.items() if name != "sbatch"}


def _value(key: str, entry: Located, faults: Faults) -> Any:
    """What one entry of a site holds, converted; Bad after noting its fault."""
    place, label = entry.place, f"site.{key}"
    if problem := _key_problem(key, entry):
        faults.add(place, label, problem)
    elif name := next(filter(None, map(_secret_name, _texts(entry))), None):
        # Neither the value nor the override that it came with is shown.
        place = Place(f"override of {label}") if place.source.startswith("override ") else place
        problem = f"{name} is set to what may be a secret, and sites are copied into sweeps. Set it from a file: {name}=$(cat FILE)."
        faults.add(place, label, problem)
    elif any(map(_CONTROL.search, _texts(entry))):
        faults.add(place, label, f"{entry.shown()} holds a line break or another control character. Write it on one line, without.")
    else:
        try:
            return convert(entry, *_keys().get(key, (str | int | bool, None)))
        except MistypedError as mistake:
            faults.add(place, label, str(mistake))
    return Bad.BAD


def _key_problem(key: str, entry: Located) -> str | None:
    """What is wrong with a key, whatever it holds; None if nothing is."""
    if key in _keys() or _OPTION.fullmatch(key) or entry.value is Bad.BAD:
        return None
    if key == "sbatch":
        return f"{entry.shown()} is not a mapping of sbatch options. Write lines such as `reservation: NAME` below it."
    if key.startswith("sbatch."):
        return "no option of sbatch is called so. Write its long name without dashes before it, such as `reservation`."
    known = [*_keys(), "sbatch", "extends"]
    near = nearest(key, known)
    return f"no such key. Did you mean {near}?" if near else f"no such key. Keys of a site: {', '.join(known)}."


def _texts(entry: Located) -> list[str]:
    entries = entry.value if isinstance(entry.value, list) else [entry]
    return [item.value for item in entries if isinstance(item.value, str)]


def _secret_name(text: str) -> str | None:
    """The first name in a line that is set to a value and sounds like a secret's."""
    return next((match[1] for match in _ASSIGNMENT.finditer(text) if _SECRET_NAME.search(match[1])), None)


def _refuse_no_time_to_train(site: Site, layers: list[_Layer]) -> None:
    least = -(-(site.signal_delay_s + LEAST_TRAINING_S) // 60)
    if site.scheduler == "slurm" and site.walltime_min < least:
        place = next((layer[key].place for key in ("walltime_min", "signal_delay_s") for layer in reversed(layers) if key in layer), "site")
        raise ConfigError(
            f"{place}: site.walltime_min: {site.walltime_min} leaves no time to train: start-up takes up to a minute, and Slurm may warn "
            f"{site.signal_delay_s} + 60 s before the end (signal_delay_s). Use {least} or more."
        )
