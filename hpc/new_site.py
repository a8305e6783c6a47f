"""`python -m hpc.launch --new-site NAME`: a site file from what this cluster says of itself.

What the user must decide (account, QOS, partition) is written down as it is where there is one choice, and as comments where there are
several. Nothing below HOME is written. One invariant: the file that is left behind can be read by read_site at once.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpc import limits as live
from hpc.cluster_text import Caps, Node, Partition
from hpc.limit_values import Limits
from hpc.site import SHIPPED, Site, personal_file, read_site
from seresnet.durable import write_durably
from seresnet.errors import ConfigError


def new_site(name: str) -> int:
    """Write configs/site/NAME.yaml here and say so. Raises ConfigError for a name that cannot be used, and where no SLURM answers."""
    path = _path(name)
    found = live.live_limits(Site(name=name))
    if not found.partitions:
        raise ConfigError(
            f"--new-site {name}: `scontrol show partition` does not answer, so there is no SLURM to describe. Say it on a login node of "
            "the cluster; for this machine there is the site `local`."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, site_text(found).encode())
    try:
        site = read_site(str(path))
    except ConfigError:
        path.unlink()  # something that the cluster said looks like a secret
        raise
    print(f"wrote {path} (cluster {found.cluster}). Read it: what is a comment is a choice.")
    print(f"use it: say `site: {name}` in a sweep, or `extends: {name}` in {personal_file(os.environ)}")
    for fault in live.faults(found, site, []):
        print(f"note: {fault}")
    return 0


def _path(name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name.endswith((".yaml", ".yml")):
        raise ConfigError(f"--new-site {name}: a site's name is letters, digits, `-`, `_` and `.`, without .yaml. Use another.")
    folder = Path("configs") / "site"
    if not folder.is_dir():
        raise ConfigError(f"--new-site {name}: there is no folder {folder} here. Say it where configs/ lies, or `mkdir -p {folder}` first.")
    path = folder / f"{name}.yaml"
    if (SHIPPED / path.name).exists():
        raise ConfigError(f"--new-site {name}: a site of that name is shipped, and the new one extends one. Use another name.")
    if path.exists() or path.is_symlink():
        raise ConfigError(f"--new-site {name}: {path} exists and is left alone. Use another name, or move it away.")
    return path


def site_text(found: Limits) -> str:
    """The YAML of a site, from the limits of a cluster."""
    lines = [f"# Written by --new-site from what cluster {found.cluster} (Slurm {found.version}) says. Every key is in hpc/site_keys.py."]
    lines += ["extends: slurm", *_accounts(found), *_partitions(found), *_qos(found), *_gpus(found), *_preemption(found), *_sizes(found)]
    lines += [
        "# data_dir: $SCRATCH/data   # prepared arrays; runs_dir and cache_dir likewise: on the large file system, not below HOME",
        "# setup:                    # shell lines before a task; modules: and container: image: overlay: are other ways",
        "#   - source /path/of/env/bin/activate",
    ]
    return "\n".join(lines) + "\n"


def _accounts(found: Limits) -> Iterator[str]:
    names = sorted({row.account for row in found.associations or ()})
    required = found.enforces("associations")
    if len(names) == 1:
        yield f"account: {_yaml(names[0])}"
    else:
        yield f"# account: NAME             # {f'yours: {_comment(names)}' if names else 'sacctmgr names none of yours'}"
    yield f"account_required: {str(required).lower()}"


def _partitions(found: Limits) -> Iterator[str]:
    known = [*(found.partitions or {}).values()]
    default = next((entry for entry in known if entry.is_default), None)
    if found.is_routed:
        yield "# partition: NAME           # a plugin of this cluster chooses where none is named; a list takes the first that is free"
    elif default:
        yield f"partition: {_yaml(default.name)}   # the default; a list such as [a, b] takes the one that is free first"
    else:
        yield f"# partition: NAME           # there is no default, name one: {_comment([entry.name for entry in known])}"
    for entry in known:
        yield f"#   {_one_line(_about(entry, found.nodes or ()))}"


def _about(entry: Partition, nodes: Sequence[Node]) -> str:
    """A line about a partition: its time limit, the nodes' GPUs, CPUs and memory, who may use it."""
    own = [node for node in nodes if entry.name in node.partitions]
    kinds = sorted({_gres(node) for node in own})
    cpus, mem = max((node.cpus or 0 for node in own), default=0), max((node.mem_mb or 0 for node in own), default=0)
    words = [f"MaxTime {entry.max_time_min} min" if entry.max_time_min else "no time limit", f"{len(own)} nodes"]
    words += [f"up to {cpus} CPUs and {mem // 1024} GB"] if own else []
    words += [", ".join(filter(None, kinds)) or "no GPUs"]
    words += [f"preemption {entry.preempt_mode}"] if entry.preempt_mode else []
    words += [f"accounts {','.join(sorted(entry.allow_accounts))}"] if entry.allow_accounts else []
    words += [f"QOS {','.join(sorted(entry.allow_qos))}"] if entry.allow_qos else []
    return f"{entry.name}: {'; '.join(words)}"


