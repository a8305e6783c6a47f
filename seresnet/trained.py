"""A trained network ready to classify images: from a run's checkpoints, or from an exported file. Nothing in either is executed.

Training goes on in recipe.py; writing exports is export.py's job. One invariant: what reads a run writes nothing into it.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from seresnet import own_code
from seresnet.array_file import Arrays, load_arrays
from seresnet.augment import normalise
from seresnet.checkpoint_files import list_checkpoints, read_metadata, read_trusted
from seresnet.checkpoint_writer import decode
from seresnet.config import RunConfig, to_dict
from seresnet.config_file import config_from_dict
from seresnet.durable import parse_json
from seresnet.engine import AMP_DTYPES
from seresnet.errors import CheckpointError, ConfigError, DataError
from seresnet.folding import FoldedNetwork
from seresnet.models import build_model
from seresnet.prepare import data_dir, find_prepared, find_with_digest, prepare
from seresnet.run_folder import CheckpointName, RunFolder, RunRecord
from seresnet.state import TrainState, state_digest

#: The one metadata entry of an exported file.
EXPORT_KEY = "seresnet-export"
EXPORT_SCHEMA = 1

#: Which weights of a run: those of its last step, or those that were best on validation.
Which = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Of channels scaled to [0, 1], three values each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, arrays: Arrays) -> "Normalisation":
        return cls(mean=tuple(map(float, arrays.mean)), std=tuple(map(float, arrays.std)))


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network in evaluation mode, and all that it takes to ask it."""

    network: nn.Module
    config: RunConfig
    classes: tuple[str, ...]
    normalisation: Normalisation
    size: tuple[int, int]
    """Height and width of the images that it was trained on, pixels."""
    origin: str
    """Where the weights are from: run, step and digest of the state."""
    device: torch.device
    amp: Literal["bf16", "fp16", "off"] = "off"
    """Autocast precision of a forward pass; what comes out is float32."""

    @torch.no_grad()
    def logits(self, images: npt.NDArray[np.uint8] | Tensor, batch_size: int = 500) -> Tensor:
        """images: (N, H, W, 3) uint8; returns (N, classes) float32 on the host. Raises ConfigError for other shapes or types."""
        planar = self._planar(images)
        with torch.autocast(self.device.type, dtype=AMP_DTYPES[self.amp], enabled=self.amp != "off"):
            parts = [self.network(self.prepared(part)).float().cpu() for part in planar.split(batch_size)]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.classes))

    def folded(self) -> "Classifier":
        """The same with batch norm folded into convolutions, as training evaluates it. What adapts batch norm needs the other."""
        found = FoldedNetwork(self.network)
        found.refresh()
        return replace(self, network=found.network)

    def probabilities(self, images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """(N, classes), rows sum to 1."""
        return self.logits(images).softmax(1)

    def prepared(self, planar: Tensor) -> Tensor:
        """(n, 3, H, W) uint8 to what the network takes, on its device."""
        mean, std = (torch.tensor(values, dtype=torch.float32, device=self.device) for values in self._statistics)
        images = normalise(planar.to(self.device), mean, std)
        return images.contiguous(memory_format=torch.channels_last if self.config.train.channels_last else torch.contiguous_format)

    @property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.normalisation.mean, self.normalisation.std

    def _planar(self, images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        found = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
        if found.dtype != torch.uint8 or found.dim() != 4 or tuple(found.shape[1:]) != (*self.size, 3):
            raise ConfigError(
                f"images are {str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}; "
                f"this network takes uint8 (N, {self.size[0]}, {self.size[1]}, 3)."
            )
        return found.permute(0, 3, 1, 2).contiguous()


def load(path: str | Path, *, device: str = "cpu", weights: Which = "last") -> Classifier:
    """The classifier in a run's folder, or in a file that `python -m seresnet.export` wrote.

        import seresnet
        classifier = seresnet.load("runs/demo/se-s0")
        classifier.probabilities(images)   # (N, 32, 32, 3) uint8 -> (N, 10)

    Raises ConfigError and CheckpointError, naming the path and what is wrong.
    """
    place = Path(path).expanduser()
    if place.is_file() and place.suffix == ".safetensors" and CheckpointName.parse(place.name) is None:
        return load_export(place, torch.device(device))
    from seresnet.checkpoint import find_runs

    found = find_runs(place)
    if len(found) != 1:
        raise ConfigError(f"{place}: holds {len(found)} runs. Give one of them, such as {found[0].path}.")
    return load_run(found[0], torch.device(device), weights)[0]


def load_run(folder: RunFolder, device: torch.device, weights: Which = "last") -> tuple[Classifier, Arrays]:
    """A run's classifier and the data it was trained on. Raises ConfigError where its data is neither prepared nor at hand."""
    own_code.name_root_of(folder.path)
    record = RunRecord.read(folder)
    config = config_from_dict(record.config, f"{folder.run_yaml}: config")
    if config.program.command is not None:
        raise ConfigError(
            f"{folder.path}: was trained by a program of its own ({' '.join(config.program.command)}). Only that knows its network."
        )
    pinned = (record.pinned or {}).get("data_digest")
    arrays = _made_before(config, pinned) or open_arrays(config)
    if pinned is not None and pinned != arrays.digest:
        edited = f" Or the code was edited since: set {own_code.VARIABLE} to SWEEP/code/NNNN/user of then." if config.data.target else ""
        raise ConfigError(
            f"{folder.path.name}: was trained on data {pinned[:12]}, but {arrays.title} here is {arrays.digest[:12]}. Set data.dir.{edited}"
        )
    name, state = chosen_state(folder, weights)
    classifier = Classifier(
        network=network_of(config, state, len(arrays.classes)).to(device),
        config=config,
        classes=arrays.classes,
        normalisation=Normalisation.of(arrays),
        size=(arrays.test_images.shape[1], arrays.test_images.shape[2]),
        origin=f"run {record.run_id} ({record.slug}), step {name.step}, state {state_digest(state)[:16]}",
        device=device,
    )
    return classifier, arrays


def open_arrays(config: RunConfig) -> Arrays:
    """The prepared array of this config, made if it is missing and its source is at hand. Raises DataError."""
    folder = data_dir(config.data, os.environ)
    return load_arrays(find_prepared(config.data, folder) or prepare(config.data, folder))


def _made_before(config: RunConfig, pinned: str | None) -> Arrays | None:
    """The arrays that the run was trained on, where a code of the user's own made them that may have been edited since."""
    found = find_with_digest(config.data, data_dir(config.data, os.environ), pinned) if pinned else None
    if found is None:
        return None
    with suppress(DataError):
        return load_arrays(found, expect_digest=pinned)
    return None


def chosen_state(folder: RunFolder, weights: Which) -> tuple[CheckpointName, TrainState]:
    """The newest whole checkpoint, or the newest that a save called the best on validation. Raises CheckpointError if there is none."""
    for name, payload in _whole(folder):
        if weights == "last" or read_metadata(payload)[0].best:
            return name, decode(payload)
    what = "a checkpoint that was best on validation" if weights == "best" else "a whole checkpoint"
    hint = (
        "Without data.val_images there is none, and hpc.clean --keep final removes it: use --weights last."
        if weights == "best"
        else "Train it first."
    )
    raise CheckpointError(f"{folder.path}: has not {what}. {hint}")


def _whole(folder: RunFolder) -> Iterator[tuple[CheckpointName, bytes]]:
    """Every checkpoint whose bytes are what its name says, newest first."""
    for name in sorted(list_checkpoints(folder), key=lambda name: (name.step, name.generation), reverse=True):
        with suppress(OSError):
            payload = read_trusted(folder, name)
            if payload is not None:
                yield name, payload


def network_of(config: RunConfig, state: TrainState, classes: int) -> nn.Module:
    """The network with a state's weights, the averaged ones where they are kept, in evaluation mode."""
    prefix = "ema/" if any(name.startswith("ema/") for name in state.tensors) else "model/"
    return _with_weights(config, classes, {name.removeprefix(prefix): t for name, t in state.tensors.items() if name.startswith(prefix)})


def _with_weights(config: RunConfig, classes: int, weights: Mapping[str, Tensor]) -> nn.Module:
    model = build_model(config.model, classes, config.train.seed)
    own = model.state_dict()
    if missing := sorted(own.keys() ^ weights.keys()):
        raise CheckpointError(
            f"{missing[0]} is only in {'the network' if missing[0] in own else 'the file'}. It belongs to another config."
        )
    # Averages leave counters such as num_batches_tracked to the network's own; evaluation does not read them.
    model.load_state_dict(dict(weights))
    return model.eval().requires_grad_(False)


def load_export(path: Path, device: torch.device) -> Classifier:
    """What export.write_weights wrote. Raises ConfigError for another file."""
    try:
        payload = path.read_bytes()
        size = int.from_bytes(payload[:8], "little")
        entry = parse_json(parse_json(payload[8 : 8 + size])["__metadata__"][EXPORT_KEY])
        if entry["schema"] != EXPORT_SCHEMA:
            raise ValueError(f"schema is {entry['schema']!r}, this version reads {EXPORT_SCHEMA}")
        weights = safetensors.torch.load(payload)
        config = config_from_dict(entry["config"], f"{path}: config")
        return Classifier(
            network=_with_weights(config, len(entry["classes"]), weights).to(device),
            config=config,
            classes=tuple(map(str, entry["classes"])),
            normalisation=Normalisation(mean=tuple(entry["mean"]), std=tuple(entry["std"])),
            size=(int(entry["size"][0]), int(entry["size"][1])),
            origin=str(entry["origin"]),
            device=device,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path}: not a file of `python -m seresnet.export`: {error}.") from error


def export_metadata(classifier: Classifier) -> dict[str, Any]:
    """All but the weights: what load_export needs."""
    return {
        "schema": EXPORT_SCHEMA,
        "config": to_dict(classifier.config),
        "classes": list(classifier.classes),
        "mean": list(classifier.normalisation.mean),
        "std": list(classifier.normalisation.std),
        "size": list(classifier.size),
        "origin": classifier.origin,
    }
