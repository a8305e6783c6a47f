"""`hpc.launch --reproduce RUN`: train a finished run again with its own code, here, and say whether the same bits come out.

Comparing is here, training is seresnet.train's in the run's own snapshot. One invariant: the run that is reproduced is only read; what is
trained lies in a folder of its own below reproduced/.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc import code_snapshot, local, own_program, ranks
from hpc.paths import SweepFolder
from hpc.plan_view import count
from hpc.progress_view import percent
from hpc.ranks import RankGroup, describe
from seresnet import attempts, journal, prepare, provenance
from seresnet.array_file import read_header
from seresnet.checkpoint import find_runs
from seresnet.config import RunConfig, to_dict_as_before
from seresnet.config_file import config_from_dict
from seresnet.errors import ConfigError, DataError
from seresnet.exits import Exit
from seresnet.journal import EpochRecord
from seresnet.run_folder import RunFolder, RunRecord, TrainResult
from seresnet.signals import STOP_SIGNALS, StopFlag

SAME, DIFFERS = 0, 1
_LINE_EVERY_S = 10.0
#: Of a result: who made it, when and where, or what is compared by itself.
_NO_NUMBERS = frozenset(
    ("run_id", "slug", "seconds", "attempts", "tier", "device", "code_digest", "commit", "versions", "parent", "schema", "state_digest")
)
#: Of an epoch: what training computes, and no clock.
_OF_EPOCH = ("step", "lr", "train_loss", "train_top1_pct", "val_loss", "val_top1_pct", "test_loss", "test_top1_pct", "skipped_steps")


@dataclass(frozen=True, kw_only=True)
class Original:
    """The run that is trained again, as its folder tells it."""

    folder: RunFolder
    record: RunRecord
    config: RunConfig  # with absolute paths of its data
    result: TrainResult
    code: Path  # the folder that holds the packages to train with


def reproduce(name: Path, runs_dir: Path | None = None) -> int:
    """Train it again and print the verdict: 0 the same bits, 1 not, 130 Ctrl-C. Raises ToolkitError where that cannot be done."""
    original = _original(name)
    known = _differences_before(original)
    folder = _prepare(original, runs_dir)
    print(f"reproduces {original.record.slug} ({original.record.run_id}) with {_code_words(original)}, in {folder.path}")
    print(
        "\n".join(["differs from then:", *(f"  {line}" for line in known)]) if known else "versions, device, code and data are as they were"
    )
    sys.stdout.flush()
    if not _train(original, folder):
        print(f"stopped; the same command goes on with it, from {folder.path}", file=sys.stderr)
        return 130
    result = TrainResult.read(folder)
    assert result is not None, "it has just been finished"
    lines, is_same = verdict(original.result, result, journal.read(original.folder), journal.read(folder))
    print("\n".join([*lines, *(f"  environment: {line}" for line in _environment(original.result, result))]))
    return SAME if is_same else DIFFERS


# --- what there was ---


def _original(name: Path) -> Original:
    found = find_runs(name)
    if len(found) != 1:
        names = ", ".join(str(each.path) for each in found[:5])
        raise ConfigError(f"--reproduce {name}: holds {count(len(found), 'run')}. Give one of them, such as {names}.")
    folder = found[0]
    record, result = RunRecord.read(folder), TrainResult.read(folder)
    if result is None:
        raise ConfigError(
            f"--reproduce {name}: {folder.path} has no result.json, so there is nothing to compare with. Finish the run first."
        )
    if record.parent is not None:
        raise ConfigError(f"--reproduce {name}: a fork of {record.parent}. Reproduce that run, and fork it again: --fork RUN/ckpt/FILE.")
    config = config_from_dict(record.config, str(folder.run_yaml))
    own_program.refuse_programs([config], "--reproduce")
    where = prepare.data_dir(config.data, os.environ).absolute()
    path = str(Path(config.data.path).expanduser().absolute()) if config.data.path else None
    config = replace(config, data=replace(config.data, dir=str(where), path=path))
    return Original(folder=folder, record=record, config=config, result=result, code=_code(folder, result))


def _code(folder: RunFolder, result: TrainResult) -> Path:
    """Where the code lies that made the result: a snapshot of its sweep, else the code that runs here, whatever it is."""
    for path in sorted(SweepFolder(folder.path.parent).codes.glob("[0-9]*"), reverse=True):
        if provenance.code_digest(path / "seresnet") == result.code_digest:
            return path.resolve()
    return code_snapshot.ROOT


def _code_words(original: Original) -> str:
    if original.code == code_snapshot.ROOT:
        return "the code that is here"
    return f"its own code, {original.code.parent.name}/{original.code.name}"


def _differences_before(original: Original) -> list[str]:
    """What can be told before a step is trained. Raises DataError where the data are others: then nothing can come out the same."""
    result = original.result
    lines = [f"{key}: {old} -> {new}" for key, old, new in _changed(result.versions, provenance.versions())]
    if (code := provenance.code_digest(original.code / "seresnet")) != result.code_digest:
        lines.append(f"code: {result.code_digest} -> {code}; no snapshot of the sweep is the one that made the result")
    commit, is_dirty = provenance.commit_and_dirty(original.code)
    here = f"{commit}{'+dirty' if is_dirty else ''}" if commit else None
    if here != result.commit:
        lines.append(f"commit: {result.commit} -> {here}")
    if result.device.startswith("cpu: ") and (device := f"cpu: {provenance.cpu_model()}") != result.device:
        lines.append(f"device: {result.device} -> {device}")
    if (ranks_now := original.config.train.ranks) != result.world_size:
        lines.append(f"world size: {result.world_size} -> {ranks_now}")
    lines += [f"the run itself is no longer tier T1: {mark}" for mark in original.record.marks]
    return [*lines, *_data_differences(original)]


def _data_differences(original: Original) -> Iterator[str]:
    data, wanted, place = original.config.data, original.result.data_digest, Path(original.config.data.dir or "")
    if data.target is not None:
        # Never called here. What it gives in training is compared with what run.yaml has pinned.
        if prepare.find_with_digest(data, place, wanted) is None:
            yield f"data: what {data.target} gave is not in {place}; it is called when training starts"
        return
    found = prepare.find_prepared(data, place)
    if found is None:
        yield f"data: {data.name} is not prepared in {place}; it is when training starts, if its source is at hand"
    elif (digest := read_header(found).digest) != wanted:
        raise DataError(
            f"{found}: data digest is {digest[:16]}, and {original.record.slug} was trained on {wanted[:16]}. "
            "Point HPC_DATA_DIR at the data that it was trained on."
        )


def _changed(old: dict[str, str], new: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(key, old.get(key, "none"), new.get(key, "none")) for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


# --- training ---


def _prepare(original: Original, runs_dir: Path | None) -> RunFolder:
    """The folder to train in: an unfinished one of an earlier call, else a new one."""
    above = (runs_dir or _runs_dir(original)).absolute() / "reproduced"
    pattern = re.compile(rf"{re.escape(original.folder.path.resolve().name)}-(\d{{4}})")
    numbers = sorted(int(match[1]) for path in above.glob("*-????") if (match := pattern.fullmatch(path.name)))
    # Pinned as the original: other data are refused by training itself, and what else differs becomes a mark.
    record = replace(original.record, config=to_dict_as_before(original.config, original.record.config), marks=())
    for number in numbers[-1:]:
        folder = RunFolder(path=above / f"{original.folder.path.resolve().name}-{number:04d}")
        if not folder.result.exists() and folder.run_yaml.exists() and RunRecord.read(folder).config == record.config:
            return folder
    folder = RunFolder(path=above / f"{original.folder.path.resolve().name}-{max(numbers, default=0) + 1:04d}")
    try:
        folder.create()
        record.write(folder)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder.path}: {error.strerror}. Say --runs-dir DIR, a folder that you may write.") from error
    return folder


def _runs_dir(original: Original) -> Path:
    """Beside the run's sweep; beside a run that belongs to none."""
    above = original.folder.path.resolve().parent
    return above.parent if (above / "plan.json").exists() else above


