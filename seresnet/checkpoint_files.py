"""The checkpoint files of a run without torch: which exist, which can be trusted, where to start from, which may go.

Writing and parsing tensors is checkpoint_writer.py's job. One invariant: no byte of a file is interpreted before the SHA-256 of all of
them agrees with the file's name.
"""

import errno
import hashlib
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from seresnet import cleaned, migrations
from seresnet.attempts import Claim, newest_generation, read_claims
from seresnet.durable import DISK, Files, canonical_json, parse_json, remove
from seresnet.errors import CheckpointError, ConfigError
from seresnet.record_types import misfits
from seresnet.run_folder import CheckpointName, Parent, RunFolder, RunRecord

log = logging.getLogger(__name__)

SCHEMA = migrations.CURRENT["checkpoint"]
#: How many of the last steps retention keeps, so that as many damaged files in a row lose nothing but time.
KEPT_STEPS = 3
#: The one metadata entry of the safetensors file. One, because the library writes several in random order (seen).
METADATA_KEY = "seresnet"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a checkpoint says about itself besides the state. No part of the state's digest."""

    generation: int
    step: int
    epoch_boundary: bool = False
    best: bool = False  # this file holds the best weights so far
    final: bool = False
    stop: bool = False  # saved because the run was told to stop
    best_so_far: str | None = None  # file name of the best before this one; durable before any header names it


@dataclass(frozen=True, kw_only=True)
class TrustedFile:
    """A checkpoint whose bytes agree with its name, and those bytes."""

    name: CheckpointName
    payload: bytes


def list_checkpoints(folder: RunFolder, files: Files = DISK) -> list[CheckpointName]:
    """Every file in ckpt/ with a checkpoint's name, trusted or not; oldest first."""
    names = (CheckpointName.parse(name) for name in files.names(folder.checkpoints))
    return sorted(name for name in names if name is not None)


def digest_of(payload: bytes) -> str:
    """The part of a checkpoint's name that its bytes decide: 16 hex digits."""
    return hashlib.sha256(payload).hexdigest()[:16]