def _gres(node: Node) -> str:
    return ",".join(f"gpu:{kind}:{count}" if kind else f"gpu:{count}" for kind, count in node.gpus.items())


def _qos(found: Limits) -> Iterator[str]:
    mine = {name for row in found.associations or () for name in row.qos}
    known = [caps for name, caps in (found.qos or {}).items() if not mine or name in mine]
    if known:
        yield f"# qos: NAME                 # {'yours' if mine else 'there are'}:"
    yield from (f"#   {_one_line(_about_qos(caps))}" for caps in known)


def _about_qos(caps: Caps) -> str:
    tres = {"MaxTRES": caps.max_tres, "MaxTRESPerUser": caps.max_tres_user, "GrpTRES": caps.grp_tres}
    words = [
        f"{name} {','.join(f'{key}={count}' + 'M' * (key == 'mem') for key, count in value.items())}"
        for name, value in tres.items()
        if value
    ]
    words += [f"MaxWall {caps.max_wall_min} min"] if caps.max_wall_min else []
    words += [f"MaxSubmit {caps.max_submit}"] if caps.max_submit else []
    return f"{caps.name.removeprefix('QOS ')}: {'; '.join(words) or 'no limits'}"


def _gpus(found: Limits) -> Iterator[str]:
    nodes = found.nodes or ()
    types = sorted({kind for node in nodes for kind in node.gpus if kind})
    features = sorted({word for node in nodes for word in node.features})
    if not any(node.gpus for node in nodes):
        yield "gpu_request: none           # no node has GPUs"
    else:
        yield f"max_gpus_per_node: {max(sum(node.gpus.values()) for node in nodes)}"
    if types:
        yield f"# gpu_type: {types[0]}   # {_comment(types)}"
    if features:
        yield f"# constraint: {_yaml(features[0])}   # alternatives with |, all of several with &: {_comment(features)}"


def _preemption(found: Limits) -> Iterator[str]:
    modes = {entry.preempt_mode for entry in (found.partitions or {}).values()} | {found.preempt_mode}
    words = {word.lower() for mode in modes if mode for word in mode.split(",")} & {"requeue", "cancel"}
    for word in sorted(words, reverse=True)[:1]:
        yield f"preemption: {word}         # PreemptMode; partitions may differ, see above"


def _sizes(found: Limits) -> Iterator[str]:
    yield f"# MaxArraySize {found.max_array_size}, MaxJobCount {found.max_job_count}: read live at every launch; longer arrays are cut"


def _yaml(text: str) -> str:
    """A scalar that is read as text whatever it looks like."""
    plain = re.fullmatch(r"[A-Za-z_][\w-]*", text) and text.lower() not in ("true", "false", "null", "yes", "no", "on", "off")
    return text if plain else "'" + text.replace("'", "''") + "'"


def _comment(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return _one_line(shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more")


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
