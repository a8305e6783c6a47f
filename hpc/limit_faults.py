"""Why what a site and its shapes ask for can never run here: one sentence a fault, with the place, the limit and the fix. Pure.

A task may start in any partition of the site's list, so a limit is broken only if all of them break it. One invariant: no fault without
a limit that Slurm itself named.
"""

from collections.abc import Iterator, Sequence

from hpc.cluster_text import Caps, Node, Partition
from hpc.limit_values import Limits
from hpc.shapes import TaskShape
from hpc.site_keys import Site
from hpc.site_rules import LEAST_TRAINING_S
from seresnet.strict_yaml import nearest

#: Exit codes of seresnet.exits that mean something to the supervisor; Slurm must not act on them, too.
OUR_CODES = range(75, 81)


def faults_of_site(limits: Limits, site: Site) -> list[str]:
    """What is wrong whatever the tasks are: names that do not exist, the walltime, how this cluster requeues."""
    return [*_requeue_exit(limits), *_arrays(limits), *_names(limits, site), *_access(limits, site), *_walltime(limits, site)]


def faults_of_task(limits: Limits, site: Site, shape: TaskShape) -> list[str]:
    """What one task of this shape asks for beyond what a job, a user or a node may have."""
    if site.max_gpus_per_node is not None and shape.gpus > site.max_gpus_per_node:
        key = _gpu_key(shape)
        most = f"{_place(site, 'max_gpus_per_node')}{site.max_gpus_per_node}"
        return [f"{key}: a task asks for {_count(shape.gpus, 'GPU')} on a node, over {most}. {_fix(key, is_node=True)}"]
    if not _names_are_known(limits, site):
        return []
    found = [_task_in(limits, site, shape, partition) for partition in limits.partitions_of(site) or (None,)]
    # Some partition can run it: nothing is wrong.
    return [] if any(not broken for broken in found) else max(found, key=lambda broken: -len(broken))


def _requeue_exit(limits: Limits) -> Iterator[str]:
    if ours := sorted((limits.requeue_exit or frozenset()) & {*OUR_CODES}):
        listed = ", ".join(map(str, ours))
        yield (
            f"cluster {limits.cluster}: RequeueExit or RequeueExitHold lists {listed}, so Slurm itself would bring back or hold tasks that "
            f"end on purpose. Ask its administrators to leave out {OUR_CODES[0]}-{OUR_CODES[-1]}, or train with --local."
        )


def _arrays(limits: Limits) -> Iterator[str]:
    if limits.max_array_size is not None and limits.max_array_size < 2:
        yield f"cluster {limits.cluster}: MaxArraySize is {limits.max_array_size}, so it takes no arrays. Train with --local."


# --- names ---


def _names(limits: Limits, site: Site) -> Iterator[str]:
    known = [*(limits.partitions or ())]
    for name in site.partitions:
        if known and name not in known:
            yield _unknown(_place(site, "partition"), name, known, "partition of this cluster")
    if site.qos and limits.qos and site.qos not in limits.qos and limits.enforces("qos"):
        yield _unknown(_place(site, "qos"), site.qos, [*limits.qos], "QOS of this cluster")
    accounts, charged = sorted({row.account for row in limits.associations or ()}), site.charged_account
    if charged and accounts and charged not in accounts and limits.enforces("associations"):
        key = next((f"partition_accounts.{name}" for name, account in site.partition_accounts.items() if account == charged), "account")
        yield _unknown(_place(site, key), charged, accounts, "account of yours")


def _unknown(place: str, name: str, known: Sequence[str], what: str) -> str:
    near = nearest(name, known)
    return f"{place}{name!r} is no {what}. {f'Did you mean {near}? ' if near else ''}There {_are(known)}."


def _are(names: Sequence[str]) -> str:
    return f"is {names[0]}" if len(names) == 1 else f"are {', '.join(names)}"


def _names_are_known(limits: Limits, site: Site) -> bool:
    return not [*_names(limits, site)]


