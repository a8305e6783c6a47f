"""What collect has read of a sweep, kept beside it in .collect/, so that the next collect reads only what was changed.

hpc.gather reads and judges, hpc.cache_layer knows the files of the cache; here is decided what is kept and when it still holds (ADR 19).
Kept are the facts of finished runs and the columns of every journal, each under the identities (size, inode, times) of all files that it
came from. One invariant: an answer with the cache is the answer without it; whatever is in doubt is read again.
"""

import contextlib
import functools
import hashlib
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc import journal_columns
from hpc.batch_word import word_file
from hpc.cache_layer import SUFFIX, Block, Blocks, Layer, LayerWriter, encoded, layer_paths
from hpc.file_marks import Marks
from hpc.history import History
from hpc.journal_columns import COLUMNS, Earlier, ReadFile
from hpc.paths import Submission, SweepFolder
from hpc.spans import Span
from hpc.spent import devices, is_time
from seresnet import attempts, journal
from seresnet.durable import canonical_json, parse_json
from seresnet.errors import ConfigError
from seresnet.run_folder import Parent, RunFolder, RunHead, TrainResult

SCHEMA = 1
#: A file that was changed so shortly before it was read may be changed again without another time: FAT counts in steps of two seconds.
_RACY_NS = 2_000_000_000
#: More layers than this are written together into one.
_MOST_LAYERS = 8
_ABANDONED_S = 3600  # a temp file of a collect that was killed
_RESULT_KEYS = tuple(key.name for key in fields(TrainResult))
#: Keys of a result whose values many runs share.
_SHARED = ("classes", "versions", "parent")


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What the folder of a finished run says, its journal apart."""

    config: dict[str, dict[str, Any]]  # shared between runs: not to be changed
    head: RunHead
    result: TrainResult
    ending: str | None
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Look:
    """The identities of a run's files, taken before they are read."""

    generations: tuple[int, ...]
    key: str


