"""What a cluster said of itself, as one value, and which of its limits meet a site's jobs. hpc.limits asks, hpc.limit_faults judges.

Slurm takes each limit from the first that sets it: the partition's QOS, the job's QOS, the association. One invariant: where it is not
known which partition, QOS or account a job will get, that one's limits are left out.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from hpc.cluster_text import Association, Caps, Node, Partition
from hpc.site_keys import Site

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Room:
    """One limit on how many jobs and array tasks may be in the queue, and how many are."""

    name: str  # "MaxSubmit of QOS gpu48"
    limit: int
    queued: int

    @property
    def left(self) -> int:
        return max(0, self.limit - self.queued)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The live limits that meet a site's jobs; None where Slurm did not say."""

    cluster: str | None = None
    version: str | None = None
    max_array_size: int | None = None  # the highest index is one less
    max_array_tasks: int | None = None
    max_job_count: int | None = None
    requeue_exit: frozenset[int] | None = None  # codes that Slurm itself requeues or holds
    preempt_mode: str | None = None
    enforced: frozenset[str] | None = None  # AccountingStorageEnforce
    is_routed: bool | None = None  # a plugin of the site may change what a job asks for
    partitions: Mapping[str, Partition] | None = None
    nodes: tuple[Node, ...] | None = None
    qos: Mapping[str, Caps] | None = None
    associations: tuple[Association, ...] | None = None
    rooms: tuple[Room, ...] = ()

    def enforces(self, *words: str) -> bool:
        """Whether the cluster refuses what its accounting does not allow, in one of these ways; `limits` includes `associations`."""
        found = self.enforced or frozenset()
        implied = {"associations"} if found & {"limits", "qos", "safe"} else set()
        return bool((found | implied | ({"limits"} if "safe" in found else set())) & {*words, "all"})

    def partitions_of(self, site: Site) -> tuple[Partition, ...]:
        """Those that the site's jobs can go to; none if that is not known."""
        known = self.partitions or {}
        if site.partitions:
            return tuple(known[name] for name in site.partitions if name in known)
        return () if self.is_routed is not False else tuple(entry for entry in known.values() if entry.is_default)

    def association_of(self, site: Site) -> Association | None:
        """The one that is charged; None if that is not known."""
        rows = [row for row in self.associations or () if row.partition is None or row.partition in site.partitions]
        rows = [row for row in rows if row.account == site.charged_account] if site.charged_account else rows
        return rows[0] if len({row.account for row in rows}) == 1 else None

    def qos_of(self, site: Site) -> Caps | None:
        """The job's own QOS; None if that is not known."""
        known, charged = self.qos or {}, self.association_of(site)
        if site.qos:
            return known.get(site.qos)
        if self.is_routed is not False:
            return None
        return known.get((charged.default_qos if charged else None) or "normal")

    def caps_of(self, site: Site, partition: Partition | None) -> Iterator[Caps]:
        """In the order in which Slurm looks: the first that sets a limit counts. Nothing where limits are not enforced."""
        if not self.enforces("limits"):
            return
        of_partition = (self.qos or {}).get(partition.qos or "") if partition else None
        of_job, charged = self.qos_of(site), self.association_of(site)
        over = of_job is not None and "OverPartQOS" in of_job.flags
        for caps in (of_job, of_partition) if over else (of_partition, of_job):
            if caps is not None:
                yield caps
        if charged is not None:
            yield charged.caps

    def first(self, site: Site, partition: Partition | None, limit: Callable[[Caps], T | None]) -> tuple[T, Caps] | None:
        """The limit that counts and who sets it; None if nobody does."""
        for caps in self.caps_of(site, partition):
            value = limit(caps)
            if value is not None:
                return value, caps
        return None
