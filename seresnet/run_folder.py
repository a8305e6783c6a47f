"""Every name inside a run folder, and the two records that other programs read: run.yaml and result.json.

Nothing here decides anything. No absolute path is written, so that an idle sweep can be moved. One invariant: a name that
carries a generation sorts by it.
"""

import functools
import re
import textwrap
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from seresnet import migrations
from seresnet.durable import DISK, Files, json_bytes, make_folder_durably, parse_json, publish, write_durably
from seresnet.errors import ConfigError
from seresnet.record_types import misfits

RUN_SCHEMA = migrations.CURRENT["run.yaml"]
RESULT_SCHEMA = migrations.CURRENT["result.json"]

#: Called right before a record gets its name, which it does not if this raises: its writer may have lost the run meanwhile.
Guard = Callable[[], None] | None

#: The same safe loader in C where PyYAML was built with it: a seventh of the time, and a sweep has 1,000 of these files.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the same bytes
_REWRITE = "Move run.yaml away, if it is there, and launch the sweep again to write it."
#: run.yaml as RunRecord.write lays it out, from its first line to its last, and the sections and values of its config.
OUTLINE = re.compile(
    rf"schema: {RUN_SCHEMA}\nrun_id: .+\nslug: .+\nconfig:\n((?:  .+\n)+)pinned:(?: null|(?:\n  .+)+)\nmarks:(?: \[\]|(?:\n[- ] .+)+)\n"
)
SECTION = re.compile(r"^  (\w+):\n((?:    .+\n)*)", re.MULTILINE)
_VALUE = re.compile(r"^    (\w+): (.+)$", re.MULTILINE)
_CHECKPOINT_NAME = re.compile(r"g(\d{4,})-s(\d{9,})-([0-9a-f]{16})\.safetensors")