def _access(limits: Limits, site: Site) -> Iterator[str]:
    """Partitions that are closed to the account or QOS; every one that is named must be open, or sbatch refuses the list."""
    for entry in limits.partitions_of(site):
        for key, name, allowed, denied, plural in (
            ("account", site.charged_account, entry.allow_accounts, entry.deny_accounts, "accounts"),
            ("qos", site.qos, entry.allow_qos, entry.deny_qos, "QOS"),
        ):
            if name and allowed is not None and name not in allowed:
                there = ", ".join(sorted(allowed))
                fix = f"Use one of {there}, or another partition."
                yield f"{_place(site, key)}partition {entry.name} is open to the {plural} {there} and not to {name}. {fix}"
            elif name and name in denied:
                yield f"{_place(site, key)}partition {entry.name} is closed to {name}. Use another one, or another partition."
    charged = limits.association_of(site)
    if site.qos and charged and charged.qos and site.qos not in charged.qos and limits.enforces("qos") and site.qos in (limits.qos or {}):
        known = sorted(charged.qos)
        yield f"{_place(site, 'qos')}account {charged.account} may not use {site.qos}. Use {' or '.join(known)}, or another account."


# --- walltime ---


def _walltime(limits: Limits, site: Site) -> Iterator[str]:
    if not _names_are_known(limits, site):
        return
    found = [_most_minutes(limits, site, partition) for partition in limits.partitions_of(site) or (None,)]
    if not found or any(most is None or most[0] >= site.walltime_min for most in found):
        return
    most, who = max((entry for entry in found if entry is not None), key=lambda entry: entry[0])
    least = -(-(site.signal_delay_s + LEAST_TRAINING_S) // 60)
    fix = f"Use {most} or less." if most >= least else "That leaves no time to train: use another QOS or partition."
    yield f"{_place(site, 'walltime_min')}{site.walltime_min} is over this site's limit of {most} for {who}. {fix}"


def _most_minutes(limits: Limits, site: Site, partition: Partition | None) -> tuple[int, str] | None:
    found = []
    if capped := limits.first(site, partition, lambda caps: caps.max_wall_min):
        found.append((capped[0], capped[1].name))
    is_lifted = any("PartitionTimeLimit" in caps.flags for caps in limits.caps_of(site, partition))
    if partition and partition.max_time_min is not None and not is_lifted:
        found.append((partition.max_time_min, f"partition {partition.name}"))
    return min(found) if found else None


# --- what a task asks for ---


def _task_in(limits: Limits, site: Site, shape: TaskShape, partition: Partition | None) -> list[str]:
    """What is wrong with a task in one partition; None for the one that a plugin of the site will choose."""
    if partition and partition.max_nodes is not None and shape.nodes > partition.max_nodes:
        limit = f"partition {partition.name} gives a job {_count(partition.max_nodes, 'node')} at most"
        return [f"train.nodes: a task asks for {_count(shape.nodes, 'node')}, and {limit}. Use fewer."]
    return [*_over_caps(limits, site, shape, partition), *_over_nodes(limits, site, shape, partition)]


def _demand(site: Site, shape: TaskShape) -> dict[str, tuple[int, str]]:
    """What one node of a task is asked for: TRES -> (how many, the key that asks)."""
    asked = {"cpu": (site.cpus_per_rank * shape.processes, "site.cpus_per_rank")}
    if shape.gpus and site.gpu_request != "none":
        asked["gres/gpu"] = (shape.gpus, _gpu_key(shape))
        if site.gpu_type:
            asked[f"gres/gpu:{site.gpu_type}"] = (shape.gpus, _gpu_key(shape))
    if site.mem_gb_per_rank:
        asked["mem"] = (site.mem_gb_per_rank * 1024 * shape.processes, "site.mem_gb_per_rank")
    return asked


def _gpu_key(shape: TaskShape) -> str:
    return "pack.gpus_per_task" if shape.at_a_time > 1 else "train.ranks"


def _over_caps(limits: Limits, site: Site, shape: TaskShape, partition: Partition | None) -> Iterator[str]:
    demand = {**_demand(site, shape), "node": (1, "train.nodes")}
    for name, (each, key) in demand.items():
        whole = each * shape.nodes
        for asked, limit, pick in (
            (whole, "MaxTRES", lambda caps: caps.max_tres.get(name)),  # noqa: B023
            (each, "MaxTRESPerNode", lambda caps: caps.max_tres_node.get(name)),  # noqa: B023
            (whole, "MaxTRESPerUser", lambda caps: caps.max_tres_user.get(name)),  # noqa: B023
            (whole, "GrpTRES", lambda caps: caps.grp_tres.get(name)),  # noqa: B023
        ):
            found: tuple[int, Caps] | None = limits.first(site, partition, pick)
            if found and asked > found[0]:
                asks = f"a task asks for {_amount(name, asked)}{' on a node' if limit == 'MaxTRESPerNode' else ''}"
                fix = _fix(key, is_node=limit == "MaxTRESPerNode")
                yield f"{_where(site, key)}{asks}, and {limit} of {found[1].name} is {_amount(name, found[0])}. {fix}"
                break


def _over_nodes(limits: Limits, site: Site, shape: TaskShape, partition: Partition | None) -> Iterator[str]:
    """A task that no node is large enough for. Constraints that are more than words, | and & are not judged."""
    nodes = [node for node in limits.nodes or () if partition is None or partition.name in node.partitions]
    if not nodes:
        return
    where = f"no node of partition {partition.name}" if partition else "no node of this cluster"
    wanted = alternatives(site.constraint)
    if wanted is not None:
        fitting = [node for node in nodes if any(words <= node.features for words in wanted)]
        if not fitting:
            known = sorted({word for node in nodes for word in node.features})
            near = nearest(str(site.constraint), known)
            meant = f"Did you mean {near}? " if near else ""
            there = f"{meant}Features: {', '.join(known)}." if known else "Nodes have no features here: leave the constraint out."
            yield f"{_place(site, 'constraint')}{where} has {site.constraint}. {there}"
            return
        nodes, where = fitting, f"{where} with {site.constraint}"
    types = sorted({kind for node in nodes for kind in node.gpus if kind})
    demand = _demand(site, shape)
    if site.gpu_type and f"gres/gpu:{site.gpu_type}" in demand and site.gpu_type not in types:
        near = nearest(site.gpu_type, types)
        there = f"Types: {', '.join(types)}." if types else "GPUs have no types here: leave it out."
        yield f"{_place(site, 'gpu_type')}{where} has a GPU of type {site.gpu_type}. {f'Did you mean {near}? ' if near else ''}{there}"
        del demand[f"gres/gpu:{site.gpu_type}"]
    for name, (asked, key) in demand.items():
        most = max((_of_node(node, name, partition) for node in nodes), default=None)
        if most is not None and asked > most:
            has = f"{where} has more than {_amount(name, most)}" if most else f"{where} has any"
            yield f"{_where(site, key)}a task asks for {_amount(name, asked)} on a node, and {has}. {_fix(key, is_node=True)}"


def alternatives(constraint: str | None) -> list[frozenset[str]] | None:
    """`a|b&c` as the sets of features of which a node must have one; None for what is written otherwise, or for none."""
    if not constraint or any(letter in constraint for letter in "[]()*:"):
        return None
    return [frozenset(part.replace(",", "&").split("&")) for part in constraint.split("|")]


def _of_node(node: Node, name: str, partition: Partition | None) -> float:
    if name == "cpu":
        return node.cpus if node.cpus is not None else float("inf")
    if name == "mem":
        mem = node.mem_mb if node.mem_mb is not None else float("inf")
        return min(mem, partition.max_mem_mb) if partition and partition.max_mem_mb else mem
    if name == "gres/gpu":
        return sum(node.gpus.values())
    return node.gpus.get(name.removeprefix("gres/gpu:"), 0)


# --- words ---


def _place(site: Site, key: str) -> str:
    return f"{site.place(key)}: site.{key}: "


def _where(site: Site, key: str) -> str:
    return _place(site, key.removeprefix("site.")) if key.startswith("site.") else f"{key}: "


def _fix(key: str, *, is_node: bool) -> str:
    if key.startswith("site."):
        return "Use less, or fewer ranks in a task."
    if key == "train.ranks" and is_node:
        return "Use fewer ranks, spread them with train.nodes, or choose another partition."
    what = {"train.ranks": "ranks", "train.nodes": "nodes"}.get(key, "GPUs")
    return f"Use fewer {what}, or choose another {'partition' if is_node else 'QOS or partition'}."


def _amount(name: str, number: float) -> str:
    if name == "mem":
        return f"{number / 1024:.0f} GB of memory" if number % 1024 == 0 else f"{number:.0f} MB of memory"
    if name.startswith("gres/gpu:"):
        return f"{_count(int(number), name.removeprefix('gres/gpu:') + ' GPU')}"
    return _count(int(number), {"cpu": "CPU", "gres/gpu": "GPU", "node": "node"}[name])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
