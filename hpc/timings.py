"""What is known of how fast a run is and how much it writes: from its own journal, from earlier runs of its shape, from a trial.

Reads at most so many files, because it is asked for with every plan; what follows from the numbers is hpc.estimate's business.
One invariant: a number is handed on only with where it comes from.
"""

import contextlib
import hashlib
import json
import os
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hpc.paths import Plan, SweepFolder
from seresnet import journal
from seresnet.config import RunConfig, to_dict
from seresnet.durable import canonical_json, parse_json
from seresnet.errors import ConfigError
from seresnet.run_folder import RunFolder

#: Of each shape: more runs would not make the estimate better.
RUNS_OF_A_SHAPE = 5
#: Sibling sweeps, newest first, and run.yaml files read from them: YAML is slow to parse.
SIBLINGS, SIBLING_RUNS = 20, 40
#: Of a journal's end: a few hundred epochs.
_ENOUGH_EPOCHS = 5
_TAIL_BYTES = 64_000

#: What a step's time does not depend on, or hardly.
_NOT_SHAPE = {
    "data": ("path", "dir", "split_seed"),
    "train": ("seed", "epochs", "checkpoint_every_s"),
}
_DEFAULTS = to_dict(RunConfig())
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds an epoch of one shape: least and most of what was seen, and where."""

    low_s: float
    high_s: float
    source: str  # "3 earlier runs"
    checkpoint_bytes: int | None = None
    bytes_on_disk: int | None = None  # of a whole run folder, where one was seen
    files: int | None = None
    gpu: str | None = None


def shape_key(config: Mapping[str, Mapping[str, Any]]) -> str:
    """Runs of one key take the same time for a step, on the same machine; a key that an older record lacks is at its default."""
    kept = {}
    for section in ("model", "data", "augment", "train"):
        values = {**_DEFAULTS.get(section, {}), **config.get(section, {})}
        kept[section] = {key: value for key, value in values.items() if key not in _NOT_SHAPE.get(section, ())}
    if "program" in config:
        kept["program"] = dict(config["program"])
    return canonical_json(parse_json(json.dumps(kept)))


def shape_digest(config: Mapping[str, Mapping[str, Any]]) -> str:
    """The key in 16 hex digits, for records."""
    return hashlib.sha256(shape_key(config).encode()).hexdigest()[:16]


def epochs_done(folder: RunFolder) -> int:
    """Epochs that the run's journal has, by the newest of its files."""
    return max((record.epoch for record in _tail(folder)), default=0)


