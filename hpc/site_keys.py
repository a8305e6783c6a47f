"""The keys of a site: the Site value, and how one entry of a site's YAML is checked and converted.

Files and their layers are hpc.site's business, what no single key can say (a partition without its account, a container without an
image) is hpc.site_rules'. One invariant: no text of a Site holds a line break or a secret, because sites are copied into sweeps.
"""

import dataclasses
import functools
import os
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seresnet.config import KeyClass, KeyRule
from seresnet.errors import ConfigError
from seresnet.strict_yaml import Bad, Faults, Located, Place, nearest
from seresnet.typed_values import MistypedError, convert

#: Mappings to which every layer adds entry by entry; their entries are also written as dotted keys, such as `sbatch.reservation`.
BY_ENTRY = ("sbatch", "partition_accounts", "low_use_pct")
_OPTION = re.compile(r"sbatch\.[A-Za-z][A-Za-z0-9_-]*")
#: What would end a line of the job's script and start another.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# NAME=VALUE with a value that may be a secret itself: no reference, no path, no switch, no count.
_ASSIGNMENT = re.compile(r"(?<![\w$.-])([A-Za-z_]\w*)\+?=(?=[^\s;])(?![\"']?(?:[$`/~]|(?:true|false|[0-9]{1,6})\b))", re.IGNORECASE)
#: The names that the mirror keeps from W&B, too.
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|JWT|PRIVATE|(^|_)(API_?)?KEY$|(^|_)(AUTH|PAT)$", re.IGNORECASE)
_PERCENT = KeyRule(key_class=KeyClass.OPERATIONAL, help="", at_least=0, at_most=100)

Words = Mapping[str, str | int | bool]


def _count(default: int | None, **rule: float) -> Any:
    return field(default=default, metadata={"at_least": 1, **rule})


@dataclass(frozen=True, kw_only=True)
class Site:
    """How a cluster is asked for one task. Unset is None and leaves the option out of the sbatch script."""

    name: str
    scheduler: Literal["slurm", "local"] = "slurm"
    account: str | None = None
    account_required: bool = False
    partition: str | tuple[str, ...] | None = None  # of a list Slurm takes the one that can start first
    partition_accounts: Mapping[str, str] = field(default_factory=dict)  # partition -> the account that it charges
    qos: str | None = None
    constraint: str | None = None
    comment: str | Words | None = None  # {preemption: yes, requeue: true} is sent as preemption=yes;requeue=true
    mps_comment: str | None = None  # joins the comment where runs share a GPU
    gpu_request: Literal["gres", "gpus_per_node", "none"] = "gres"  # the option that asks for one GPU a rank
    gpu_type: str | None = None  # "h200" asks for gpu:h200:N
    max_gpus_per_node: int | None = _count(None)
    cpus_per_rank: int = _count(2)
    mem_gb_per_rank: int | None = _count(None)
    walltime_min: int = _count(60)
    # 30 s of grace must do (ADR 7); Slurm may send it up to 60 s early, never late.
    signal_delay_s: int = _count(60, at_least=0, at_most=65535)
    array_parallelism: int | None = _count(None)  # tasks of one array at a time
    max_parallel: int | None = _count(None)  # runs at a time in local mode; unset = by cores
    exclude: str | None = None
    preemption: Literal["none", "requeue", "cancel"] = "none"  # what the site does to a job that must make room
    preemptible_after_min: int | None = _count(None, at_least=0)  # before that a job is left alone
    low_use_pct: Mapping[str, float] = field(default_factory=dict)  # word in a GPU's name -> % of use below which its jobs are cancelled
    low_use_window_min: int | None = _count(None)  # over which that use is averaged
    modules: tuple[str, ...] = ()  # `module load` each, outside of a container; the first that fails stops the task
    setup: tuple[str, ...] = ()  # shell lines before the task; the first that fails stops it
    container: Literal["apptainer", "singularity"] | None = None
    image: str | None = None  # in image, overlay and binds $VARIABLES are expanded on the compute node
    overlay: str | None = None  # attached read-only, so that many tasks can share it
    binds: tuple[str, ...] = ()  # SOURCE or SOURCE:PLACE; sweep, data and cache are visible without being named
    python: str | None = None  # interpreter on the job side; unset = the one that launches, in a container `python`
    data_dir: str | None = None  # prepared arrays; $VARIABLES are expanded where the launcher runs
    runs_dir: str | None = None
    cache_dir: str | None = None  # where libraries may cache, never HOME
    purge_days: int | None = _count(None)  # files that nobody opened for so long are removed where runs_dir lies; status warns before
    status_every_s: int | None = _count(None)  # the shortest time between two looks of `hpc.status --watch` on a login node
    mail: str | None = None  # one message when an array ends
    sbatch: Words = field(default_factory=dict)  # further options, by their long names
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # key -> FILE:LINE that wrote it

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as submission.json keeps them; where they were written is left out."""
        return {key.name: _plain(getattr(self, key.name)) for key in dataclasses.fields(self) if key.name != "places"}

    @property
    def partitions(self) -> tuple[str, ...]:
        """The partitions that are asked for; none means the cluster's default."""
        if self.partition is None:
            return ()
        return tuple(self.partition.split(",")) if isinstance(self.partition, str) else self.partition

    @property
    def charged_account(self) -> str | None:
        """The account of the partitions that are asked for, else the site's own."""
        return next((self.partition_accounts[name] for name in self.partitions if name in self.partition_accounts), self.account)

    def place(self, key: str) -> str:
        """Who wrote a key, for messages: FILE:LINE where that is known."""
        return self.places.get(key) or f"site {self.name}"

    def folder(self, key: Literal["data_dir", "runs_dir", "cache_dir"]) -> Path | None:
        """The folder with its $VARIABLES expanded, None if unset; raises ConfigError for a variable that this machine lacks."""
        value = getattr(self, key)
        if value is None:
            return None
        text = os.path.expandvars(value)
        if missing := re.findall(r"\$\{?(\w+)", text):
            raise ConfigError(
                f"site {self.name}: {key}: {value} needs ${missing[0]}, which is not set here. Set it, or say site.{key}=/a/folder."
            )
        return expanded(text)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value


