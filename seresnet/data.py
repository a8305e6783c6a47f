"""The array on the device, divided into train, validation and test, and its training batches as pure functions.

A sample of a run is found by (seed, epoch, batch, micro) alone: no iterator, no worker, no state that a resume would have to restore.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seresnet.augment import Draws, augment, channel_statistics, draw, normalise
from seresnet.autoaugment import to_device
from seresnet.config import DataConfig, RunConfig, micro_batch_size
from seresnet.errors import ConfigError
from seresnet.mixing import dominant_labels, draw_mix, draw_partners, mix_images, soft_targets
from seresnet.randomness import Integers, permutation, words


class LabelledArrays(Protocol):
    """What is needed of seresnet.prepare.Arrays."""

    @property
    def train_images(self) -> npt.NDArray[np.uint8]: ...
    @property
    def train_labels(self) -> npt.NDArray[np.int64]: ...
    @property
    def test_images(self) -> npt.NDArray[np.uint8]: ...
    @property
    def test_labels(self) -> npt.NDArray[np.int64]: ...


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images of one purpose. May be empty: validation is where none is held out."""

    images: Tensor
    """(N, 3, H, W) uint8 on the device, in ascending order of indices."""
    labels: Tensor
    """(N,) int64 on the device."""
    indices: Integers
    """(N,) where each image is in the full array; the row of its draws."""
    rows: int
    """Length of the full array, train or test, that the indices point into."""

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Train and validation are disjoint parts of the train array, test is a part of the test array."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True, kw_only=True)
class SplitIndices:
    """Ascending indices: train and validation into the train array, test into the test array."""

    train: Integers
    validation: Integers
    test: Integers


def split_indices(config: DataConfig, train_labels: npt.NDArray[np.int64], test_labels: npt.NDArray[np.int64]) -> SplitIndices:
    """Which images are for what: stratified, by data.split_seed and the labels alone.

    Validation is taken from the front of one stratified order and the train subset from its back, so that a larger one contains a
    smaller one and the train subset does not move with val_images. Raises ConfigError for sizes that do not fit.
    """
    _check_sizes(config, len(train_labels), len(test_labels))
    order = stratified_order(train_labels, config.split_seed, "split.train")
    kept = config.train_images or len(order) - config.val_images
    test = stratified_order(test_labels, config.split_seed, "split.test")[: config.test_images]
    return SplitIndices(train=np.sort(order[len(order) - kept :]), validation=np.sort(order[: config.val_images]), test=np.sort(test))


def stratified_order(labels: npt.NDArray[np.int64], seed: int, purpose: str) -> Integers:
    """A random order of all indices in which every stretch, front, middle or back, has about the classes' shares of the whole."""
    raw = words(seed, purpose, 0, len(labels))[:, 0]
    position = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # The k-th of n members stands at (k + 0.5) / n of the way; words break the ties between classes, not their numbers.
        position[members[permutation(raw[members])]] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((raw, position)).astype(np.int64)


def _check_sizes(config: DataConfig, train: int, test: int) -> None:
    limits = {
        "data.val_images": (config.val_images, train - 1, f"the train array has {train}, and one must be left to train on"),
        "data.train_images": (
            config.train_images,
            train - config.val_images,
            f"the train array has {train}, of which data.val_images takes {config.val_images}",
        ),
        "data.test_images": (config.test_images, test, f"the test array has {test}"),
    }
    faults = [
        f"{key}: {value} is more images than there are: {why}. Use {max(limit, 0)} or less."
        for key, (value, limit, why) in limits.items()
        if value is not None and value > limit
    ]
    if faults:
        raise ConfigError("\n".join(faults))


def load_splits(config: RunConfig, arrays: LabelledArrays, device: torch.device) -> Splits:
    """Put the images that this run needs on the device. Raises ConfigError for split sizes that do not fit."""
    indices = split_indices(config.data, arrays.train_labels, arrays.test_labels)
    return Splits(
        train=_split(arrays.train_images, arrays.train_labels, indices.train, device),
        validation=_split(arrays.train_images, arrays.train_labels, indices.validation, device),
        test=_split(arrays.test_images, arrays.test_labels, indices.test, device),
    )


