"""The records of a run's replays, without torch: after a divergence the run goes back to an epoch's boundary and trains on from there.

A divergence that comes back is the run's own, one that does not is the hardware's. Training is recipe.py's business; here are the records
(attempts/NNNNNN.replay.json) and the order in which files change. One invariant: a checkpoint that may hold wrong bits is set aside
only after a record names it and the state to go back to is durable.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from seresnet import journal
from seresnet.attempts import Claim, newest_generation
from seresnet.checkpoint_files import Header, candidates, list_checkpoints, read_metadata, read_trusted
from seresnet.durable import DISK, Files, json_bytes, parse_json, write_durably
from seresnet.errors import OwnedElsewhereError
from seresnet.record_types import misfits
from seresnet.run_folder import CheckpointName, RunFolder

log = logging.getLogger("seresnet")

SCHEMA = 1
#: A divergence has not come back once a replay is so many steps further: it is noticed up to 19 steps late (loss_watch.LossWatch).
MARGIN_STEPS = 20
#: So many divergences that did not come back, and the machine is not worth another: the run ends as diverged.
MOST_SUSPECT = 3


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One divergence and what became of it."""

    number: int  # from 1, over the whole life of the run
    what: str  # "loss not finite", or the tensor that was not
    step: int  # batches consumed when it was noticed
    from_step: int  # the epoch's boundary that the run goes back to
    hosts: tuple[str, ...]  # of the ranks that saw it first
    suspects: tuple[str, ...]  # checkpoints newer than the boundary: finite, but maybe of bad hardware; they go to ckpt/bad/
    is_rewound: bool = False  # the folder is as it was at the boundary
    outcome: str | None = None  # None: it goes on; "came_back" or "gone"
    again_step: int | None = None  # where it came back

    @property
    def goal(self) -> int:
        """The step at which it has not come back."""
        return self.step + MARGIN_STEPS

    def __str__(self) -> str:
        if self.outcome == "gone":
            nodes = f"node {self.hosts[0]} is" if len(self.hosts) == 1 else f"one of nodes {', '.join(self.hosts)} is"
            return f"replayed step {self.from_step}-{self.step} without it ({self.what}): {nodes} suspect"
        if self.outcome == "came_back":
            return f"{self.what} at step {self.again_step}, again in a replay from step {self.from_step}"
        return f"{self.what} at step {self.step}: replayed from step {self.from_step}"


def read_replays(folder: RunFolder, files: Files = DISK) -> list[Replay]:
    """Every replay of the run, in order; of several words about one that of the newest attempt counts."""
    found: dict[int, Replay] = {}
    for name in files.names(folder.attempts):  # sorted by generation
        if name.endswith(".replay.json"):
            found |= {replay.number: replay for replay in _read(folder, name, files)}
    return [found[number] for number in sorted(found)]


def note(folder: RunFolder) -> str | None:
    """What status says of a run's replays, in one line; None where nothing is to be said that its ending does not say."""
    try:
        return "; ".join(str(replay) for replay in read_replays(folder) if replay.outcome != "came_back") or None
    except OSError as error:
        return f"{folder.attempts}: cannot be read: {error}"


def with_note(text: str, folder: RunFolder) -> str:
    """An ending's reason, and beside it what the run's replays have to say."""
    said = note(folder)
    return f"{text}; {said}" if said else text


def write(folder: RunFolder, generation: int, replay: Replay, files: Files = DISK) -> None:
    """Make this attempt's word about a replay durable. Raises OwnedElsewhereError for an attempt that is no longer the newest."""
    _refuse_if_fenced(folder, generation, files)
    path = folder.replay(generation)
    own = {known.number: known for known in _read(folder, path.name, files)} | {replay.number: replay}
    payload = json_bytes({"schema": SCHEMA, "replays": [asdict(own[number]) for number in sorted(own)]})
    write_durably(path, payload, files, guard=lambda: _refuse_if_fenced(folder, generation, files))


def _refuse_if_fenced(folder: RunFolder, generation: int, files: Files) -> None:
    newest = newest_generation(folder, files)
    if newest > generation:
        raise OwnedElsewhereError(f"generation {newest} owns {folder.path} now, generation {generation} replays no more")


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """Where a replay starts from. name and header None: the beginning, for which there is no file."""

    name: CheckpointName | None = None
    header: Header | None = None
    payload: bytes = b""

    @property
    def step(self) -> int:
        return self.name.step if self.name is not None else 0

    @property
    def best_so_far(self) -> str | None:
        """The best checkpoint that the boundary knows of, by name."""
        if self.header is None:
            return None
        return str(self.name) if self.header.best else self.header.best_so_far


