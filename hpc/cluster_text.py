"""What Slurm's clients print about a cluster, as values: configuration, partitions, nodes, QOS and associations. Pure functions over text.

Tables are read by the names in their header and records by `Key=value`, because Slurm adds and drops fields from release to release.
One invariant: what is missing, unlimited or not understood is None, never a number.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_PROMPT = re.compile(r"^(?:(?:scontrol|sacctmgr): )+", re.MULTILINE)
_NO_LIMIT = ("", "UNLIMITED", "INFINITE", "(null)", "N/A", "NONE", "-1", "4294967295", "4294967294")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One record of `scontrol show partition`. allow_*: None = everybody."""

    name: str
    is_default: bool = False
    max_time_min: int | None = None
    max_nodes: int | None = None
    max_mem_mb: int | None = None
    allow_accounts: frozenset[str] | None = None
    deny_accounts: frozenset[str] = frozenset()
    allow_qos: frozenset[str] | None = None
    deny_qos: frozenset[str] = frozenset()
    qos: str | None = None
    preempt_mode: str | None = None
    grace_s: int | None = None


@dataclass(frozen=True, kw_only=True)
class Node:
    """One record of `scontrol show node`; gpus by type, "" where the site names none."""

    name: str
    partitions: tuple[str, ...] = ()
    cpus: int | None = None
    mem_mb: int | None = None
    features: frozenset[str] = frozenset()
    gpus: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Caps:
    """What one QOS or one association allows. tres: "gres/gpu" -> count, memory in MB; "" -> {} where there is no limit."""

    name: str  # "QOS gpu48", "account lab"
    flags: frozenset[str] = frozenset()
    max_wall_min: int | None = None
    max_submit: int | None = None  # jobs and array tasks of one user, pending and running
    max_submit_account: int | None = None
    grp_submit: int | None = None
    max_jobs: int | None = None  # of one user, running
    max_tres: Mapping[str, int] = field(default_factory=dict)  # of one job
    max_tres_node: Mapping[str, int] = field(default_factory=dict)
    max_tres_user: Mapping[str, int] = field(default_factory=dict)
    grp_tres: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Association:
    """A user's right to charge an account; qos: the names it may use."""

    account: str
    partition: str | None
    default_qos: str | None
    qos: frozenset[str]
    caps: Caps


def parse_config(text: str) -> dict[str, str]:
    """The lines `Key = value` of `scontrol show config`; keys that hold (null) are left out."""
    found = re.findall(r"^(\w+)(?:\[\d+\])? *= *(.*?) *$", _PROMPT.sub("", text), re.MULTILINE)
    return {key: value for key, value in found if value not in ("(null)", "")}


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """Every record of `scontrol show partition`, on one line each or not."""
    return tuple(_partition(fields) for fields in _records(text, "PartitionName"))


def parse_nodes(text: str) -> tuple[Node, ...]:
    """Every record of `scontrol show node`."""
    return tuple(_node(fields) for fields in _records(text, "NodeName"))


def parse_qos(text: str) -> dict[str, Caps]:
    """The table of `sacctmgr --parsable2 show qos`, by name."""
    return {row["Name"]: _caps(row, f"QOS {row['Name']}", "PU") for row in _table(text, "Name") if row["Name"]}


def parse_associations(text: str, cluster: str | None) -> tuple[Association, ...]:
    """The table of `sacctmgr --parsable2 show assoc`, of one cluster, users' rows only."""
    rows = [row for row in _table(text, "Cluster") if row.get("User") and (cluster is None or row["Cluster"] == cluster)]
    return tuple(
        Association(
            account=row["Account"],
            partition=row.get("Partition") or None,
            default_qos=row.get("Def QOS") or row.get("DefaultQOS") or None,
            qos=frozenset(filter(None, row.get("QOS", "").split(","))),
            caps=_caps(row, f"account {row['Account']}", ""),
        )
        for row in rows
    )