def metadata(header: Header, scalars: Mapping[str, Any], fork: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The metadata of a new file, as safetensors wants it."""
    entry = {"schema": SCHEMA, "header": asdict(header), "scalars": scalars} | ({} if fork is None else {"fork": fork})
    return {METADATA_KEY: canonical_json(entry)}


class ForeignFileError(CheckpointError):
    """The bytes are what the name promises, but no version of this code wrote them."""


def read_metadata(payload: bytes) -> tuple[Header, dict[str, Any]]:
    """The header and the scalars of a file whose digest was checked, as this version means them.

    Raises CheckpointError for the schema of a newer version, and ForeignFileError for what is no checkpoint.
    """
    record = read_record(payload)
    return record["header"], record["scalars"]


def read_record(payload: bytes) -> dict[str, Any]:
    """The whole entry in this version's schema: header (a Header), scalars, renamed (tensor names of the file -> ours), fork.

    fork: of a file of generation 0, which run the state is from; see seresnet.fork. Raises as read_metadata does.
    """
    try:
        size = int.from_bytes(payload[:8], "little")
        entry = parse_json(parse_json(payload[8 : 8 + size])["__metadata__"][METADATA_KEY])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ForeignFileError(f"not a checkpoint of this project: {error!r}") from error
    try:
        record = migrations.to_current("checkpoint", entry)
    except ConfigError as error:
        if not isinstance(entry, dict) or "schema" not in entry:
            raise ForeignFileError(f"not a checkpoint of this project: {error}") from error
        raise CheckpointError(f"checkpoint of schema {entry['schema']!r}: {error}") from error
    try:
        # Keys of a later version within the schema say nothing that this one needs.
        known = {key.name: record["header"][key.name] for key in fields(Header) if key.name in record["header"]}
        header = Header(**known)
        if bad := misfits(header):
            raise ValueError(f"header has the wrong type of {', '.join(bad)}")
        if type(record["scalars"]) is not dict:
            raise ValueError("scalars are no mapping")
    except (ValueError, KeyError, TypeError) as error:
        raise ForeignFileError(f"not a checkpoint of this project: {error!r}") from error
    return {"header": header, "scalars": record["scalars"], "renamed": record.get("renamed", {}), "fork": record.get("fork")}


def read_trusted(folder: RunFolder, name: CheckpointName, files: Files = DISK) -> bytes | None:
    """The file's bytes, or None if they are not what its name promises (digest, generation, step).

    Raises OSError if it cannot be read: that proves nothing about the file. Raises CheckpointError for a newer schema.
    """
    payload = files.read(folder.checkpoints / str(name))
    if digest_of(payload) != name.digest:
        return None
    try:
        header, _ = read_metadata(payload)
    except ForeignFileError:
        return None
    # The digest does not cover the rest of the name: a renamed file must not pass for another step.
    return payload if (header.generation, header.step) == (name.generation, name.step) else None


def trusted(folder: RunFolder, files: Files = DISK) -> list[CheckpointName]:
    """Every checkpoint whose bytes agree with its name, oldest first. Reads all files and changes nothing."""
    return [name for name in list_checkpoints(folder, files) if _read_or_none(folder, name, files) is not None]


def newest_trusted(folder: RunFolder, files: Files = DISK) -> CheckpointName | None:
    """Where the next attempt starts from; None at the very beginning. See read_newest_trusted."""
    found = read_newest_trusted(folder, files=files)
    return None if found is None else found.name


def read_newest_trusted(folder: RunFolder, claim: Claim | None = None, files: Files = DISK) -> TrustedFile | None:
    """The first candidate that verifies; damaged files passed over on the way move to ckpt/bad/, nothing is deleted.

    claim: decides what counts (see candidates); unset = the newest one in the folder. Raises CheckpointError when there are or were
    checkpoints and none verifies: a run never starts over in silence.
    """
    claim = claim or _newest_readable_claim(folder, files)
    damaged: list[CheckpointName] = []
    reasons: list[str] = []
    unread: OSError | None = None
    for name in candidates(list_checkpoints(folder, files), claim):
        try:
            payload = read_trusted(folder, name, files)
        except OSError as error:
            reasons.append(f"{name} cannot be read ({errno.errorcode.get(error.errno or 0, error)})")
            unread = error
            continue
        if payload is not None:
            # Only now: with every bad file moved and none left, the next attempt would see an empty folder and start over.
            for bad in damaged:
                _set_aside(folder, bad, files)
            return TrustedFile(name=name, payload=payload)
        reasons.append(f"{name} {_DAMAGED}")
        damaged.append(name)
    if unread is not None:
        # A file system that hiccups is not damage: the next attempt may read it, a person cannot mend it.
        raise unread
    _refuse_to_start_over(folder, claim, reasons, files)
    return None


def candidates(names: Iterable[CheckpointName], claim: Claim | None) -> list[CheckpointName]:
    """The order in which files are tried, given the newest claim.

    Its own files, newest first. Then the base it names, then what is older than that. Files of older generations that are newer
    than the base were written by a zombie after the claim: they come last, for the day when nothing else is left, and not at all if
    the claim started from nothing.
    """
    newest_first = sorted(names, reverse=True)
    if claim is None:
        return newest_first
    own = [name for name in newest_first if name.generation >= claim.generation]
    lower = [name for name in newest_first if name.generation < claim.generation]
    base = CheckpointName.parse(claim.base or "")
    if base is None:
        return own
    # One step can have two files (before and after its evaluation): the base itself comes before its twin.
    older = sorted((name for name in lower if name != base and _place(name) <= _place(base)), reverse=True)
    return own + [name for name in lower if name == base] + older + [name for name in lower if _place(name) > _place(base)]


def kept(headers: Mapping[CheckpointName, Header], last: int = KEPT_STEPS, boundaries: int = 2) -> set[CheckpointName]:
    """Of verified files, those that retention keeps: of the last steps, the last epoch boundaries, the best of each of these, the final.

    Steps are counted, not files: the last step of an epoch can have several (before its evaluation, as the best, as the final). A step
    that several generations have saved counts once, by the newest of them: after a fall-back there are two bits of one place.
    """
    order = sorted(headers)
    boundary = {name for name in order if headers[name].epoch_boundary}
    result = _of_last_steps(order, last) | _of_last_steps([name for name in order if name in boundary], boundaries) & boundary
    result.update([name for name in order if headers[name].final][-1:])
    # By header and not by flag: after a fall-back an abandoned branch may hold a "best" that this one never reached.
    best = {str(name) if headers[name].best else headers[name].best_so_far for name in result}
    return result | {name for name in order if str(name) in best}


def _of_last_steps(order: list[CheckpointName], count: int) -> set[CheckpointName]:
    newest: dict[int, tuple[int, int]] = {}  # step -> its newest place
    for name in order:
        newest[name.step] = _place(name)
    places = sorted(newest.values())[-count:]
    return {name for name in order if _place(name) in places}


def delete_superseded(
    folder: RunFolder,
    generation: int,
    headers: dict[CheckpointName, Header],
    files: Files = DISK,
    *,
    last: int = KEPT_STEPS,
    boundaries: int = 2,
    best: str | None = None,
) -> list[CheckpointName]:
    """Delete what retention does not keep, of this or lower generations only, and no base that is needed. Raises OSError.

    headers: what this process has verified so far; brought up to date. best: kept whatever headers say, because the next one will
    name it. Files that do not verify are left alone.
    """
    read_new_headers(folder, generation, headers, files)
    claims = read_claims(folder, files)
    keep = {str(name) for name in kept(headers, last, boundaries)} | needed_bases(claims, headers) | {best}
    deleted = []
    for name in [name for name in sorted(headers) if str(name) not in keep]:
        if newest_generation(folder, files) > generation:
            break  # fenced: the newer owner decides. Asked each time, because this process may have slept since the last one
        files.unlink(folder.checkpoints / str(name))
        del headers[name]
        deleted.append(name)
    return deleted


def needed_bases(claims: Sequence[Claim], headers: Iterable[CheckpointName]) -> set[str]:
    """The bases that must stay: the newest claim's, until it has as many verified steps of its own as retention keeps.

    Until then a fall-back may need it; after that it comes behind three newer files, like any other. Bases of earlier claims come
    behind those of later ones, and should a power loss take back the newest claim, its files and its base are still candidates of the
    one before. A torn claim's base cannot be known: then the one before counts, too.
    """
    needed = set()
    for claim in sorted(claims, key=lambda claim: claim.generation, reverse=True):
        own_steps = {name.step for name in headers if name.generation == claim.generation}
        if claim.base is not None and len(own_steps) < KEPT_STEPS:
            needed.add(claim.base)
        if claim.owner is not None:
            break
    return needed


def read_new_headers(folder: RunFolder, generation: int, headers: dict[CheckpointName, Header], files: Files = DISK) -> None:
    """Add the headers of verified files up to this generation that are not known yet; forget files that are gone."""
    present = {name for name in list_checkpoints(folder, files) if name.generation <= generation}
    for gone in headers.keys() - present:
        del headers[gone]
    for name in sorted(present - headers.keys()):
        payload = _read_or_none(folder, name, files)
        if payload is not None:
            headers[name] = read_metadata(payload)[0]


def delete_leftover_temps(folder: RunFolder, generation: int, files: Files = DISK) -> None:
    """Remove temp files of dead writers: those of lower generations, and of this one before its writer has begun."""
    for entry in files.names(folder.checkpoints):
        if entry.startswith(".") and entry.endswith(".tmp"):
            name = CheckpointName.parse(entry[1:].rsplit(".", 2)[0])
            if name is not None and name.generation <= generation:
                remove(folder.checkpoints / entry, files)


_DAMAGED = "does not match its digest"


def _newest_readable_claim(folder: RunFolder, files: Files) -> Claim | None:
    claims = read_claims(folder, files)
    # A torn claim says nothing about where it started: then the newest file counts.
    return claims[-1] if claims and claims[-1].owner is not None else None


def _place(name: CheckpointName) -> tuple[int, int]:
    return name.generation, name.step


def _read_or_none(folder: RunFolder, name: CheckpointName, files: Files) -> bytes | None:
    """The verified bytes; None also where the file cannot be read now."""
    try:
        return read_trusted(folder, name, files)
    except OSError as error:
        log.warning("checkpoint_not_read name=%s error=%s", name, error)
        return None


def _set_aside(folder: RunFolder, name: CheckpointName, files: Files) -> None:
    try:
        files.make_folder(folder.set_aside)
        target = folder.set_aside / str(name)
        if target.name in files.names(folder.set_aside):
            target = target.with_name(f"{name}.{secrets.token_hex(4)}")
        files.rename(folder.checkpoints / str(name), target)
        log.error("checkpoint_set_aside name=%s reason=digest moved_to=%s", name, target)
    except OSError as error:
        # Another rank may have moved it first; and a file that stays is only verified, and refused, once more.
        log.warning("checkpoint_not_set_aside name=%s error=%s", name, error)


def _refuse_to_start_over(folder: RunFolder, claim: Claim | None, reasons: list[str], files: Files) -> None:
    if claim is not None and claim.base is not None and not any(reason.startswith(claim.base) for reason in reasons):
        reasons = [*reasons, f"{claim.base} is gone, and claim {claim.generation} started from it"]
    reasons = [*reasons, *(f"bad/{name} was set aside before" for name in files.names(folder.set_aside))]
    if words := cleaned.going_on(folder, None, files):
        reasons = [*reasons, words]
    if (parent := parent_of(folder)) is not None:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise CheckpointError(
            f"{folder.checkpoints}: this run is a fork of {parent}, and its state is gone{why}. {fork_again(folder, parent)}"
        )
    if reasons:
        raise CheckpointError(
            f"{folder.checkpoints}: no checkpoint can be trusted: {'; '.join(reasons)}. "
            f"Restore one from a backup, or move {_move_hint(folder.checkpoints)} away to start this run over."
        )


def parent_of(folder: RunFolder) -> Parent | None:
    """What run.yaml says that the run was forked from; None also where it cannot be read."""
    try:
        return RunRecord.read(folder).parent
    except ConfigError:
        return None


def fork_again(folder: RunFolder, parent: Parent) -> str:
    """What to do about a fork without a checkpoint to be trusted: begun at step 0 it would be another run under the fork's id."""
    aside = f"move {_move_hint(folder.checkpoints)} away, if they are there, and " if folder.checkpoints.exists() else ""
    return (
        f"Restore a checkpoint from a backup; or {aside}fork it again: "
        f"--config FILE --run-dir {folder.path} --fork PARENT/ckpt/{parent.checkpoint}"
    )


def _move_hint(checkpoints: Path) -> str:
    return f"{checkpoints} and {checkpoints.with_name('attempts')}"
