"""What of a sweep may go, and why the rest stays: every file is found, sorted by kind and judged here; nothing is removed.

Removing is hpc.clean's business. Two invariants: of a finished run at least one checkpoint stays that was read and found good, the one
that its result speaks of wherever the final is kept; and no record, and nothing of an unfinished run, is ever in the plan.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpc.paths import Plan, Submissions, SweepFolder, submission_id
from hpc.states import Facts, read_facts
from seresnet import checkpoint_files, cleaned, provenance
from seresnet.attempts import read_claims
from seresnet.checkpoint_files import Header, list_checkpoints
from seresnet.durable import DISK, parse_json
from seresnet.errors import CheckpointError, ToolkitError
from seresnet.inspection import bases
from seresnet.run_folder import CheckpointName, RunFolder, TrainResult
from seresnet.tensor_file import state_digest_of

#: Of a finished run's checkpoints, which stay; None: the final and the best.
Keep = Literal["final", "best"] | None
#: What a folder is called from the moment at which it is being removed.
DOOMED = ".cleaning"

_PARENT = re.compile(r"^\s+checkpoint: ['\"]?(g\d+-s\d+-[0-9a-f]{16}\.safetensors)", re.MULTILINE)
_LARGEST_HEADER = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file or folder that may go."""

    kind: str
    path: Path
    files: int
    size: int
    run: RunFolder | None = None  # whose checkpoint it is


@dataclass(frozen=True, kw_only=True)
class CleanPlan:
    """All of it, and what stays for another reason than that it is asked for."""

    items: tuple[Item, ...]
    finished: int  # runs
    unfinished: int
    left: tuple[str, ...]  # runs that are finished and keep everything, and why


def kept_words(keep: Keep) -> str:
    """What stays, for people and for cleaned.json."""
    return keep or "final and best"


def find(sweep: SweepFolder, plan: Plan, keep: Keep) -> CleanPlan:
    """Look at every run. Raises ToolkitError where the sweep's own records cannot be read, and OSError."""
    facts = read_facts(sweep, plan)
    finished = {run_id: known for run_id, known in facts.items() if is_settled(known)}
    parents = _parents(sweep)
    items: list[Item] = []
    left: list[str] = []
    for run_id, known in finished.items():
        try:
            items += _of_run(known.folder, keep, parents)
        except (ToolkitError, OSError) as error:
            left.append(f"{plan.runs[run_id].slug}: {error}")
    items += [*_trials(sweep), *_codes(sweep, plan, facts)]
    return CleanPlan(items=tuple(items), finished=len(finished), unfinished=len(facts) - len(finished), left=tuple(left))


def is_settled(facts: Facts) -> bool:
    """Whether a run is finished and nobody has begun to carry it on."""
    return facts.is_finished and facts.fault is None and facts.claim is not None and facts.end is not None


# --- one run ---


def _of_run(folder: RunFolder, keep: Keep, parents: frozenset[str]) -> Iterator[Item]:
    """Raises CheckpointError where what would stay is not what it should be."""
    headers = _headers(folder)
    final, best = _final_and_best(folder, headers)
    wanted = {"final": {final}, "best": {best or final}, None: {final, best}}[keep] - {None}
    if headers and not wanted:
        raise CheckpointError(f"{folder.checkpoints}: has no final checkpoint of its result's step. It keeps everything.")
    started = bases(read_claims(folder))
    for name in sorted(headers):
        if name in wanted or str(name) in parents:
            continue
        word = "final" if name == final else "best" if name == best else "base" if str(name) in started else "older"
        yield _file(_KINDS[word], folder.checkpoints / str(name), folder)
    for entry in DISK.names(folder.checkpoints):
        if entry.startswith(".") and entry.endswith(".tmp"):
            yield _file("saves that were not committed", folder.checkpoints / entry)
    yield from _trees("traces (profile/)", [folder.profile, _doomed(folder.profile)])
    yield from _trees("W&B segments that were uploaded", _uploaded(folder.path / "wandb"))


_KINDS = {
    "older": "older checkpoints",
    "base": "checkpoints that a later attempt began with",
    "final": "final checkpoints",
    "best": "best checkpoints",
}


def _headers(folder: RunFolder) -> dict[CheckpointName, Header]:
    """Of every checkpoint that can be read; the others are evidence, and stay."""
    found = {}
    for name in list_checkpoints(folder):
        with contextlib.suppress(CheckpointError, OSError):
            found[name] = _header(folder.checkpoints / str(name))
    return found


def _header(path: Path) -> Header:
    """Without the tensors: a sweep has TB of them."""
    with open(path, "rb") as file:
        head = file.read(8)
        head += file.read(min(int.from_bytes(head, "little"), _LARGEST_HEADER))
    return checkpoint_files.read_metadata(head)[0]


