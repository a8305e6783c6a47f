"""The records of a run's attempts: who claimed it, and how each attempt ended. Files in attempts/, read and written here only.

Who may claim is claims.py's job. One invariant: a claim is never rewritten, and an end that its owner wrote is never replaced by
one that somebody else inferred.
"""

import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from seresnet.durable import DISK, Files, json_bytes, parse_json, publish, remove, write_json_durably, write_new
from seresnet.record_types import misfits
from seresnet.run_folder import RunFolder

log = logging.getLogger(__name__)

SCHEMA = 1
_PID_LIMIT, _TIME_LIMIT = 2**31, 2**37  # seconds: the year 6325
_CLAIM_TEMP = re.compile(r"\.([0-9]{6,})\.json\.[0-9a-f]+\.tmp")


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that claims a run, with all that others need to tell whether it still lives. None = unknown."""

    host: str
    pid: int
    boot_id: str | None = None
    pid_namespace: str | None = None
    process_started: str | None = None  # tells a process from a later one with the same pid
    cluster: str | None = None
    raw_job_id: str | None = None  # SLURM_JOB_ID: one per array task, kept by a requeue
    array_job_id: str | None = None  # "123_4", as users know it
    restart_count: int = 0
    task_try: int = 0  # counts up when one task starts the same run again
    started: float = 0.0  # unix time, for people
    facts: dict[str, Any] = field(default_factory=dict)  # code digest, versions, ...: kept, never judged

    def __str__(self) -> str:
        job = f", job {self.array_job_id or self.raw_job_id}" if self.raw_job_id else ""
        cluster = f" of cluster {self.cluster}" if self.raw_job_id and self.cluster else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.started))
        return f"process {self.pid} on {self.host}{job}{cluster}, since {since}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One attempt's right to write, fenced by its generation."""

    generation: int
    owner: Owner | None  # None: the file is torn (a file system without links, a power loss)
    base: str | None  # file name of the checkpoint it starts from; None = from the beginning


@dataclass(frozen=True, kw_only=True)
class End:
    """How an attempt ended, in the words of seresnet.exits."""

    generation: int
    ending: str
    reason: str | None = None
    inferred: bool = False  # by the next claimant, not by the owner's side
    facts: dict[str, Any] = field(default_factory=dict)


def newest_generation(folder: RunFolder, files: Files = DISK) -> int:
    """The highest claimed generation; 0 before the first claim. Costs one listing."""
    return max(generations(folder, files), default=0)


def generations(folder: RunFolder, files: Files = DISK) -> list[int]:
    """Every claimed generation, lowest first. Costs one listing."""
    stems = (name.removesuffix(".json") for name in files.names(folder.attempts) if name.endswith(".json"))
    numbers = (int(stem) for stem in stems if stem.isascii() and stem.isdigit() and f"{int(stem):06d}" == stem)
    return sorted(numbers)


def read_claims(folder: RunFolder, files: Files = DISK) -> list[Claim]:
    """Every claim, lowest generation first."""
    return [read_claim(folder, generation, files) for generation in generations(folder, files)]


def newest_claim(folder: RunFolder, files: Files = DISK) -> Claim | None:
    """The claim that counts; None before the first."""
    generation = newest_generation(folder, files)
    return read_claim(folder, generation, files) if generation else None


def read_owner(folder: RunFolder, generation: int, files: Files = DISK) -> Owner | None:
    """Who made this claim; None if there is no such claim or it is torn."""
    return read_claim(folder, generation, files).owner


def read_claim(folder: RunFolder, generation: int, files: Files = DISK) -> Claim:
    """One claim; its owner is None if there is no such file or it is torn."""
    value = _read_json(folder.claim(generation), files)
    base = value.get("base")
    return Claim(generation=generation, owner=_owner(value.get("owner")), base=base if isinstance(base, str) else None)