class Known:
    """What earlier runs say, read as far as it is asked for."""

    def __init__(
        self,
        sweep: SweepFolder,
        plan: Plan,
        configs: Mapping[str, Mapping[str, Any]],
        begun: Collection[str] = (),
        gpu_word: str | None = None,
    ) -> None:
        """configs: run id -> config of this sweep's runs. begun: run ids with an attempt: the folders of the others are not looked at.

        gpu_word: the GPU type that is asked for, such as h100: what was seen on others does not count.
        """
        self._sweep, self._plan, self._gpu_word = sweep, plan, (gpu_word or "").lower()
        self._keys = {run_id: shape_key(config) for run_id, config in configs.items()}
        self._begun = frozenset(begun)
        self._own: dict[str, list[str]] = {}
        for run_id, key in self._keys.items():
            if run_id in plan.runs:
                self._own.setdefault(key, []).append(run_id)
        self._reports: dict[str, Mapping[str, Any]] | None = None
        self._dropped: dict[str, list[RunFolder]] | None = None
        self._siblings: dict[str, list[RunFolder]] | None = None
        self._found: dict[str, Timing | None] = {}

    def of_run(self, run_id: str) -> Timing | None:
        """Of this run itself where it has epochs behind it, else of its shape."""
        if run_id in self._begun and (seen := _seen(self._sweep.run_folder(run_id, self._plan))):
            return _summary([seen], "its own epochs")
        key = self._keys[run_id]
        if key not in self._found:
            self._found[key] = self._of_shape(key)
        return self._found[key]

    def key(self, run_id: str) -> str:
        return self._keys[run_id]

    def folders(self, run_id: str) -> list[RunFolder]:
        """Folders of runs of the same shape in this sweep that have begun."""
        own = self._own.get(self._keys[run_id], [])
        return [self._sweep.run_folder(other, self._plan) for other in own if other in self._begun]

    def report(self, run_id: str) -> Mapping[str, Any] | None:
        """What the newest trial of a run of this shape measured."""
        if self._reports is None:
            self._reports = _reports(self._sweep)
        return self._reports.get(hashlib.sha256(self._keys[run_id].encode()).hexdigest()[:16])

    def _of_shape(self, key: str) -> Timing | None:
        own = (self._sweep.run_folder(run_id, self._plan) for run_id in self._own.get(key, []) if run_id in self._begun)
        seen = list(_first(RUNS_OF_A_SHAPE, map(self._seen_on_that_gpu, own)))
        seen = seen or list(_first(RUNS_OF_A_SHAPE, map(self._seen_on_that_gpu, self._left().get(key, []))))
        if seen:
            return _summary(seen, _runs(len(seen), "earlier"))
        if self._own.get(key) and (report := self.report(self._own[key][0])) and self._is_that_gpu(report.get("gpu")):
            return _of_report(report, int(parse_json(key)["train"]["ranks"]))
        if self._siblings is None:
            self._siblings = _sibling_runs(self._sweep)
        seen = list(_first(RUNS_OF_A_SHAPE, map(self._seen_on_that_gpu, self._siblings.get(key, []))))
        return _summary(seen, _runs(len(seen), "sibling sweep")) if seen else None

    def _left(self) -> dict[str, list[RunFolder]]:
        """Shape -> folders of runs that this sweep no longer asks for: another learning rate, another horizon."""
        if self._dropped is None:
            others = [run_id for run_id in self._plan.runs if run_id not in self._keys]
            folders = (self._sweep.run_folder(run_id, self._plan) for run_id in reversed(others))
            trained = _first(SIBLING_RUNS, (folder if _entries(folder.metrics) else None for folder in folders))
            self._dropped = _by_shape(trained)
        return self._dropped

    def _seen_on_that_gpu(self, folder: RunFolder) -> "_Seen | None":
        seen = _seen(folder)
        return seen if seen and self._is_that_gpu(seen.gpu) else None

    def _is_that_gpu(self, gpu: str | None) -> bool:
        return not self._gpu_word or gpu is None or self._gpu_word in gpu.lower()


@dataclass(frozen=True, kw_only=True)
class _Seen:
    epoch_s: float
    gpu: str | None
    checkpoint_bytes: int | None
    bytes_on_disk: int
    files: int


def _seen(folder: RunFolder) -> _Seen | None:
    """What one run's folder says; None without an epoch."""
    seconds = [record.seconds for record in _tail(folder) if record.seconds > 0]
    if not seconds:
        return None
    checkpoints = [_size(entry) for entry in _entries(folder.checkpoints) if entry.name.endswith(".safetensors")]
    size, files = _usage(folder.path)
    return _Seen(
        # The first epoch of a start is slow, and one that a stop cut short is fast: the median is neither.
        epoch_s=statistics.median(seconds),
        gpu=_gpu(folder),
        checkpoint_bytes=max(checkpoints, default=None),
        bytes_on_disk=size,
        files=files,
    )


def _summary(seen: list[_Seen], source: str) -> Timing:
    gpus = sorted({run.gpu for run in seen if run.gpu})
    return Timing(
        low_s=min(run.epoch_s for run in seen),
        high_s=max(run.epoch_s for run in seen),
        source=f"{source} on {len(gpus)} kinds of GPU" if len(gpus) > 1 else source,
        checkpoint_bytes=max((run.checkpoint_bytes for run in seen if run.checkpoint_bytes), default=None),
        bytes_on_disk=max(run.bytes_on_disk for run in seen),
        files=max(run.files for run in seen),
        gpu=gpus[0] if len(gpus) == 1 else None,
    )


def _of_report(report: Mapping[str, Any], ranks: int) -> Timing:
    """Twenty steps, on a node that may have been busy with other things; of a run over several nodes, with one node's share of ranks."""
    seconds = float(report["epoch_s"]) * float(report["ranks"]) / ranks
    source = f"a trial of {report['steps']} steps{' on one node' if ranks > report['ranks'] else ''}"
    return Timing(
        low_s=0.9 * seconds, high_s=1.2 * seconds, source=source, checkpoint_bytes=int(report["checkpoint_bytes"]), gpu=report["gpu"]
    )


