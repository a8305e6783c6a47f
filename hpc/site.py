"""A cluster as data: how it wants to be asked, and where things lie there. Reading it strictly is all that happens here.

A site is a YAML file, `configs/site/NAME.yaml` or a path, that may say `extends: NAME`; personal values (account, mail) live in
`~/.config/hpc/site.yaml`, never in the repository. Later layers win: shipped file, personal file, the sweep's `site:` section.
Live limits of a cluster are not a site's business but the scheduler's.
"""

import dataclasses
import difflib
import os
import re
import shutil
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seresnet.errors import ConfigError
from seresnet.strict_yaml import Bad, Faults, Located, Place, located, read_yaml

#: Beside signal_delay_s: Slurm sends its warning up to 60 s early, Python and torch take up to a minute to start, and a minute of work.
LEAST_TRAINING_S = 180
SHIPPED = Path(__file__).resolve().parent.parent / "configs" / "site"


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
        """Plain values, as submission.json keeps them; `site_from_dict` reads them back."""
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
        return Path(expanded).expanduser()


_Layer = dict[str, Located]  # every value of a layer knows the file and line that wrote it


def read_site(
    asked: str | Mapping[str, Any] | None = None,
    *,
    where: str = "site",
    origins: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Site:
    """The site that a sweep asks for: a name, a path, a mapping (with `extends:` or without), or None for automatic choice.

    where, and for single keys origins ("walltime_min" -> "FILE:LINE"), say in messages who asked. Automatic is the personal file if
    there is one, else `slurm` where sbatch is on PATH, else `local`. Raises ConfigError with every fault of every layer.
    """
    environ = os.environ if environ is None else environ
    own: _Layer = {}
    if isinstance(asked, Mapping):
        own = {key: located(value, (origins or {}).get(key, where)) for key, value in asked.items()}
    base = own.pop("extends", None) if isinstance(asked, Mapping) or asked is None else located(asked, where)
    faults = Faults()
    layers = _base_layers(base, environ, faults)
    return _build([*layers, own], faults)


def site_from_dict(value: Mapping[str, Any], where: str = "submission.json") -> Site:
    """The site of a past submission, as strictly as a file."""
    return _build([located(value, where).value], Faults())


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
    return Path(config).expanduser() / "hpc" / "site.yaml"


def _base_layers(base: Located | None, environ: Mapping[str, str], faults: Faults) -> list[_Layer]:
    """The layers below the sweep's own values: shipped files, and the personal one where it belongs."""
    personal, has_sbatch = personal_file(environ), shutil.which("sbatch", path=environ.get("PATH")) is not None
    if base is None and personal.is_file():
        layers = list(_chain(located(str(personal), str(personal)), (), faults))
        if has_sbatch or _scheduler(layers) == "local":
            return layers
    layers = list(_chain(base or located("slurm" if has_sbatch else "local", "automatic choice"), (), faults))
    if personal.is_file():
        extra = _read_file(personal, Faults())  # its own faults are told where it is asked for
        extends = extra.pop("extends", None)
        if extends is not None and any("name" in layer and layer["name"].value == extends.value for layer in layers):
            layers.append(extra)
    return layers


def _scheduler(layers: list[_Layer]) -> Any:
    return next((layer["scheduler"].value for layer in reversed(layers) if "scheduler" in layer), "slurm")


def _chain(name: Located, seen: tuple[Path, ...], faults: Faults) -> Iterator[_Layer]:
    """The layers of a site file, what it extends first."""
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
    yield layer


def _find(name: Located) -> Path:
    if not isinstance(name.value, str):
        raise ConfigError(f"{name.place}: site: {name.shown()} is not the name of a site. Sites: {_known()}.")
    if "/" in name.value or name.value.endswith((".yaml", ".yml")):
        path = Path(name.value).expanduser()
        if path.is_file():
            return path.resolve()
        raise ConfigError(f"{name.place}: site {name.value}: no such file. Sites that have a name: {_known()}.")
    for folder in _folders():
        if (folder / f"{name.value}.yaml").is_file():
            return (folder / f"{name.value}.yaml").resolve()
    near = _nearest(name.value, _names())
    raise ConfigError(f"{name.place}: site {name.value!r} is not known.{near} Sites: {_known()}, or the path of a YAML file.")


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
    keys = {key.name: key for key in dataclasses.fields(Site)}
    hints = typing.get_type_hints(Site)
    for layer in layers:
        for name, setting in layer.items():
            if name not in keys:
                faults.add(setting.place, f"site.{name}", f"no such key.{_nearest(name, [*keys, 'extends'])}")
            elif setting.value is not Bad.BAD and (problem := _problem(setting.plain(), hints[name], keys[name].metadata)):
                faults.add(setting.place, f"site.{name}", f"{setting.shown()} {problem}")
    faults.raise_any()
    values = {name: setting.plain() for layer in layers for name, setting in layer.items()}
    if "setup" in values:
        values["setup"] = tuple(values["setup"])
    site = Site(**{"name": "unnamed", **values})
    _refuse_no_time_to_train(site, layers)
    return site


def _refuse_no_time_to_train(site: Site, layers: list[_Layer]) -> None:
    least = -(-(site.signal_delay_s + LEAST_TRAINING_S) // 60)
    if site.scheduler == "slurm" and site.walltime_min < least:
        place = next((layer[key].place for key in ("walltime_min", "signal_delay_s") for layer in reversed(layers) if key in layer), "site")
        raise ConfigError(
            f"{place}: site.walltime_min: {site.walltime_min} leaves no time to train: start-up takes up to a minute, and Slurm may warn "
            f"{site.signal_delay_s} + 60 s before the end (signal_delay_s). Use {least} or more."
        )


def _problem(value: Any, hint: Any, rule: Mapping[str, int]) -> str | None:
    """What is wrong with a value and the fix, as the end of a sentence; None if nothing is."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        return _problem(value, next(arg for arg in args if arg is not type(None)), rule)
    if origin is Literal:
        return None if value in args else f"is not one of {', '.join(args)}.{_nearest(str(value), args)}"
    if origin is tuple:
        is_lines = isinstance(value, list | tuple) and all(isinstance(line, str) for line in value)
        return None if is_lines else "is not a list of lines. Write one `- line` each."
    if origin is Mapping:
        is_flat = isinstance(value, Mapping) and all(isinstance(item, str | int | bool) for item in value.values())
        return None if is_flat else "is not a mapping of sbatch options to plain values, such as `reservation: NAME`."
    if hint is str:
        return None if isinstance(value, str) and value else "is not text. Put it in quotes."
    if hint is bool:
        return None if isinstance(value, bool) else "is not true or false."
    if not isinstance(value, int) or isinstance(value, bool):
        return "is not a whole number."
    if not rule.get("at_least", value) <= value <= rule.get("at_most", value):
        return f"is out of range. Use {rule['at_least']} {'to ' + str(rule['at_most']) if 'at_most' in rule else 'or more'}."
    return None


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {found[0]}?" if found else ""