def minutes(text: str | None) -> int | None:
    """`2-00:00:00`, `04:00:00`, `30:00` or `90` as whole minutes; None for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", (text or "").strip())
    if found is None or text in _NO_LIMIT:
        return None
    days, first, second = (int(part) if part else 0 for part in found.groups()[:3])
    # Without days and with one colon at most it is MM:SS or plain minutes.
    return days * 1440 + first * 60 + second if found[1] or found[4] else first


def tres(text: str | None) -> dict[str, int]:
    """`cpu=8,mem=16G,gres/gpu=4` as counts, memory in MB; what has no number is left out."""
    found = {}
    for name, number, unit in re.findall(r"([\w/:.-]+)=(\d+(?:\.\d+)?)([KMGTP]?)", text or ""):
        factor = {"K": 1 / 1024, "G": 1024, "T": 1024**2, "P": 1024**3}.get(unit, 1) if name == "mem" else 1
        found[name] = int(float(number) * factor)
    return found


def codes(text: str | None) -> frozenset[int]:
    """`75,80-82` of RequeueExit as numbers."""
    spans = re.findall(r"(\d+)(?:-(\d+))?", text or "")
    return frozenset(code for first, last in spans for code in range(int(first), int(last or first) + 1))


def gpus(text: str | None) -> dict[str, int]:
    """`gpu:h100:4(S:0-1),gpu:2,nvme:1` as a count by type, "" for GPUs without one."""
    found: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)(?:gres/)?gpu(?::([A-Za-z][\w.-]*))?[:=](\d+)", re.sub(r"\([^)]*\)", "", text or "")):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def _records(text: str, first: str) -> Iterator[dict[str, str]]:
    plain = _PROMPT.sub("", text)
    for record in re.split(rf"^(?={first}=)", plain, flags=re.MULTILINE):
        if record.startswith(f"{first}="):
            # A blank line ends a record: what follows belongs to another question.
            whole = record.split("\n\n")[0]
            # The first of each name counts: what an administrator writes freely (Reason, Comment) comes last.
            yield dict(reversed(re.findall(r"(?:^|\s)(\w+)=(\S*)", whole)))


def _table(text: str, first: str) -> Iterator[dict[str, str]]:
    header: list[str] = []
    for line in _PROMPT.sub("", text).splitlines():
        cells = line.split("|")
        if cells[0] in ("Name", "Cluster") and len(cells) > 1:
            header = cells if cells[0] == first else []
        elif header and len(cells) >= len(header):
            yield dict(zip(header, cells, strict=False))


def _partition(fields: Mapping[str, str]) -> Partition:
    return Partition(
        name=fields["PartitionName"],
        is_default=fields.get("Default") == "YES",
        max_time_min=minutes(fields.get("MaxTime")),
        max_nodes=_number(fields.get("MaxNodes")),
        max_mem_mb=_number(fields.get("MaxMemPerNode")),
        allow_accounts=_names(fields.get("AllowAccounts")),
        deny_accounts=_names(fields.get("DenyAccounts")) or frozenset(),
        allow_qos=_names(fields.get("AllowQos")),
        deny_qos=_names(fields.get("DenyQos")) or frozenset(),
        qos=fields.get("QoS") if fields.get("QoS") not in _NO_LIMIT else None,
        preempt_mode=fields.get("PreemptMode"),
        grace_s=_number(fields.get("GraceTime")),
    )


def _node(fields: Mapping[str, str]) -> Node:
    return Node(
        name=fields["NodeName"],
        partitions=tuple(filter(None, fields.get("Partitions", "").split(","))),
        cpus=_number(fields.get("CPUEfctv")) or _number(fields.get("CPUTot")),
        mem_mb=_number(fields.get("RealMemory")),
        features=_names(fields.get("AvailableFeatures")) or _names(fields.get("Features")) or frozenset(),
        gpus=gpus(fields.get("Gres")),
    )


def _caps(row: Mapping[str, str], name: str, one_user: str) -> Caps:
    """one_user: how the columns for one user's jobs end in this table."""
    return Caps(
        name=name,
        flags=frozenset(filter(None, row.get("Flags", "").split(","))),
        max_wall_min=minutes(row.get("MaxWall")),
        max_submit=_number(row.get(f"MaxSubmit{one_user}")),
        max_submit_account=_number(row.get("MaxSubmitPA")),
        grp_submit=_number(row.get("GrpSubmit")),
        max_jobs=_number(row.get(f"MaxJobs{one_user}")),
        max_tres=tres(row.get("MaxTRES")),
        max_tres_node=tres(row.get("MaxTRESPerNode")),
        max_tres_user=tres(row.get("MaxTRESPU")),
        grp_tres=tres(row.get("GrpTRES")),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text not in _NO_LIMIT and text.isdigit() else None


def _names(text: str | None) -> frozenset[str] | None:
    return None if text is None or text in ("ALL", *_NO_LIMIT) else frozenset(filter(None, text.split(",")))