def expanded(text: str) -> Path:
    """A path with ~ expanded."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  (the method raises where the user after ~ is unknown)


# --- from YAML ---


def entries(layer: Mapping[str, Located]) -> Iterator[tuple[str, Located]]:
    """The entries of a layer, with those below `sbatch:` and its like under dotted keys, so that layers add to it entry by entry."""
    for key, entry in layer.items():
        if key in BY_ENTRY and isinstance(entry.value, dict):
            yield from ((f"{key}.{name}", value) for name, value in entry.value.items())
        else:
            yield key, entry


@functools.cache
def _keys() -> dict[str, tuple[Any, KeyRule | None]]:
    """Type and range of every key that is not a mapping."""
    hints = typing.get_type_hints(Site) | {"comment": str | None}
    rules = {key.name: KeyRule(key_class=KeyClass.OPERATIONAL, help="", **key.metadata) for key in dataclasses.fields(Site)}
    return {name: (hints[name], rule) for name, rule in rules.items() if name not in (*BY_ENTRY, "places")}


def _type_of(key: str) -> tuple[Any, KeyRule | None]:
    by_entry: dict[str, tuple[Any, KeyRule | None]] = {"partition_accounts": (str, None), "low_use_pct": (float, _PERCENT)}
    return _keys().get(key) or by_entry.get(key.partition(".")[0]) or (str | int | bool, None)


def value_of(key: str, entry: Located, faults: Faults) -> Any:
    """What one entry of a site holds, converted; Bad after noting its fault."""
    if problem := _key_problem(key, entry):
        shown = key if key.isprintable() else key.encode("unicode_escape").decode()
        faults.add(entry.place, f"site.{shown}", problem)
        return Bad.BAD
    return _checked(key, entry, faults)


def _checked(key: str, entry: Located, faults: Faults) -> Any:
    place, label = entry.place, f"site.{key}"
    if name := next(filter(None, map(_secret_name, _texts(entry))), None):
        # Neither the value nor the override that it came with is shown.
        place = Place(f"override of {label}") if place.source.startswith("override ") else place
        problem = f"{name} is set to what may be a secret, and sites are copied into sweeps. Set it from a file: {name}=$(cat FILE)."
        faults.add(place, label, problem)
    elif any(map(_CONTROL.search, _texts(entry))):
        faults.add(place, label, f"{entry.shown()} holds a line break or another control character. Write it on one line, without.")
    elif key == "comment" and isinstance(entry.value, dict):
        return _comment(entry.value, faults)
    else:
        try:
            return convert(entry, *_type_of(key))
        except MistypedError as mistake:
            faults.add(place, label, str(mistake))
    return Bad.BAD


def _comment(written: Mapping[str, Located], faults: Faults) -> Any:
    """The entries of a comment; `;` and `=` are what parts them."""
    found = {key: _checked(f"comment.{key}", entry, faults) for key, entry in written.items()}
    for key, entry in written.items():
        if ";" in key or "=" in key or ";" in str(entry.value):
            faults.add(entry.place, f"site.comment.{key}", "`;` and `=` part the entries of a comment. Write `word: value`, one a line.")
    return Bad.BAD if Bad.BAD in found.values() else found


def _key_problem(key: str, entry: Located) -> str | None:
    """What is wrong with a key, whatever it holds; None if nothing is."""
    head, dot, name = key.partition(".")
    if key in _keys() or _OPTION.fullmatch(key) or entry.value is Bad.BAD:
        return None
    if key in BY_ENTRY:
        example = {"sbatch": "`reservation: NAME`", "partition_accounts": "`PARTITION: ACCOUNT`", "low_use_pct": "`h200: 60`"}[key]
        what = "sbatch options" if key == "sbatch" else "entries"
        return f"{entry.shown()} is not a mapping of {what}. Write lines such as {example} below it."
    if head == "sbatch" and dot:
        return "no option of sbatch is called so. Write its long name without dashes before it, such as `reservation`."
    if name and head in BY_ENTRY:
        return "a name may not hold a line break or another control character." if _CONTROL.search(name) else None
    known = [*_keys(), *BY_ENTRY, "extends"]
    near = "comment" if head == "comment" else nearest(key, known)
    return f"no such key. Did you mean {near}?" if near else f"no such key. Keys of a site: {', '.join(known)}."


def _texts(entry: Located) -> list[str]:
    if isinstance(entry.value, dict):
        return [*entry.value, *(f"{key}={item.value}" for key, item in entry.value.items() if isinstance(item.value, str))]
    items = entry.value if isinstance(entry.value, list) else [entry]
    return [item.value for item in items if isinstance(item.value, str)]


def _secret_name(text: str) -> str | None:
    """The first name in a line that is set to a value and sounds like a secret's."""
    return next((match[1] for match in _ASSIGNMENT.finditer(text) if _SECRET_NAME.search(match[1])), None)
