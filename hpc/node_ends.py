"""How the ranks of one node ended, and how the whole attempt did: the record that crosses from node to node, and pure judgement over it.

Who sends it and who waits for it is hpc.nodes' business. One invariant: a rank that fails because another is gone is never blamed
where something better is known.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hpc.ranks import Description, Outcome, describe, describe_failure
from seresnet.durable import parse_json, write_json_durably
from seresnet.exits import Exit
from seresnet.run_folder import RunFolder

#: What gloo, NCCL and the store say where a peer is gone (seen, but for NCCL's): the rank that says so explains nothing.
_BEREAVED = re.compile(r"Connection (closed|reset)|Broken pipe|gloo|NCCL|TCPStore|Store|Dist\w*Error|ranks came to")
_DECISIVE = (Exit.USER_ERROR, Exit.DIVERGED, Exit.GPU_OUT_OF_MEMORY, Exit.FENCED)


@dataclass(frozen=True, kw_only=True)
class NodeEnd:
    """How the ranks of one node ended: attempts/000003.node1.json."""

    node: int
    name: str  # as Slurm calls it
    first_rank: int
    statuses: tuple[int, ...]  # as subprocess gives them, from first_rank on
    was_killed: bool  # some did not leave in time
    culprit: int | None = None  # the rank that explains the others here
    ending: str | None = None  # what is to be said of it, or of a node that hangs; None if nothing failed of itself
    code: int = 0
    reason: str = ""

    def write(self, folder: RunFolder, generation: int) -> None:
        """Replace the record durably. Raises OSError."""
        write_json_durably(path_of(folder, generation, self.node), asdict(self))

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "NodeEnd":
        """From a message or a file; raises ValueError, KeyError or TypeError for what is neither."""
        known = {key.name: value[key.name] for key in fields(cls)}
        return cls(**{**known, "statuses": tuple(int(status) for status in known["statuses"]), "node": int(known["node"])})


def path_of(folder: RunFolder, generation: int, node: int) -> Path:
    return folder.attempts / f"{generation:06d}.node{node}.json"


def log_of(folder: RunFolder, node: int) -> Path:
    """Where the ranks of a node write. Not one file for all: appending from two machines garbles it on NFS."""
    return folder.log if node == 0 else folder.path / f"log-node{node}.txt"


def read(folder: RunFolder, generation: int, node: int) -> NodeEnd | None:
    """The record of a node, or None where there is none to be read."""
    try:
        return NodeEnd.of(parse_json(path_of(folder, generation, node).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def judge_node(folder: RunFolder, generation: int, outcome: Outcome, node: int, name: str) -> NodeEnd:
    """Judge the ranks of this node by themselves, here, where their files and logs are."""
    said: Description | None = None
    if outcome.hung is not None:
        said = describe(folder, generation, outcome)
    elif outcome.culprit is not None:
        status = outcome.statuses[outcome.culprit - outcome.first_rank]
        said = describe_failure(folder, generation, outcome.culprit, status, log_of(folder, node))
    end = NodeEnd(
        node=node, name=name, first_rank=outcome.first_rank, statuses=outcome.statuses, was_killed=outcome.was_killed_by_us,
        culprit=outcome.culprit,
    )  # fmt: skip
    return end if said is None else replace(end, ending=said.ending, code=int(said.code), reason=said.reason)


def combine(ends: Sequence[NodeEnd], lost: Sequence[str], stop_reason: str | None) -> Outcome:
    """The outcome of the whole attempt. ends: in the order in which nodes were seen to fail; lost: what is said of each without one."""
    statuses = tuple(status for end in sorted(ends, key=lambda end: end.first_rank) for status in end.statuses)
    was_told = stop_reason is not None or Exit.STOPPED in statuses
    failed = [end for end in ends if end.ending is not None and not (was_told and _evidence(end) >= 4)]
    worst = min(failed, key=_evidence, default=None)
    description = None
    if lost:  # the task is stopped by it, and what Slurm says of the job is the ending
        description = Description(ending="stopped", code=Exit.STOPPED, reason="; ".join(dict.fromkeys([*lost, *_all_said(failed)])))
    elif worst is not None:
        description = Description(ending=str(worst.ending), code=worst.code, reason=_said(worst))
    was_killed = any(end.was_killed for end in ends)
    return Outcome(statuses=statuses, culprit=None, stop_reason=stop_reason, was_killed_by_us=was_killed, description=description)


def _all_said(failed: Sequence[NodeEnd]) -> list[str]:
    return [_said(end) for end in failed if _evidence(end) < 3]


def _said(end: NodeEnd) -> str:
    place = f"node {end.node} ({end.name})"
    return f"{place if end.culprit is None else f'rank {end.culprit} on {place}'}: {end.reason}"


def _evidence(end: NodeEnd) -> int:
    """How little an end explains those of others: 0 says why by itself, 4 comes of a peer that is gone."""
    if end.code in _DECISIVE:
        return 0
    if end.culprit is None or end.code == Exit.WATCHDOG:
        return 3
    if end.statuses[end.culprit - end.first_rank] < 0:
        return 1
    return 4 if _BEREAVED.search(end.reason) else 2
