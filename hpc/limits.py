"""What this cluster allows now, and whether what is asked for can ever run: asked of Slurm before anything is written.

Three calls, each with a time limit; hpc.cluster_text reads the answers. What is not answered is None and refuses nothing: sacctmgr is
missing on some sites, and a site's job-submit plugin may choose what we do not name. One invariant: a fault names the limit and the fix.
"""

import os
import pwd
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from hpc import cluster_text, slurm
from hpc.limit_faults import faults_of_site, faults_of_task
from hpc.limit_values import Limits, Room
from hpc.shapes import TaskShape
from hpc.site_keys import Site

__all__ = ["Limits", "Room", "array_sizes", "faults", "live_limits", "read_limits", "room", "room_text"]

#: sacctmgr asks a database that may be down, and then waits for it.
TIMEOUT_S = 10.0


def live_limits(site: Site) -> Limits:
    """Ask the cluster: at most three calls, side by side, and TIMEOUT_S together. Never raises for what Slurm answers."""
    user = _user()
    with ThreadPoolExecutor(max_workers=3) as calls:
        about = calls.submit(_ask, "show config\nshow partition\nshow node\n", "scontrol")
        # Through sacctmgr's own user filter, which knows the limits that an account hands down.
        accounting = calls.submit(_ask, f"show qos\nshow assoc where user={user}\n", "sacctmgr", "--parsable2", "--readonly")
        queue = calls.submit(_ask, None, "squeue", "--noheader", "--array", "--format=%u|%a|%q|%P")
    return read_limits(site, user, about.result() or "", accounting.result(), queue.result())


def read_limits(site: Site, user: str, about: str, accounting: str | None, queue: str | None) -> Limits:
    """The limits in what was answered; accounting and queue are None where nobody answered."""
    config = cluster_text.parse_config(about)
    partitions, nodes = cluster_text.parse_partitions(about), cluster_text.parse_nodes(about)
    enforced = config.get("AccountingStorageEnforce")
    limits = Limits(
        cluster=config.get("ClusterName"),
        version=config.get("SLURM_VERSION"),
        max_array_size=_number(config.get("MaxArraySize")),
        max_array_tasks=_number(_word(config.get("SchedulerParameters"), "max_array_tasks")),
        max_job_count=_number(config.get("MaxJobCount")),
        requeue_exit=_requeued(config) if config else None,
        preempt_mode=config.get("PreemptMode"),
        enforced=frozenset(enforced.split(",")) if enforced else None,
        is_routed="JobSubmitPlugins" in config if config else None,
        partitions={entry.name: entry for entry in partitions} or None,
        nodes=nodes or None,
        qos=cluster_text.parse_qos(accounting or "") or None,
        associations=cluster_text.parse_associations(accounting or "", config.get("ClusterName")) or None,
    )
    return _with_rooms(limits, site, user, queue)


def faults(limits: Limits, site: Site, tasks: Sequence[tuple[TaskShape, int]]) -> list[str]:
    """Why these tasks can never run here, a sentence each with the limit and the fix; tasks are (shape, how many)."""
    found = faults_of_site(limits, site)
    for shape, _ in tasks:
        found += faults_of_task(limits, site, shape)
    return list(dict.fromkeys(found))


def array_sizes(limits: Limits, tasks: int) -> list[int]:
    """How many tasks each array takes, in order. MaxArraySize is one above the highest index, so an array of that many is legal."""
    known = [size for size in (limits.max_array_size, limits.max_array_tasks) if size]
    # A submit limit counts the tasks of an array: a larger array could never be accepted, however empty the queue is.
    known += [entry.limit for entry in limits.rooms if entry.limit]
    most = min([tasks, *known])
    return [min(most, tasks - first) for first in range(0, tasks, most)] if tasks else []


def room(limits: Limits) -> int | None:
    """How many more jobs and array tasks may be submitted now; None if nobody says."""
    return min((entry.left for entry in limits.rooms), default=None)


def room_text(limits: Limits) -> str | None:
    """Which limit leaves the least room, for a message: "MaxSubmit of QOS gpu48 is 100 and 96 are queued"."""
    tight = min(limits.rooms, key=lambda entry: entry.left, default=None)
    return f"{tight.name} is {tight.limit} and {tight.queued} are queued" if tight else None


def _ask(questions: str | None, *command: str) -> str | None:
    reply = slurm.call(*command, timeout_s=TIMEOUT_S, asked=questions)
    # A client that reads several questions answers some and exits with the last one's status.
    return reply.stdout if reply.succeeded or (questions is not None and reply.returncode is not None) else None


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("USER", "")


def _requeued(config: dict[str, str]) -> frozenset[int]:
    return cluster_text.codes(config.get("RequeueExit")) | cluster_text.codes(config.get("RequeueExitHold"))


def _word(text: str | None, name: str) -> str | None:
    return next((word.partition("=")[2] for word in (text or "").split(",") if word.startswith(f"{name}=")), None)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _with_rooms(limits: Limits, site: Site, user: str, queue: str | None) -> Limits:
    # Without an answer the queue counts as empty: a guess that never refuses what might fit.
    rows = [row for row in (line.strip().split("|") for line in (queue or "").splitlines()) if len(row) == 4]
    return replace(limits, rooms=tuple(dict.fromkeys(_rooms(limits, site, user, rows))))


def _rooms(limits: Limits, site: Site, user: str, rows: list[list[str]]) -> Iterator[Room]:
    """Every limit on what may be queued; rows are (user, account, QOS, partition) of each job and array task."""
    if limits.max_job_count is not None:
        # Tasks of arrays count one by one (seen: an array of 50 was refused at 30).
        yield Room(name="MaxJobCount of this cluster", limit=limits.max_job_count, queued=len(rows))
    for partition in limits.partitions_of(site) or (None,):
        for name, pick, scope in (
            ("MaxSubmit", lambda caps: caps.max_submit, lambda row: row[0] == user),
            ("MaxSubmitPA", lambda caps: caps.max_submit_account, lambda row: row[1] == site.charged_account),
            ("GrpSubmit", lambda caps: caps.grp_submit, lambda row: True),
        ):
            if found := limits.first(site, partition, pick):
                limit, caps = found
                same = [row for row in rows if scope(row) and caps.name in (f"QOS {row[2]}", f"account {row[1]}")]
                yield Room(name=f"{name} of {caps.name}", limit=limit, queued=len(same))