@functools.cache
def code() -> str:
    """A digest of all sources of both packages: other code may read the same files otherwise."""
    digest = hashlib.sha256()
    for package in (Path(__file__).parent, Path(journal.__file__).parent):
        for path in sorted(package.glob("*.py")):
            digest.update(f"{package.name}/{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


class _Pool:
    """Values that many runs share, each once; the same in JSON, or refused with a ValueError or TypeError."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._by_text: dict[str, int] = {}
        self._by_object: dict[int, tuple[int, Any]] = {}  # with the object: its id must not be used again

    def place(self, value: Any) -> int:
        if id(value) in self._by_object:
            return self._by_object[id(value)][0]
        text = canonical_json(value)
        if text not in self._by_text:
            if parse_json(text) != value:  # YAML has keys that are no texts
                raise ValueError("not what JSON would give back")
            self._by_text[text] = len(self.values)
            self.values.append(value)
        self._by_object[id(value)] = self._by_text[text], value
        return self._by_text[text]


class _Columns:
    """The columns of one history in a block; read from the journal again should the block be damaged."""

    def __init__(self, blocks: Blocks, block: Block, run_id: str, folder: RunFolder) -> None:
        self._blocks, self.block, self._run_id, self._folder = blocks, block, run_id, folder
        self._values: np.ndarray | None = None

    def __call__(self, key: str) -> np.ndarray:
        found = self._blocks.column(self.block, self._run_id, key) if self._values is None else None
        return found if found is not None else self._again()[COLUMNS.index(key)]

    def stored(self) -> np.ndarray | None:
        """All columns; None where the block is damaged."""
        return self._blocks.columns(self.block, self._run_id)

    def _again(self) -> np.ndarray:
        if self._values is None:
            values = journal_columns.read(self._folder).values
            if values.shape[1] != self.block.epochs:
                raise ConfigError(f"{self._folder.metrics}: the journal changed while it was read. Collect again.")
            self._values = values
        return self._values


class SweepCache:
    """The cache of one sweep, for one collect. Raises nothing of its own: a cache that cannot be read or written is none."""

    def __init__(self, sweep: SweepFolder, by_job: Mapping[str, Submission], is_used: bool = True) -> None:
        self._sweep, self._by_job = sweep, by_job
        self._folder = sweep.collect_cache if is_used else None
        self._marks = Marks(sweep.path)
        self._began_ns = time.time_ns()
        self._layers: list[Layer] = []
        self._useless: list[Path] = []
        self._finished: dict[str, tuple[Layer, list[Any]]] = {}
        self._journals: dict[str, tuple[Layer, list[Any]]] = {}
        self._new_finished: dict[str, list[Any]] = {}
        self._new_journals: dict[str, list[Any]] = {}
        self._pool = _Pool()
        if self._folder is not None:
            self._load(self._folder)

    def _load(self, folder: Path) -> None:
        for path in layer_paths(folder):
            layer = Layer.open(path)
            if layer is None or (layer.index.get("schema"), layer.index.get("code")) != (SCHEMA, code()):
                self._useless.append(path)
                continue
            self._layers.append(layer)
            self._finished.update((run_id, (layer, row)) for run_id, row in layer.index["finished"].items())
            self._journals.update((run_id, (layer, row)) for run_id, row in layer.index["journals"].items())

    # --- finished runs ---

    def finished(self, run_id: str, folder: RunFolder) -> FinishedRun | None:
        """What is known of a finished run; None where there is nothing, or a file of it was changed."""
        if run_id not in self._finished:
            return None
        layer, (key, generations, extra, config, head, ending, spans, values) = self._finished[run_id]
        found = self._marks.key(_names(folder, generations, extra))
        if found is None or found.text != key:
            return None
        pool = layer.index["pool"]
        run_head = RunHead(**head)
        result = dict(zip(_RESULT_KEYS, values, strict=True))
        result |= {name: pool[result[name]] for name in _SHARED}
        result["parent"] = Parent.of(result["parent"])
        return FinishedRun(
            config={name: pool[place] for name, place in config.items()},
            head=run_head,
            result=TrainResult(**result),
            ending=ending,
            spans=tuple(self._span(run_head, *span) for span in spans),
        )

    def _span(
        self,
        head: RunHead,
        generation: int,
        started: float | None,
        ended: float | None,
        ending: str | None,
        job: str | None,
        host: str | None,
        restart_count: int,
    ) -> Span:
        # Devices are not kept: they depend on submission.json, which every launch writes.
        return Span(
            generation=generation,
            started=started,
            ended=ended,
            ending=ending,
            job=job,
            host=host,
            restart_count=restart_count,
            devices=devices(head, job, self._by_job),
        )

    def look(self, folder: RunFolder) -> Look | None:
        """To be taken before a run is read that shall be kept; None where it cannot be."""
        before = self._marks.key([f"{folder.path.name}/attempts"])
        _ = self._writer  # its time comes before that of any later change
        try:
            generations = tuple(attempts.generations(folder))
        except OSError:
            return None
        found = self._marks.key(_names(folder, generations))
        is_still = before is not None and before == self._marks.key([f"{folder.path.name}/attempts"])
        return Look(generations=generations, key=found.text) if found is not None and is_still else None

    def keep(self, run_id: str, folder: RunFolder, look: Look, run: FinishedRun) -> None:
        """Keep what was read since the look, unless a file was changed meanwhile or just before."""
        try:
            extra = list(_other_files(folder, look.generations))
            before = self._marks.key(_names(folder, look.generations))
            found = self._marks.key(_names(folder, look.generations, extra))
            if before is None or before.text != look.key or found is None or found.newest_ns >= self._horizon_ns:
                return
            values = {name: getattr(run.result, name) for name in _RESULT_KEYS}
            values["parent"] = asdict(run.result.parent) if run.result.parent else None
            values |= {name: self._pool.place(values[name]) for name in _SHARED}
            config = {name: self._pool.place(section) for name, section in run.config.items()}
        except (OSError, ValueError, TypeError):
            return
        spans = [[getattr(span, key.name) for key in fields(Span) if key.name != "devices"] for span in run.spans]
        row = [found.text, list(look.generations), extra, config, asdict(run.head), run.ending, spans, list(values.values())]
        self._new_finished[run_id] = row

    # --- journals ---

    def history(self, run_id: str, folder: RunFolder) -> tuple[History, dict[str, int]]:
        """The epochs of a run, and the number of torn or foreign lines of each file that has any. Raises OSError and ValueError."""
        if run_id not in self._journals:
            return self._read_journal(run_id, folder, None)
        layer, (key, files, bad, block, last_epoch, seconds) = self._journals[run_id]
        columns = _Columns(layer.blocks, Block(*block), run_id, folder)
        found = self._marks.key(_journal_names(folder, [file[0] for file in files]))
        if found is not None and found.text == key:
            return History(length=columns.block.epochs, last_epoch=last_epoch, seconds_per_epoch=seconds, fetch=columns), bad
        earlier = Earlier(files=tuple(ReadFile(*file) for file in files), bad=bad, values=columns.stored)
        return self._read_journal(run_id, folder, earlier)

    def _read_journal(self, run_id: str, folder: RunFolder, earlier: Earlier | None) -> tuple[History, dict[str, int]]:
        before, writer = self._marks.key(_journal_names(folder)), self._writer
        names = journal.names(folder)
        found = self._marks.key(_journal_names(folder, names))
        # Names and identities belong together if the folder stayed as it was while both were taken.
        is_sure = before is not None and before == self._marks.key(_journal_names(folder))
        read = journal_columns.read(folder, earlier)
        history = History.of(read.values)
        data, kinds = encoded(read.values, run_id)
        block = writer.add(data, len(history), kinds)
        if block is None or writer.blocks is None:
            return history, read.bad
        history = replace(history, fetch=_Columns(writer.blocks, block, run_id, folder))
        if is_sure and found is not None and found.newest_ns < self._horizon_ns and [file.name for file in read.files] == names:
            files = [astuple(file) for file in read.files]
            self._new_journals[run_id] = [found.text, files, read.bad, astuple(block), history.last_epoch, history.seconds_per_epoch]
        return history, read.bad

    # --- writing ---

    @functools.cached_property
    def _writer(self) -> LayerWriter:
        return LayerWriter(self._folder)

    @functools.cached_property
    def _horizon_ns(self) -> int:
        """Files that were changed later than this are not kept. By the clock of the file system, and by ours."""
        return min(self._writer.time_ns, self._began_ns) - _RACY_NS

    def close(self, run_ids: Collection[str]) -> None:
        """Write what is new as one more layer, or all layers as one. run_ids: those of the plan; others are forgotten."""
        if self._new_finished or self._new_journals:
            merged = self._to_merge(len(run_ids))
            self._take_over(merged, run_ids)
            index = {
                "schema": SCHEMA,
                "code": code(),
                "pool": self._pool.values,
                "finished": self._new_finished,
                "journals": self._new_journals,
            }
            # Their order by name only decides which is asked first: a key that does not fit is never believed.
            if self._writer.finish(index, f"{time.time_ns():020d}-{secrets.token_hex(4)}{SUFFIX}"):
                _remove([*(layer.path for layer in merged), *self._useless, *_abandoned(self._folder)])
        if "_writer" in self.__dict__:
            self._writer.close()

    def _to_merge(self, runs: int) -> list[Layer]:
        """All layers once half of what they hold is out of date; of many layers all but the largest, which takes long to copy."""
        sizes = {id(layer): len(layer.index["finished"]) + len(layer.index["journals"]) for layer in self._layers}
        rows = sum(sizes.values()) + len(self._new_finished) + len(self._new_journals)
        if rows > 4 * runs:
            return self._layers
        largest = max(self._layers, key=lambda layer: sizes[id(layer)], default=None)
        return [layer for layer in self._layers if layer is not largest] if len(self._layers) >= _MOST_LAYERS else []

    def _take_over(self, merged: Sequence[Layer], run_ids: Collection[str]) -> None:
        """Copy what the layers hold of these runs and is not new. What cannot be copied is read again next time."""
        taken = {id(layer) for layer in merged}
        for run_id in run_ids:
            layer, row = self._finished.get(run_id, (None, []))
            if layer is not None and id(layer) in taken and run_id not in self._new_finished:
                self._new_finished[run_id] = self._pooled_anew(layer.index["pool"], row)
            layer, row = self._journals.get(run_id, (None, []))
            if layer is not None and id(layer) in taken and run_id not in self._new_journals:
                block = Block(*row[3])
                data = layer.blocks.raw(block)
                moved = self._writer.add(data, block.epochs, block.kinds) if len(data) == block.size else None
                if moved is not None:
                    self._new_journals[run_id] = [*row[:3], astuple(moved), *row[4:]]

    def _pooled_anew(self, pool: Sequence[Any], row: Sequence[Any]) -> list[Any]:
        config = {name: self._pool.place(pool[place]) for name, place in row[3].items()}
        result = dict(zip(_RESULT_KEYS, row[7], strict=True))
        result |= {name: self._pool.place(pool[result[name]]) for name in _SHARED}
        return [*row[:3], config, *row[4:7], list(result.values())]


def _names(folder: RunFolder, generations: Sequence[int], extra: Sequence[str] = ()) -> list[str]:
    """What a finished run is read from, relative to the sweep: the folder of attempts first, then files."""
    name = folder.path.name
    files = [f"{name}/attempts/{generation:06d}{end}" for generation in generations for end in (".json", ".end.json")]
    return [f"{name}/attempts", f"{name}/run.yaml", f"{name}/result.json", *files, *extra]


def _journal_names(folder: RunFolder, files: Sequence[str] = ()) -> list[str]:
    place = f"{folder.path.name}/metrics"
    return [place, *(f"{place}/{file}" for file in files)]


def _other_files(folder: RunFolder, generations: Sequence[int]) -> Iterator[str]:
    """Files that are looked at only for attempts that did not say themselves how and when they ended."""
    for generation in generations:
        end = attempts.read_end(folder, generation)
        if end is None or end.inferred or not is_time(end.facts.get("time")):
            yield f"{folder.path.name}/attempts/{folder.beat(generation).name}"
        if end is None or end.ending == "stopped":
            word = word_file(folder, attempts.read_claim(folder, generation))
            yield f"{folder.path.name}/attempts/{folder.rank_exit(generation, 0).name}"
            yield from [word.relative_to(folder.path.parent).as_posix()] if word else []


def _abandoned(folder: Path | None) -> list[Path]:
    """Temp files of collects that were killed."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.glob(".*.tmp") if folder else ():
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                found.append(path)
    return found


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