def _final_and_best(folder: RunFolder, headers: Mapping[CheckpointName, Header]) -> tuple[CheckpointName | None, CheckpointName | None]:
    """Those that are there, read whole and found good. Raises CheckpointError where one is not.

    After an earlier cleaning one of the two is there, or both.
    """
    result = TrainResult.read(folder)
    assert result is not None, "a finished run has a result"
    known = cleaned.read(folder)
    final = max((name for name, header in headers.items() if header.final and name.step == result.step), default=None)
    if final is None:
        names = [name for name in headers if headers[name].best and known is not None]
        best = max(names, default=None)
    else:
        word = headers[final].best_so_far
        best = final if headers[final].best else next((name for name in headers if str(name) == word), None)
    for name in {final, best} - {None}:
        assert name is not None
        payload = checkpoint_files.read_trusted(folder, name)
        if payload is None:
            raise CheckpointError(f"{folder.checkpoints / str(name)}: does not match its digest. The run keeps everything.")
        if name == final and state_digest_of(payload) != result.state_digest:
            raise CheckpointError(f"{folder.checkpoints / str(name)}: is not the state of result.json. The run keeps everything.")
    return final, best


def _uploaded(wandb: Path) -> list[Path]:
    """Offline segments of which `wandb sync` says, by a file of its own beside each, that the server has them."""
    found = []
    for segment in sorted(wandb.glob("offline-run-*")):
        files = [*segment.glob("*.wandb")]
        if files and all(path.with_name(f"{path.name}.synced").exists() for path in files):
            found.append(segment)
    return [*found, *sorted(wandb.glob(f".offline-run-*{DOOMED}"))]


def _parents(sweep: SweepFolder) -> frozenset[str]:
    """Checkpoints that forks in this sweep and beside it began with: one that has lost its own begins with that very file again."""
    found: set[str] = set()
    runs_dir = sweep.path.resolve().parent
    for path in (*runs_dir.glob("*/*/run.yaml"), *runs_dir.glob("*/run.yaml")):
        with contextlib.suppress(OSError, ValueError):
            found.update(_PARENT.findall(path.read_text()))
    return frozenset(found)


# --- the sweep's own ---


def _trials(sweep: SweepFolder) -> Iterator[Item]:
    for path in sorted(sweep.trials.glob("*/ckpt/*.safetensors")):
        yield _file("checkpoints of trials", path)


def _codes(sweep: SweepFolder, plan: Plan, facts: Mapping[str, Facts]) -> Iterator[Item]:
    """Snapshots that no run was finished with, that nothing goes on with, and that is not the newest."""
    used = _used_codes(sweep, plan, facts)
    idle = [path for path in sorted(sweep.codes.glob("[0-9]*")) if path.name not in used]
    yield from _trees("code that nothing uses", [*idle, *sorted(sweep.codes.glob(f".*{DOOMED}"))])


def _used_codes(sweep: SweepFolder, plan: Plan, facts: Mapping[str, Facts]) -> set[str]:
    names = sorted(path.name for path in sweep.codes.glob("[0-9]*"))
    entries = Submissions.read(sweep).submissions
    open_runs = {run_id for run_id, known in facts.items() if not is_settled(known)}
    waiting = {submission_id(task) for task, run_ids in plan.tasks.items() if open_runs.intersection(run_ids)}
    used = {entry.code for entry in entries if entry.id in waiting} | {entry.code for entry in entries[-1:]} | set(names[-1:])
    trained = _trained_with(sweep)
    return used | {name for name in names if provenance.code_digest(sweep.code(name) / "seresnet") in trained}


def _trained_with(sweep: SweepFolder) -> set[str]:
    """Digests of the code that made a result, of whatever run: --reproduce needs it."""
    found = set()
    for path in sweep.path.glob("*/result.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.add(str(parse_json(path.read_text())["code_digest"]))
    return found


# --- sizes ---


def _file(kind: str, path: Path, run: RunFolder | None = None) -> Item:
    return Item(kind=kind, path=path, files=1, size=path.lstat().st_size, run=run)


def _trees(kind: str, paths: Sequence[Path]) -> Iterator[Item]:
    for path in paths:
        if path.is_symlink() or path.is_dir():
            sizes = [] if path.is_symlink() else [each.lstat().st_size for each in path.rglob("*") if not each.is_dir()]
            yield Item(kind=kind, path=path, files=len(sizes), size=sum(sizes))


def _doomed(path: Path) -> Path:
    return path.with_name(f".{path.name}{DOOMED}")