@dataclass(frozen=True, kw_only=True, order=True)
class CheckpointName:
    """A checkpoint's place in time, read from its file name; sorts by generation, then step."""

    generation: int
    step: int
    digest: str  # first 16 hex digits of the SHA-256 of the file's bytes

    def __str__(self) -> str:
        return f"g{self.generation:04d}-s{self.step:09d}-{self.digest}.safetensors"

    @classmethod
    def parse(cls, name: str) -> "CheckpointName | None":
        """None for a name that is not a checkpoint's."""
        match = _CHECKPOINT_NAME.fullmatch(name)
        parsed = match and cls(generation=int(match[1]), step=int(match[2]), digest=match[3])
        return parsed if str(parsed) == name else None  # g00003- is not how generation 3 is written


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path

    @property
    def run_yaml(self) -> Path:
        return self.path / "run.yaml"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "ckpt"

    @property
    def set_aside(self) -> Path:
        return self.path / "ckpt" / "bad"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def cleaned(self) -> Path:
        """What was removed on purpose, see seresnet.cleaned."""
        return self.path / "cleaned.json"

    def claim(self, generation: int) -> Path:
        return self.attempts / f"{generation:06d}.json"

    def beat(self, generation: int) -> Path:
        return self.attempts / f"{generation:06d}.beat"

    def end(self, generation: int) -> Path:
        return self.attempts / f"{generation:06d}.end.json"

    def environment(self, generation: int) -> Path:
        """What the attempt ran on: device, code, versions; written by rank 0 when it starts."""
        return self.attempts / f"{generation:06d}.env.json"

    def rank_exit(self, generation: int, rank: int) -> Path:
        """Where a rank writes how it ends, before it exits: its code survives torchrun and a lost supervisor."""
        return self.attempts / f"{generation:06d}.exit-{rank}.json"

    def stacks(self, generation: int, rank: int) -> Path:
        """Where every thread of a rank was when its watchdog gave up."""
        return self.attempts / f"{generation:06d}.stacks-{rank}.txt"

    def flight_record(self, generation: int, rank: int) -> Path:
        """What NCCL was doing on a rank when its watchdog gave up."""
        return self.attempts / f"{generation:06d}.nccl-{rank}.json"

    def replay(self, generation: int) -> Path:
        """The replays that an attempt began or ended, see seresnet.replay."""
        return self.attempts / f"{generation:06d}.replay.json"

    def gpu_use(self, generation: int) -> Path:
        """What the supervisor sampled of the task's GPUs, a line a minute; see hpc.gpu_use."""
        return self.attempts / f"{generation:06d}.use.jsonl"

    def journal(self, generation: int) -> Path:
        return self.metrics / f"g{generation:04d}.jsonl"

    @property
    def profile(self) -> Path:
        """Traces of some steps, made on request; see seresnet.profiling. Nothing else reads them."""
        return self.path / "profile"

    def create(self, files: Files = DISK) -> None:
        """Make the folder and its subfolders durably; fine if they exist."""
        # A checkpoint is only as durable as the names of the folders that it lies in.
        make_folder_durably(self.path, files)
        for folder in (self.attempts, self.checkpoints, self.metrics):
            files.make_folder(folder)
        files.sync_folder(self.path)


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The checkpoint that a fork began with, and what that run itself was forked from: names and digests, never a path."""

    run_id: str
    slug: str
    step: int
    checkpoint: str  # its file name
    state_digest: str
    parent: "Parent | None" = None

    @classmethod
    def of(cls, value: Any) -> "Parent | None":
        """From what asdict gave; None for None. Raises ValueError for anything else."""
        if value is None:
            return None
        if not isinstance(value, Mapping) or any(key.name not in value for key in fields(cls) if key.name != "parent"):
            raise ValueError(f"parent is {value!r}, not the link of a fork")
        known = {key.name: value[key.name] for key in fields(cls) if key.name in value}
        link = cls(**{**known, "parent": cls.of(value.get("parent"))})
        if bad := misfits(link):
            raise ValueError(f"parent has the wrong type of {', '.join(bad)}")
        return link

    def __str__(self) -> str:
        return f"run {self.run_id} ({self.slug}) at step {self.step}"


def _dump(value: Any) -> str:
    # Wide: a long path stays on its line, whatever its indentation.
    return str(yaml.dump(value, Dumper=_DUMPER, sort_keys=False, width=100_000))


def _section(keys: Mapping[str, Any]) -> str:
    """The keys of one section of a config, a line or a list each."""
    if not keys:
        return "{}\n"
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
    return "".join(_line(key, value) if isinstance(value, Hashable) else _dump({key: value}) for key, value in plain.items())


@functools.lru_cache(maxsize=4096, typed=True)
def _line(key: str, value: Any) -> str:
    """Cached: the runs of a sweep differ in a key or two, and a whole dump takes 2 ms a run, which a sweep of 1,000 waits for."""
    return _dump({key: list(value) if isinstance(value, tuple) else value})


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """run.yaml: the resolved config, and from the first start on what must not change in silence."""

    run_id: str
    slug: str
    config: dict[str, dict[str, Any]]  # config.to_dict(RunConfig)
    pinned: dict[str, Any] | None = None  # data_digest, world_size and the numeric keys; None before the first start
    marks: tuple[str, ...] = ()  # why this run is no longer tier T1, one line each
    parent: Parent | None = None  # of a fork; see seresnet.fork

    def write(self, folder: RunFolder, files: Files = DISK, guard: Guard = None) -> None:
        """Replace run.yaml durably. guard: see write_durably."""
        config = [f"  {section}:\n{textwrap.indent(_section(keys), '    ')}" for section, keys in self.config.items()]
        head = {"schema": RUN_SCHEMA, "run_id": self.run_id, "slug": self.slug}
        rest = {"pinned": self.pinned, "marks": list(self.marks), **({"parent": asdict(self.parent)} if self.parent else {})}
        write_durably(folder.run_yaml, "".join([_dump(head), "config:\n", *config, _dump(rest)]).encode(), files, guard)

    @classmethod
    def read(cls, folder: RunFolder) -> "RunRecord":
        """Raises ConfigError when run.yaml is missing, is not YAML, or is of another schema."""
        try:
            value = yaml.load(folder.run_yaml.read_text(), LOADER)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{folder.run_yaml}: cannot be read: {error}. {_REWRITE}") from error
        try:
            value = migrations.to_current("run.yaml", value)
            value["marks"], value["parent"] = tuple(value.get("marks") or ()), Parent.of(value.get("parent"))
        except ConfigError as error:
            raise ConfigError(f"{folder.run_yaml}: {error}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{folder.run_yaml}: {error}. {_REWRITE}") from error
        missing = [key for key in ("run_id", "slug", "config") if key not in value]
        if missing:
            raise ConfigError(f"{folder.run_yaml}: has no {', '.join(missing)}. {_REWRITE}")
        return cls(**{key.name: value[key.name] for key in fields(cls) if key.name in value})

    @property
    def epochs(self) -> int:
        """How many epochs are asked for. Raises ConfigError if the config does not say."""
        try:
            return int(self.config["train"]["epochs"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"run {self.run_id}: run.yaml says no number of train.epochs. {_REWRITE}") from error


@dataclass(frozen=True, kw_only=True)
class RunHead:
    """The few values of run.yaml that say how far a run shall go and what it occupies: for readers of 1,000 runs at once."""

    epochs: int
    ranks: int = 1
    threads: int = 1
    device: str | None = None  # "cpu" or "cuda"
    val_images: int = 0
    tier: str = "T1"  # T2 where run.yaml carries a mark

    @classmethod
    def read(cls, folder: RunFolder) -> "RunHead":
        """Raises ConfigError as RunRecord does. Lines as RunRecord writes them are found without a parser; anything else is parsed."""
        try:
            text = folder.run_yaml.read_text()
        except (OSError, ValueError):
            text = ""
        return cls._scan(text) or cls.of(RunRecord.read(folder))

    @classmethod
    def of(cls, record: RunRecord) -> "RunHead":
        """Raises ConfigError where the record says no number of epochs."""
        epochs = record.epochs
        data, train = (record.config.get(section) for section in ("data", "train"))
        found: dict[str, Any] = {**(train if isinstance(train, dict) else {}), "val_images": (data or {}).get("val_images")}
        numbers = {key: found[key] for key in ("ranks", "threads", "val_images") if type(found.get(key)) is int}
        device = found.get("device")
        return cls(epochs=epochs, device=device if isinstance(device, str) else None, tier="T2" if record.marks else "T1", **numbers)

    @classmethod
    def _scan(cls, text: str) -> "RunHead | None":
        """None unless the whole text has the outline of a record of this version and every value stands in its place, once."""
        whole = OUTLINE.fullmatch(text)
        sections = dict(SECTION.findall(whole[1])) if whole else {}
        data, train = (_VALUE.findall(sections.get(name, "")) for name in ("data", "train"))
        found = {key: value for key, value in train if key in ("epochs", "ranks", "threads", "device")}
        found |= {key: value for key, value in data if key == "val_images"}
        is_once = len({key for key, _ in train}) == len(train) and len({key for key, _ in data}) == len(data)
        numbers = {key: int(value) for key, value in found.items() if value.isascii() and value.isdigit()}
        if not is_once or numbers.keys() != {"epochs", "ranks", "threads", "val_images"} or found.get("device") not in ("cpu", "cuda"):
            return None
        return cls(device=found["device"], tier="T1" if text.endswith("\nmarks: []\n") else "T2", **numbers)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """result.json: the final numbers of one run, written once, last of all. Percentages are 0..100."""

    run_id: str
    slug: str
    epochs: int
    step: int
    parameters: int | None  # None where a program does not say
    state_digest: str
    data_digest: str
    data_name: str  # for people: "CIFAR-10 (JPEG)"
    train_images: int
    val_images: int
    test_images: int
    classes: list[str]
    train_loss: float | None
    last_val_top1_pct: float | None  # None without a validation split
    last_test_top1_pct: float
    last_test_loss: float | None
    val_chosen_epoch: int | None  # epochs count from 1
    val_chosen_val_top1_pct: float | None
    val_chosen_test_top1_pct: float | None
    best_on_test_epoch: int
    best_on_test_top1_pct: float
    confusion: list[list[int]]  # last epoch, test set: [true class][predicted class]
    seconds: float  # of training and evaluation over all attempts, redone work not counted
    attempts: int
    tier: str  # T1, or T2 when run.yaml carries a mark
    world_size: int
    device: str  # "cpu: AMD EPYC" or "cuda: NVIDIA H100 ..."
    amp: str
    code_digest: str
    commit: str | None
    versions: dict[str, str] = field(default_factory=dict)
    parent: Parent | None = None  # of a fork, whose numbers are those of the epochs after it
    multiply_adds: int | None = None  # of one image's forward pass; None in results of older versions
    averaged: bool = False  # whether the numbers are those of averaged weights, see optim.ema_decay
    schema: int = RESULT_SCHEMA

    def write(self, folder: RunFolder, files: Files = DISK, guard: Guard = None) -> None:
        """Write result.json durably, and once: one of as many epochs by this attempt or a newer one stays. guard: see write_durably."""
        payload = json_bytes(asdict(self))
        # A link and no rename: who was stopped at this very call for an hour finds the name taken by whoever took over.
        if publish(folder.result, payload, files, guard) or self._is_covered(folder, files):
            files.sync_folder(folder.path)
        else:
            write_durably(folder.result, payload, files, guard)

    def _is_covered(self, folder: RunFolder, files: Files) -> bool:
        try:
            known = TrainResult.read(folder, files)
        except ConfigError:
            return False
        return known is not None and (known.epochs, known.attempts) >= (self.epochs, self.attempts)

    @classmethod
    def read(cls, folder: RunFolder, files: Files = DISK, *, is_whole: bool = True) -> "TrainResult | None":
        """None if the run has no result yet; raises ConfigError if there is one that this version cannot read.

        is_whole: also what only the journal of a program knows, which takes a hundred times as long.
        """
        try:
            value = parse_json(files.read(folder.result))
            if isinstance(value, dict) and "schema" not in value and "program" in (record := RunRecord.read(folder)).config:
                from seresnet import journal, own_result  # which read what lies in folders of ours

                value = own_result.completed(value, folder, record, RESULT_SCHEMA, journal.read(folder) if is_whole else ())
            value = migrations.to_current("result.json", value)
            value["parent"] = Parent.of(value.get("parent"))
            value.setdefault("multiply_adds", None)
            value.setdefault("averaged", False)
            result = cls(**{key.name: value[key.name] for key in fields(cls)})
            result._check()
            return result
        except FileNotFoundError:
            return None
        except ConfigError as error:
            raise ConfigError(f"{folder.result}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder.result}: not a result of this version: {error}. Move it away to train the run again.") from error

    def _check(self) -> None:
        """Raise ValueError for values that no training writes."""
        bad = misfits(self)
        if bad:
            raise ValueError("wrong type or not finite: " + ", ".join(bad))
        size = len(self.classes)
        if len(self.confusion) != size or any(len(row) != size for row in self.confusion):
            raise ValueError(f"confusion is not {size} x {size}")
        for key in ("parameters", "multiply_adds", "train_images", "val_images", "test_images", "step", "seconds"):
            if (getattr(self, key) or 0) < 0:
                raise ValueError(f"{key} is {getattr(self, key)}, below zero")
        if any(count < 0 for row in self.confusion for count in row):
            raise ValueError("confusion counts fewer than zero images")
        for key in ("last_test_top1_pct", "best_on_test_top1_pct", "val_chosen_test_top1_pct"):
            value = getattr(self, key)
            if value is not None and not 0 <= value <= 100:
                raise ValueError(f"{key} is {value}, not a percentage")


def is_finished(folder: RunFolder, epochs: int | None = None) -> bool:
    """Whether the run has a result of at least `epochs` epochs, by default as many as run.yaml asks for.

    A result alone does not say so: train.epochs may have been raised since. Raises ConfigError for a result.json that cannot be read,
    or a run.yaml that must be.
    """
    result = TrainResult.read(folder, is_whole=False)
    if result is None:
        return False
    return result.epochs >= (RunHead.read(folder).epochs if epochs is None else epochs)