def _reports(sweep: SweepFolder) -> dict[str, Mapping[str, Any]]:
    """Digest of a shape -> what its newest trial measured. Also of trials whose runs are no longer asked for: their speed is the same."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in _entries(sweep.trials):
        if entry.name.endswith(".end.json"):
            for shape, report in _reports_of(Path(entry.path)):
                if shape not in found or float(report["time"]) > float(found[shape]["time"]):
                    found[shape] = report
    return found


def _reports_of(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    found = []
    try:
        for outcome in parse_json(path.read_text()).values():
            report = outcome["report"]
            if report is not None:
                _check_report(report)
                found.append((str(outcome["shape"]), report))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return found


def _check_report(report: Mapping[str, Any]) -> None:
    """Raises what a record of somebody else's making raises."""
    for key in ("time", "epoch_s", "checkpoint_bytes", "steps", "peak_memory_mb", "ranks"):
        float(report[key])
    report["gpu"]


def _sibling_runs(sweep: SweepFolder) -> dict[str, list[RunFolder]]:
    """Shape -> folders of runs of the sweeps beside this one, the newest sweeps first."""
    plans = [entry / "plan.json" for entry in map(Path, _entries(sweep.path.parent)) if entry.name != sweep.path.name]
    dated = sorted(((written, path) for path in plans if (written := _written(path)) is not None), reverse=True)
    folders = (folder for _, path in dated[:SIBLINGS] for folder in _one_run_an_arm(SweepFolder(path.parent)))
    return _by_shape(_first(SIBLING_RUNS, folders))


def _written(path: Path) -> float | None:
    """When a plan was; None where there is none, or where the folder is another user's: an estimate goes without."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _by_shape(folders: Iterable[RunFolder]) -> dict[str, list[RunFolder]]:
    """Reads run.yaml of each."""
    found: dict[str, list[RunFolder]] = {}
    for folder in folders:
        config = _config(folder)
        # Another sweep's record may hold anything.
        with contextlib.suppress(TypeError, ValueError, AttributeError):
            if config is not None:
                found.setdefault(shape_key(config), []).append(folder)
    return found


def _one_run_an_arm(sweep: SweepFolder) -> Iterator[RunFolder]:
    try:
        plan = Plan.read(sweep)
    except (ConfigError, OSError):
        return
    for run_ids in plan.arms.values():
        folders = (sweep.run_folder(run_id, plan) for run_id in run_ids if run_id in plan.runs)
        yield from _first(1, (folder if _entries(folder.metrics) else None for folder in folders))


def _config(folder: RunFolder) -> Mapping[str, Any] | None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        value = yaml.load(folder.run_yaml.read_text(), Loader=loader)["config"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    return value if isinstance(value, dict) else None


def _tail(folder: RunFolder) -> list[journal.EpochRecord]:
    """Some of the last epochs of a run; none where nothing can be read. A resumed attempt begins with a part of one: look further back."""
    found: list[journal.EpochRecord] = []
    paths = sorted((entry.path for entry in _entries(folder.metrics) if entry.name.endswith(".jsonl")), reverse=True)
    for path in paths:
        try:
            with open(path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            continue
        records = [record for record in map(journal.parse, lines) if record is not None]
        found += records
        if len(found) >= _ENOUGH_EPOCHS:
            break
    return found


def _gpu(folder: RunFolder) -> str | None:
    """The GPU of the newest attempt that wrote down what it ran on; None on a CPU."""
    newest = max((entry.path for entry in _entries(folder.attempts) if entry.name.endswith(".env.json")), default=None)
    try:
        kind, _, name = str(parse_json(Path(newest).read_text())["device"]).partition(": ") if newest else ("", "", "")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if kind == "cuda" else None


def _usage(path: Path) -> tuple[int, int]:
    """Bytes and inodes below a run's folder."""
    size, files = 0, 1
    for entry in _entries(path):
        below = _usage(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else (_size(entry), 1)
        size, files = size + below[0], files + below[1]
    return size, files


def _size(entry: "os.DirEntry[str]") -> int:
    # A run that trains deletes checkpoints while we look.
    with contextlib.suppress(OSError):
        return entry.stat(follow_symlinks=False).st_size
    return 0


def _entries(path: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def _first(count: int, values: Iterable[_T | None]) -> Iterator[_T]:
    for value in values:
        if count == 0:
            return
        if value is not None:
            count -= 1
            yield value


def _runs(count: int, which: str) -> str:
    return f"{count} {which} run{'s' if count != 1 else ''}"