def _train(original: Original, folder: RunFolder) -> bool:
    """Train to the end; False if somebody asked to stop before that. Raises ConfigError where training fails."""
    environ = {name: value for name, value in os.environ.items() if not local.NOT_FOR_CHILDREN.match(name)}
    command = [sys.executable, "-m", "seresnet.train", "--run-dir", str(folder.path)]
    stop, output = StopFlag(), folder.path / "output.txt"
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop.install()
    group = RankGroup(command, original.config.train.ranks, env={**environ, "PYTHONUNBUFFERED": "1"}, cwd=original.code, log=output)
    try:
        told = _Told(folder, original.config.train.epochs)
        while (outcome := group.poll(stop.signal_name)) is None:
            told.look()
            time.sleep(ranks.POLL_S)
    finally:
        group.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    ended = describe(folder, attempts.newest_generation(folder), outcome)
    if ended.code == Exit.STOPPED:
        return False
    if ended.code != Exit.FINISHED:
        raise ConfigError(f"{folder.path}: {ended.ending}: {ended.reason}. Its output: {output}")
    return True


class _Told:
    """Says now and then how far it is."""

    def __init__(self, folder: RunFolder, epochs: int) -> None:
        self._folder, self._epochs = folder, epochs
        self._looked, self._epoch = time.monotonic(), 0

    def look(self) -> None:
        if time.monotonic() - self._looked < _LINE_EVERY_S:
            return
        self._looked = time.monotonic()
        last = journal.read_last(self._folder, 1)
        if last and last[0].epoch != self._epoch:
            self._epoch = last[0].epoch
            print(f"epoch {self._epoch}/{self._epochs}, test {percent(last[0].test_top1_pct)}", flush=True)


