"""A run that begins with another run's checkpoint: which one, whether it fits, and the file of generation 0 that makes it the fork's own.

Torch is imported only where tensors are compared. Nothing is ever written into the parent's folder. One invariant: from the moment that the
file of generation 0 is durable, every start of the folder knows that it is a fork, and of what, with or without --fork.
"""

import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from seresnet import checkpoint_files, journal
from seresnet.attempts import newest_claim
from seresnet.checkpoint_files import Header, TrustedFile, candidates, digest_of, list_checkpoints, metadata, read_record, read_trusted
from seresnet.config import RunConfig, iter_keys, run_id, schedule_epochs, to_dict
from seresnet.config_file import config_from_dict
from seresnet.durable import write_durably
from seresnet.errors import CheckpointError, ConfigError
from seresnet.run_folder import CheckpointName, Parent, RunFolder, RunRecord
from seresnet.tensor_file import TensorPlace, layout, state_digest_of, with_metadata, with_tensors

log = logging.getLogger("seresnet")

#: What makes step N the same place in a fork: which images there are to train on, and how many a step takes.
_PLACE_KEYS = (
    *("data.name", "data.target", "data.args", "data.split_seed", "data.val_images", "data.train_images"),
    "train.global_batch_size",
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a fork knows of its parent; stands in its file of generation 0, so that no later start needs the parent's folder."""

    parent: Parent
    pinned: dict[str, Any] | None  # as the parent ended: what the fork does on another machine is marked
    marks: tuple[str, ...]  # why the parent is not tier T1, and so neither is the fork


@dataclass(frozen=True, kw_only=True)
class Fork:
    """What --fork names, read and found to fit as far as can be told without torch."""

    origin: Origin
    payload: bytes  # of the parent's checkpoint
    steps_per_epoch: int | None = None  # as the parent's journal has it; None where it has no epoch yet


def plan_fork(source: Path, config: RunConfig) -> Fork:
    """Read what --fork names: a run's folder, for its newest trusted checkpoint, or one of its checkpoint files. Changes nothing.

    Raises ConfigError where the config and that checkpoint cannot be one run, and CheckpointError where there is none to be trusted.
    """
    folder, chosen = _named(source)
    record = RunRecord.read(folder)
    found = _newest(folder) if chosen is None else _chosen(folder, chosen)
    _refuse_another_place(folder, record, config, found)
    _refuse_nothing_to_train(folder, config, found.name)
    name, digest = found.name, state_digest_of(found.payload)
    parent = Parent(run_id=record.run_id, slug=record.slug, step=name.step, checkpoint=str(name), state_digest=digest, parent=record.parent)
    marks = tuple(f"parent {record.run_id}: {mark}" for mark in record.marks)
    size = next((line.step // line.epoch for line in journal.read(folder) if line.step % line.epoch == 0), None)
    return Fork(origin=Origin(parent=parent, pinned=record.pinned, marks=marks), payload=found.payload, steps_per_epoch=size)


def refuse_other_parent(folder: RunFolder, source: Path, known: Parent) -> None:
    """Raise ConfigError if --fork names another run, or another checkpoint, than the folder was forked from."""
    try:
        found, chosen = _named(source)
        named = RunRecord.read(found).run_id
    except ConfigError as error:
        log.warning("parent_not_read its state is in this folder, the run goes on: %s", error)
        return
    if named != known.run_id or (chosen is not None and str(chosen) != known.checkpoint):
        raise ConfigError(
            f"{folder.path}: this run was forked from {known}, file {known.checkpoint}; --fork names {chosen or f'run {named}'}. "
            "Leave --fork away to go on with it, or choose another folder."
        )


def plan_again(folder: RunFolder, source: Path, config: RunConfig, known: Parent) -> Fork:
    """For a fork that has lost all of its checkpoints: its parent's state once more, from the very file that it began with.

    Raises as plan_fork does.
    """
    found, _ = _named(source)
    fork = plan_fork(found.checkpoints / known.checkpoint, config)
    if fork.origin.parent.state_digest != known.state_digest:
        raise ConfigError(f"{folder.path}: was forked from {known}, whose state {source} no longer holds. Choose a new folder.")
    return replace(fork, origin=replace(fork.origin, parent=known))


def origin_of(folder: RunFolder) -> Origin | None:
    """What the folder was forked from, by its file of generation 0; None for a run of its own."""
    found = _imported(folder)
    return found[0][1] if found else None


def import_parent(folder: RunFolder, fork: Fork, config: RunConfig) -> str:
    """Write the parent's state into the folder as its checkpoint of generation 0, durably; the name of the file to begin with.

    Done again it changes nothing. Raises ConfigError, with nothing written, where the folder has another parent.
    """
    known = [name for name, origin in _imported(folder) if origin.parent == fork.origin.parent]
    others = [str(name) for name in list_checkpoints(folder) if name not in known]
    if not known and others:
        raise ConfigError(f"{folder.checkpoints}: holds checkpoints already, such as {others[0]}. A fork needs a folder of its own.")
    if not known:
        known = [_write(folder, fork, config)]
        log.info("forked parent=%s as=%s %s", fork.origin.parent.run_id, known[0], _going_on(fork, config))
    # A claim from before the import, which names no base, would hide the file.
    return str(checkpoint_files.newest_trusted(folder) or known[0])


def fork_record(origin: Origin, slug: str, config: RunConfig) -> RunRecord:
    """run.yaml of a fork at its first start."""
    own_id = run_id(config, origin.parent.state_digest)
    return RunRecord(run_id=own_id, slug=slug, config=to_dict(config), pinned=origin.pinned, marks=origin.marks, parent=origin.parent)


def _named(source: Path) -> tuple[RunFolder, CheckpointName | None]:
    """The run and the checkpoint that --fork means; None = its newest."""
    if source.is_dir():
        return RunFolder(path=source.parent if source.name == "ckpt" and not (source / "run.yaml").exists() else source), None
    name = CheckpointName.parse(source.name)
    if name is not None and source.parent.name == "ckpt":
        return RunFolder(path=source.parent.parent), name
    if name is not None and source.parent.name == "bad":
        raise ConfigError(f"--fork {source}: lies in ckpt/bad/, because it is damaged or suspect. {_there_are(source.parent.parent)}")
    missing = "there is no such file or folder" if not source.exists() else "neither the folder of a run nor a checkpoint in its ckpt/"
    raise ConfigError(f"--fork {source}: {missing}. {_there_are(source.parent) or 'Give the folder that holds run.yaml.'}")


def _there_are(checkpoints: Path) -> str:
    """Which files somebody may have meant, newest first."""
    if checkpoints.name != "ckpt":
        return ""
    names = list_checkpoints(RunFolder(path=checkpoints.parent))[::-1]
    more = f", and {len(names) - 6} more" if len(names) > 6 else ""
    return f"There are: {', '.join(map(str, names[:6]))}{more}." if names else f"{checkpoints} holds no checkpoint."


def _chosen(folder: RunFolder, name: CheckpointName) -> TrustedFile:
    try:
        payload = read_trusted(folder, name)
    except FileNotFoundError as error:
        place = folder.checkpoints / str(name)
        raise CheckpointError(f"{place}: there is no such file. {_there_are(folder.checkpoints)}") from error
    except OSError as error:
        raise CheckpointError(f"{folder.checkpoints / str(name)}: cannot be read: {error.strerror or error}. Name another.") from error
    if payload is None:
        raise CheckpointError(f"{folder.checkpoints / str(name)}: does not match its digest. Name another, or the run's folder.")
    return TrustedFile(name=name, payload=payload)


def _newest(folder: RunFolder) -> TrustedFile:
    """Where the parent itself would go on; unlike its own start this sets nothing aside."""
    claim = newest_claim(folder)
    for name in candidates(list_checkpoints(folder), claim if claim is not None and claim.owner is not None else None):
        try:
            payload = read_trusted(folder, name)
        except OSError:  # also one that its owner has just deleted
            continue
        if payload is not None:
            return TrustedFile(name=name, payload=payload)
    raise CheckpointError(f"{folder.checkpoints}: no checkpoint can be trusted, so nothing can be forked. Let the run save one first.")


def _refuse_another_place(folder: RunFolder, record: RunRecord, config: RunConfig, found: TrustedFile) -> None:
    """A step must be the same place in the same data; in the middle of an epoch also the same order of them."""
    is_boundary = read_record(found.payload)["header"].epoch_boundary
    keys = _PLACE_KEYS if is_boundary else (*_PLACE_KEYS, "train.seed")
    old = {key: value for key, _, value, _ in iter_keys(config_from_dict(record.config, str(folder.run_yaml)))}
    new = {key: value for key, _, value, _ in iter_keys(config)}
    diff = [f"  {key}: {old[key]} -> {new[key]}" for key in keys if old[key] != new[key]]
    if diff:
        seed = "" if is_boundary else " train.seed may change where an epoch ends: name such a checkpoint."
        raise ConfigError(
            f"{folder.path}: step {found.name.step} would mean something else in the fork:\n"
            + "\n".join(diff)
            + f"\nRestore these keys, or start a run of its own without --fork.{seed}"
        )


def _refuse_nothing_to_train(folder: RunFolder, config: RunConfig, name: CheckpointName) -> None:
    done = next((record.epoch for record in journal.read(folder) if record.step == name.step), None)
    if done is not None and config.train.epochs <= done:
        raise ConfigError(
            f"train.epochs: {config.train.epochs}, and {folder.path} has {done} epochs behind it at step {name.step}: nothing is left to "
            "train. Raise train.epochs (and optim.schedule_epochs), or name an earlier checkpoint: --fork RUN_DIR/ckpt/FILE."
        )


def refuse_other_tensors(fork: Fork, config: RunConfig) -> None:
    """Raise ConfigError with a diff where the config's network or optimiser cannot take the parent's state. Needs torch."""
    if config.model.target is not None:
        return  # how many classes it is made for is known with its data; loading the state compares then
    renamed = read_record(fork.payload)["renamed"]
    saved = {renamed.get(name, name): _text(place) for name, place in layout(fork.payload).items()}
    saved = {name: saved[source] for name, source in _first_tensors(saved, config).items()}
    own = _own_tensors(config, classes=_classes(fork))
    names = sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name))
    if names:
        lines = [f"  {name}: {saved.get(name, 'none')} -> {own.get(name, 'none')}" for name in names[:12]]
        more = [f"  and {len(names) - 12} more"] if len(names) > 12 else []
        raise ConfigError(
            f"--fork {fork.origin.parent}: the config's network or optimiser has other tensors:\n"
            + "\n".join([*lines, *more])
            + "\nRestore the model section (and whether optim.momentum is 0), or start a run of its own without --fork."
        )


def _classes(fork: Fork) -> int:
    bias = layout(fork.payload).get("model/head.bias")
    return bias.shape[0] if bias is not None and len(bias.shape) == 1 else 1


def _own_tensors(config: RunConfig, classes: int) -> dict[str, str]:
    """What a state of this config holds, by its names: dtype and shape as text."""
    from seresnet.models import build_model

    model = build_model(config.model, classes, config.train.seed)
    found = {f"model/{name}": value for name, value in model.state_dict().items()}
    if config.optim.momentum:
        found |= {f"momentum/{name}": value for name, value in model.named_parameters()}
    if config.optim.ema_decay:
        found |= {f"ema/{name}": value for name, value in model.state_dict().items()}
    return {name: f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.") for name, value in found.items()}


def _first_tensors(names: Collection[str], config: RunConfig) -> dict[str, str]:
    """What the fork begins with: name -> which of the parent's tensors it is.

    An average that the parent does not keep begins with the parent's weights, as that of a fresh run begins with its first ones; one
    that the fork does not want is left behind.
    """
    first = {name: name for name in names if not name.startswith("ema/")}
    if config.optim.ema_decay:
        averages = {f"ema/{name.removeprefix('model/')}": name for name in first if name.startswith("model/")}
        first |= {name: name if name in names else source for name, source in averages.items()}
    return first


def _text(place: TensorPlace) -> str:
    return f"{place.dtype} {place.shape}"


def _write(folder: RunFolder, fork: Fork, config: RunConfig) -> CheckpointName:
    record = read_record(fork.payload)
    # The best so far is the parent's: a fork's best, and the weights kept for it, come from its own epochs.
    scalars = {**record["scalars"], "best_value": None, "best_epoch": None}
    header = Header(generation=0, step=fork.origin.parent.step, epoch_boundary=record["header"].epoch_boundary)
    payload = with_metadata(fork.payload, metadata(header, scalars, asdict(fork.origin)), record["renamed"])
    names = layout(payload).keys()
    first = _first_tensors(names, config)
    if first.keys() != names:
        payload = with_tensors(payload, first)
        log.info("fork_average %s", "begins with the parent's weights" if config.optim.ema_decay else "of the parent is left behind")
    name = CheckpointName(generation=0, step=header.step, digest=digest_of(payload))
    folder.create()
    write_durably(folder.checkpoints / str(name), payload)
    return name


def _going_on(fork: Fork, config: RunConfig) -> str:
    """Where in its schedule the fork goes on: the rate is that of the parent's epoch, not of a first one."""
    from seresnet.optim import learning_rate

    step, size = fork.origin.parent.step, fork.steps_per_epoch
    if size is None:
        return f"step={step}"
    horizon = schedule_epochs(config)
    rate = learning_rate(config.optim, horizon, step // size)
    return f"step={step} epoch={step // size + 1} lr={rate:.4g} ({config.optim.schedule}, epoch {step // size + 1} of {horizon})"


def _imported(folder: RunFolder) -> list[tuple[CheckpointName, Origin]]:
    """Every trusted file of generation 0, and where its state is from."""
    found = []
    for name in list_checkpoints(folder):
        payload = read_trusted(folder, name) if name.generation == 0 else None
        value = None if payload is None else read_record(payload)["fork"]
        try:
            if isinstance(value, dict) and (parent := Parent.of(value.get("parent"))) is not None:
                found.append((name, Origin(parent=parent, pinned=value.get("pinned"), marks=tuple(value.get("marks") or ()))))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{folder.checkpoints / str(name)}: not the file of a fork: {error}. Move it away.") from error
    return found