def find_boundary(folder: RunFolder, claim: Claim, first_bad: int, is_fork: bool, files: Files = DISK) -> Boundary | None:
    """The newest trusted checkpoint of an epoch's end whose next loss is known to be finite; else the run's beginning.

    claim: this attempt's. first_bad: batches consumed before the first step whose loss is not known to be finite. is_fork: the run's
    beginning is another run's state, so the oldest file must do; None if there is none. A file that cannot be read is passed over: an
    older one gives the same bits, later.
    """
    oldest = None if is_fork else Boundary()
    for name in candidates(list_checkpoints(folder, files), claim):
        is_early = name.step < max(1, first_bad) or name.generation == 0  # the parent's file stands for a fork's first weights
        found = _read_boundary(folder, name, files) if is_early else None
        if found is not None and found.header is not None and found.header.epoch_boundary:
            return found
        if is_fork and found is not None and (oldest is None or found.step < oldest.step):
            oldest = found
    return oldest


def _read_boundary(folder: RunFolder, name: CheckpointName, files: Files) -> Boundary | None:
    try:
        payload = read_trusted(folder, name, files)
    except OSError as error:
        log.warning("checkpoint_not_read name=%s error=%s", name, error)
        return None
    return Boundary(name=name, header=read_metadata(payload)[0], payload=payload) if payload is not None else None


def newer_than(folder: RunFolder, claim: Claim, boundary: Boundary, files: Files = DISK) -> tuple[str, ...]:
    """The checkpoints that a start would prefer to the boundary, or that are of a later step."""
    order = candidates(list_checkpoints(folder, files), claim)
    place = order.index(boundary.name) if boundary.name in order else len(order)
    return tuple(str(name) for number, name in enumerate(order) if number < place or name.step > boundary.step)


def rewind(
    folder: RunFolder, claim: Claim, replay: Replay, boundary: Boundary, save: Callable[[Boundary], None], files: Files = DISK
) -> Replay:
    """Make the folder such that a start goes on from the boundary; safe to be done again after a kill at any point.

    save: make the boundary's state a durable checkpoint of this attempt. Nobody else writes checkpoints meanwhile. Raises OSError, and
    OwnedElsewhereError for an attempt that is no longer the newest: it looks once more before each change that a newer one would feel.
    """
    suspects = tuple(dict.fromkeys((*replay.suspects, *newer_than(folder, claim, boundary, files))))
    replay = replace(replay, from_step=boundary.step, suspects=suspects)
    write(folder, claim.generation, replay, files)
    if boundary.name is None or boundary.name.generation != claim.generation:
        save(boundary)
    _refuse_if_fenced(folder, claim.generation, files)
    journal.drop_after(folder, boundary.step, claim.generation, files)
    _refuse_if_fenced(folder, claim.generation, files)
    _set_aside(folder, replay, files)
    replay = replace(replay, is_rewound=True)
    write(folder, claim.generation, replay, files)
    return replay


def _set_aside(folder: RunFolder, replay: Replay, files: Files) -> None:
    present = {str(name) for name in list_checkpoints(folder, files)}
    files.make_folder(folder.set_aside)
    taken = set(files.names(folder.set_aside))
    for name in replay.suspects:
        if name in present:
            # Of a name that is taken the bytes are the same, or one of the two is damaged: both are kept.
            target = name if name not in taken else f"{name}.replay-{replay.number}"
            files.rename(folder.checkpoints / name, folder.set_aside / target)
            log.warning("checkpoint_set_aside name=%s reason=newer than step %d, where a replay starts", name, replay.from_step)
    for changed in (folder.set_aside, folder.checkpoints):
        files.sync_folder(changed)


def _read(folder: RunFolder, name: str, files: Files) -> list[Replay]:
    try:
        value = parse_json(files.read(folder.attempts / name))
        if value["schema"] == SCHEMA:
            return [_replay(entry) for entry in value["replays"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        log.warning("replay_not_read file=%s error=%r", name, error)
        return []
    log.warning("replay_not_read file=%s schema=%r", name, value["schema"])
    return []


def _replay(entry: dict[str, Any]) -> Replay:
    known = {key.name: entry[key.name] for key in fields(Replay)}
    replay = Replay(**{**known, "hosts": tuple(known["hosts"]), "suspects": tuple(known["suspects"])})
    if bad := misfits(replay):
        raise ValueError(f"wrong type of {', '.join(bad)}")
    return replay