# --- comparing ---


def verdict(
    old: TrainResult, new: TrainResult, old_epochs: Sequence[EpochRecord], new_epochs: Sequence[EpochRecord]
) -> tuple[list[str], bool]:
    """What to print, and whether the bits are the same: those of the state, and every number of the result."""
    numbers = [f"{key}: {_short(was)} -> {_short(now)}" for key, was, now in _numbers(old, new)]
    if old.state_digest == new.state_digest and not numbers:
        epochs = f"after {count(new.epochs, 'epoch')} and {count(new.step, 'step')}"
        return [f"SAME BITS: state_digest {new.state_digest[:16]} {epochs}, and every number of the result is equal"], True
    lines = [f"state_digest: {old.state_digest[:16]} -> {new.state_digest[:16]}"] if old.state_digest != new.state_digest else []
    if (epoch := _first_different(old_epochs, new_epochs)) is not None:
        lines.append(f"the first epoch that differs: {epoch}")
    return ["DIFFERS:", *(f"  {line}" for line in [*lines, *numbers])], False


def _numbers(old: TrainResult, new: TrainResult) -> Iterator[tuple[str, object, object]]:
    for key in TrainResult.__dataclass_fields__:
        if key not in _NO_NUMBERS and getattr(old, key) != getattr(new, key):
            yield key, getattr(old, key), getattr(new, key)


def _first_different(old: Sequence[EpochRecord], new: Sequence[EpochRecord]) -> int | None:
    known = {record.epoch: record for record in new}
    pairs = [(record, known[record.epoch]) for record in old if record.epoch in known]
    return next((was.epoch for was, now in pairs if any(getattr(was, key) != getattr(now, key) for key in _OF_EPOCH)), None)


def _environment(old: TrainResult, new: TrainResult) -> list[str]:
    """What was not as it was, as the two results have it."""
    facts = [f"{key}: {was} -> {now}" for key, was, now in _changed(old.versions, new.versions)]
    keys = ("device", "world_size", "amp", "code_digest", "commit", "data_digest")
    return facts + [f"{key}: {getattr(old, key)} -> {getattr(new, key)}" for key in keys if getattr(old, key) != getattr(new, key)]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