def publish_claim(folder: RunFolder, claim: Claim, files: Files = DISK) -> bool:
    """Take the claim's generation, durably. False: somebody else has it. Raises OSError."""
    assert claim.owner is not None, "a claim is made by somebody"
    value = {"schema": SCHEMA, "generation": claim.generation, "base": claim.base, "owner": asdict(claim.owner)}
    return _publish(folder.claim(claim.generation), json_bytes(value), files)


def write_end(folder: RunFolder, generation: int, ending: str, files: Files = DISK, **facts: Any) -> None:
    """Record how an attempt ended, by its own side; replaces an inferred record. reason= is shown to users. Raises OSError."""
    write_json_durably(folder.end(generation), _end_record(generation, ending, facts), files)


def write_inferred_end(folder: RunFolder, generation: int, ending: str, files: Files = DISK, **facts: Any) -> None:
    """Record what a later claimant can tell, unless there is a record already. Raises OSError."""
    _publish(folder.end(generation), json_bytes(_end_record(generation, ending, {**facts, "inferred": True})), files)


def read_end(folder: RunFolder, generation: int, files: Files = DISK) -> End | None:
    """How an attempt ended; None while it has not, or if the record cannot be read."""
    value = _read_json(folder.end(generation), files)
    ending = value.pop("ending", None)
    if not isinstance(ending, str):
        return None
    reason, inferred = value.pop("reason", None), bool(value.pop("inferred", False))
    facts = {key: fact for key, fact in value.items() if key not in ("schema", "generation")}
    reason = reason if isinstance(reason, str) or reason is None else json.dumps(reason)
    return End(generation=generation, ending=ending, reason=reason, inferred=inferred, facts=facts)


def read_rank_exit(folder: RunFolder, generation: int, rank: int = 0, files: Files = DISK) -> dict[str, Any]:
    """What a rank wrote before it exited; empty if it did not get to it."""
    return _read_json(folder.rank_exit(generation, rank), files)


def delete_leftover_temps(folder: RunFolder, generation: int, files: Files = DISK) -> None:
    """Remove temp files of claims below this generation: their makers have lost, or are fenced by it."""
    for name in files.names(folder.attempts):
        temp = _CLAIM_TEMP.fullmatch(name)
        if temp is not None and int(temp[1]) < generation:
            remove(folder.attempts / name, files)


def _publish(path: Path, payload: bytes, files: Files) -> bool:
    """Create a file that is complete when it appears, unless the name is taken."""
    won = publish(path, payload, files)
    if won is None:
        won = _create(path, payload, files)
    if won:
        _sync_if_possible(path.parent, files)
    return won


def _sync_if_possible(folder: Path, files: Files) -> None:
    # The name is ours already. If a power loss takes it back, its owner is gone too, and checkpoints keep its number taken.
    try:
        files.sync_folder(folder)
    except OSError as error:
        log.warning("folder_not_synced folder=%s error=%s", folder.name, error)


def _create(path: Path, payload: bytes, files: Files) -> bool:
    # Readers may see it half written: then the owner is unknown, which only the standing beat can prove gone.
    try:
        write_new(path, payload, files)
    except FileExistsError:
        return False
    except OSError:
        remove(path, files)
        raise
    return True


def _owner(value: Any) -> Owner | None:
    if not isinstance(value, Mapping):
        return None
    known = {key.name: value[key.name] for key in fields(Owner) if key.name in value}
    if "host" not in known or "pid" not in known:
        return None
    owner = Owner(**known)
    # A record of somebody else's making is as good as a torn one: what it says of pids and jobs must not be compared.
    is_sane = not misfits(owner) and 0 < owner.pid < _PID_LIMIT and abs(owner.started) < _TIME_LIMIT
    return owner if is_sane else None


def _end_record(generation: int, ending: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"time": time.time(), **facts, "schema": SCHEMA, "generation": generation, "ending": ending}


def _read_json(path: Path, files: Files) -> dict[str, Any]:
    try:
        value = parse_json(files.read(path))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