def _split(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], indices: Integers, device: torch.device) -> Split:
    # Planar on the device: the augmentation works on whole channels.
    planar = torch.from_numpy(np.ascontiguousarray(images[indices].transpose(0, 3, 1, 2)))
    targets = torch.from_numpy(labels[indices].astype(np.int64))
    return Split(images=planar.to(device), labels=targets.to(device), indices=indices, rows=len(labels))


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Samples that share batch-norm statistics and mixing partners. n is 0 where the epoch's last batch has no slots left for it."""

    images: Tensor
    """(n, 3, H, W) float32, augmented, normalised, mixed."""
    targets: Tensor
    """(n, K) float32, rows sum to 1, label smoothing folded in: the loss of a slot is -(targets * log_softmax(logits)).sum()."""
    labels: Tensor
    """(n,) int64, the class with the largest share of the target."""
    indices: Integers
    """(n,) on the host: which image of the full train array each sample is."""

    def __len__(self) -> int:
        return len(self.indices)


class TrainBatches:
    """Training batches of one run. micro_batch is a pure function of its arguments, whatever was asked for before."""

    def __init__(
        self, split: Split, config: RunConfig, classes: int, mean: npt.ArrayLike, std: npt.ArrayLike, device: torch.device
    ) -> None:
        """mean, std: three values each, of channels scaled to [0, 1]. The split's tensors must be on the device."""
        assert split.images.device.type == device.type, f"images are on {split.images.device}, batches are wanted on {device}"
        self.split = split
        self.config = config
        self.classes = classes
        self.mean, self.std = channel_statistics(mean, std, device)
        self._drawn: tuple[int, Integers, Draws] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch, the last one smaller and kept."""
        return -(-len(self.split) // self.config.train.global_batch_size)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a global batch, over all ranks and accumulation."""
        return self.config.train.global_batch_size // micro_batch_size(self.config)

    def size(self, batch: int) -> int:
        """Samples of global batch `batch` of an epoch: what the sum of its losses is divided by."""
        slots = self.config.train.global_batch_size
        return min(slots, len(self.split) - batch * slots)

    def order(self, epoch: int) -> Integers:
        """Which image of the split is in each slot of an epoch: (N,), a permutation that depends on seed and epoch alone."""
        return permutation(words(self.config.train.seed, "order", epoch, self.split.rows)[self.split.indices, 0])

    def micro_batch(self, epoch: int, batch: int, micro: int) -> MicroBatch:
        """Slots [micro * b, (micro + 1) * b) of global batch `batch` of an epoch; all three count from 0."""
        assert 0 <= batch < self.steps_per_epoch, f"batch {batch} of {self.steps_per_epoch}"
        assert 0 <= micro < self.micro_batches, f"micro-batch {micro} of {self.micro_batches}"
        order, draws = self._epoch(epoch)
        positions = order[self._slots(batch, micro)]
        indices = self.split.indices[positions]
        device = self.split.images.device
        chosen = to_device(positions, device)
        images = augment(self.split.images.index_select(0, chosen), draws.of(indices), self.config.augment)
        unmixed = MicroBatch(
            images=normalise(images, self.mean, self.std), targets=torch.empty(0), labels=self.split.labels[chosen], indices=indices
        )
        return self._mixed(unmixed, epoch * self.steps_per_epoch + batch, micro)

    def _epoch(self, epoch: int) -> tuple[Integers, Draws]:
        """Order of the split's images and their draws. Only the last epoch's are kept: a cache, not a state."""
        if self._drawn is None or self._drawn[0] != epoch:
            draws = draw(self.config.train.seed, epoch, self.split.rows, self.config.augment)
            self._drawn = (epoch, self.order(epoch), draws)
        return self._drawn[1], self._drawn[2]

    def _slots(self, batch: int, micro: int) -> slice:
        first = batch * self.config.train.global_batch_size
        size = micro_batch_size(self.config)
        end = first + self.size(batch)
        return slice(min(first + micro * size, end), min(first + (micro + 1) * size, end))

    def _mixed(self, unmixed: MicroBatch, step: int, micro: int) -> MicroBatch:
        """Mix as the step says, and make the targets."""
        config, labels = self.config, unmixed.labels
        smoothing = config.optim.label_smoothing
        mix = draw_mix(config.train.seed, step, config.augment, *unmixed.images.shape[2:])
        if mix.mode == "none":
            return replace(unmixed, targets=soft_targets([labels], [1.0], self.classes, smoothing))
        partners = to_device(
            draw_partners(config.train.seed, step, micro, micro_batch_size(config), len(unmixed)), self.split.images.device
        )
        return replace(
            unmixed,
            images=mix_images(unmixed.images, partners, mix),
            targets=soft_targets([labels, labels[partners]], [mix.own_share, 1.0 - mix.own_share], self.classes, smoothing),
            labels=dominant_labels(labels, partners, mix),
        )
