"""The array on the device or the host, divided into train, validation and test, and its training batches as pure functions.

A sample of a run is found by (seed, epoch, batch, micro) alone: no iterator and no state that a resume would have to restore. What is
augmented or fetched ahead is a cache: no bit of a batch depends on what was asked for before it.
"""

import time
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seresnet.augment import Draws, augment, channel_statistics, draw, normalise
from seresnet.autoaugment import to_device
from seresnet.config import DataConfig, RunConfig, micro_batch_size
from seresnet.errors import ConfigError
from seresnet.mixing import dominant_labels, draw_mix, draw_partners, mix_images, soft_targets
from seresnet.models import survival
from seresnet.prefetch import Key, Prefetch, Value
from seresnet.randomness import Integers, permutation, words
from seresnet.stochastic_depth import draw_keep

#: Bytes of images that are augmented at once; at 32 x 32 pixels 1,024 images on a CPU, 8,192 on a GPU. One micro-batch at least.
#: CPU: batches of 64 cost 26 us an image instead of 60, of 32 32 instead of 80, of 256 and more the same (best of 7, 1 thread); larger
#: chunks leave its cache. A GPU has 250 operations to start for a chunk, however small it is; not measured there.
CHUNK_BYTES = {"cpu": 3 * 2**20, "cuda": 3 * 2**23}

#: Images go on a GPU if they take at most this share of its free memory: the rest is the network's.
SHARE_OF_FREE_MEMORY = 0.5

#: A micro-batch of a run: epoch, batch, micro, each from 0.
Place = tuple[int, int, int]


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
    """(N, 3, H, W) uint8 on the device or, where it is too small or train.data_on says so, on the host; in ascending order of indices."""
    labels: Tensor
    """(N,) int64 on the device."""
    indices: Integers
    """(N,) where each image is in the full array; the row of its draws."""
    rows: int
    """Length of the full array, train or test, that the indices point into."""

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, rows: range) -> tuple[Tensor, Tensor]:
        """Images (n, 3, H, W) uint8 and labels (n,) of these rows in a row, on the device, copied there without waiting for it."""
        part, device = slice(rows.start, rows.stop), self.labels.device
        images = self.images[part]
        if images.device != device:
            images = images.pin_memory().to(device, non_blocking=True)
        return images, self.labels[part]


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
    """Put the images that this run needs where they wait, and their labels on the device.

    Raises ConfigError for split sizes that do not fit.
    """
    indices = split_indices(config.data, arrays.train_labels, arrays.test_labels)
    needed = (len(indices.train) + len(indices.validation)) * arrays.train_images[:1].nbytes
    needed += len(indices.test) * arrays.test_images[:1].nbytes
    images_on = device if fits(config.train.data_on, needed, device) else torch.device("cpu")
    train, test = (arrays.train_images, arrays.train_labels), (arrays.test_images, arrays.test_labels)
    return Splits(
        train=_split(*train, indices.train, images_on, device),
        validation=_split(*train, indices.validation, images_on, device),
        test=_split(*test, indices.test, images_on, device),
    )


def fits(data_on: Literal["auto", "device", "host"], needed: int, device: torch.device) -> bool:
    """Whether so many bytes of images wait on the device: as told, or by what a GPU has free now. No bit of a run depends on it."""
    if data_on != "auto" or device.type != "cuda":
        return data_on != "host"
    free, _ = torch.cuda.mem_get_info(device)
    return needed <= SHARE_OF_FREE_MEMORY * free


def _split(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], indices: Integers, images_on: torch.device, device: torch.device
) -> Split:
    # Planar: the augmentation works on whole channels.
    planar = torch.from_numpy(_planar(images, indices))
    targets = torch.from_numpy(labels[indices].astype(np.int64))
    return Split(images=planar.to(images_on), labels=targets.to(device), indices=indices, rows=len(labels))


def _planar(images: npt.NDArray[np.uint8], indices: Integers) -> npt.NDArray[np.uint8]:
    """images[indices] from (N, H, W, 3) to (n, 3, H, W)."""
    height, width, channels = images.shape[1:]
    planar = np.empty((len(indices), channels, height, width), dtype=np.uint8)
    # In blocks that stay in the CPU's cache: 50,000 images took 0.3 s, and 1.8 s at once.
    for start in range(0, len(indices), 256):
        planar[start : start + 256] = images[indices[start : start + 256]].transpose(0, 3, 1, 2)
    return planar


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
    keep: Tensor | None = None
    """(blocks, n) float32, stochastic depth's factors; None without it."""

    def __len__(self) -> int:
        return len(self.indices)


#: Images, labels and indices of a micro-batch before normalisation.
_Part = tuple[Tensor, Tensor, Integers]


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """Some micro-batches one after the other, as they are in the array."""

    positions: Integers
    """(n,) in the split."""
    images: Tensor
    """(n, 3, H, W) uint8; where the split's are on the host a copy there, pinned for a GPU."""
    draws: Draws
    sizes: list[int]
    """Of the micro-batches; they sum to n."""


class TrainBatches:
    """Training batches of one run. micro_batch is a pure function of its arguments, whatever was asked for before."""

    def __init__(
        self,
        split: Split,
        config: RunConfig,
        classes: int,
        mean: npt.ArrayLike,
        std: npt.ArrayLike,
        device: torch.device,
        *,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """mean, std: three values each, of channels scaled to [0, 1]. The split's labels must be on the device.

        rank, ranks: whose micro-batches come, so that others' are not augmented ahead; any may be asked for.
        """
        assert split.labels.device.type == device.type, f"labels are on {split.labels.device}, batches are wanted on {device}"
        self.split = split
        self.config = config
        self.classes = classes
        self.mean, self.std = channel_statistics(mean, std, device)
        self.waited_s = 0.0
        """Seconds that micro_batch waited for the background thread, summed until the reader sets it to 0."""
        own = self.micro_batches // ranks
        self._own = range(rank * own, (rank + 1) * own)
        chunk = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // max(1, split.images[:1].nbytes)
        self._ahead = max(1, chunk // micro_batch_size(config))  # micro-batches that are augmented at once
        self._device = device
        self._drawn: tuple[int, Integers, Draws] | None = None
        self._ready: dict[Place, _Part] = {}
        self._kept: tuple[int, npt.NDArray[np.float32]] | None = None
        on_host = config.train.data_on == "host" or split.images.device.type != device.type
        # One thread at most. Where images are on a GPU it only draws for the next epoch, 9 ms for 50,000 rows; a CPU has no time to hide.
        self._gathers = Prefetch(self._gather, "gather") if on_host else None
        self._draws = Prefetch(self._draw, "draw") if device.type == "cuda" and not on_host else None

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
        place = (epoch, batch, micro)
        if place not in self._ready:
            self._ready = self._augment(self._coming(place))
        images, labels, indices = self._ready[place]
        unmixed = MicroBatch(
            images=normalise(images, self.mean, self.std),
            targets=torch.empty(0),
            labels=labels,
            indices=indices,
            keep=self._keep(epoch, indices),
        )
        return self._mixed(unmixed, epoch * self.steps_per_epoch + batch, micro)

    def _keep(self, epoch: int, indices: Integers) -> Tensor | None:
        if not self.config.model.drop_path:
            return None
        if self._kept is None or self._kept[0] != epoch:
            self._kept = epoch, draw_keep(self.config.train.seed, epoch, self.split.rows, survival(self.config.model))
        return to_device(np.ascontiguousarray(self._kept[1][indices].T), self._device)

    def _coming(self, place: Place) -> tuple[Place, ...]:
        """The micro-batches that this rank needs from this one on, as many as are augmented at once, to the end of the epoch."""
        epoch, batch, micro = place
        own = self._own
        if micro not in own:
            return (place,)
        first = batch * len(own) + micro - own.start
        end = min(first + self._ahead, self.steps_per_epoch * len(own))
        return tuple((epoch, number // len(own), own.start + number % len(own)) for number in range(first, end))

    def _after(self, places: tuple[Place, ...]) -> tuple[Place, ...] | None:
        """What comes after these; None after the run's last micro-batch."""
        epoch, batch, micro = places[-1]
        if micro + 1 in self._own:
            return self._coming((epoch, batch, micro + 1))
        if batch + 1 < self.steps_per_epoch:
            return self._coming((epoch, batch + 1, self._own.start))
        return self._coming((epoch + 1, 0, self._own.start)) if epoch + 1 < self.config.train.epochs else None

    def _augment(self, places: tuple[Place, ...]) -> dict[Place, _Part]:
        then = self._after(places)
        samples = self._gather(places) if self._gathers is None else self._waited(self._gathers, places, then)
        images = augment(samples.images.to(self._device, non_blocking=True), samples.draws, self.config.augment)
        labels = self.split.labels.index_select(0, to_device(samples.positions, self._device))
        indices = np.split(self.split.indices[samples.positions], np.cumsum(samples.sizes)[:-1])
        parts = zip(images.split(samples.sizes), labels.split(samples.sizes), indices, strict=True)
        return dict(zip(places, parts, strict=True))

    def _gather(self, places: tuple[Place, ...]) -> _Samples:
        """The samples of micro-batches of one epoch. Where images are on the host this runs in a thread: no work for a GPU in here."""
        order, draws = self._epoch(places[0][0])
        slots = [order[self._slots(batch, micro)] for _, batch, micro in places]
        positions, source = np.concatenate(slots), self.split.images
        chosen = to_device(positions, source.device)
        pinned = source.device.type == "cpu" and self._device.type == "cuda"
        out = torch.empty((len(positions), *source.shape[1:]), dtype=torch.uint8, device=source.device, pin_memory=pinned)
        torch.index_select(source, 0, chosen, out=out)
        return _Samples(positions=positions, images=out, draws=draws.of(self.split.indices[positions]), sizes=[*map(len, slots)])

    def _epoch(self, epoch: int) -> tuple[Integers, Draws]:
        """Order of the split's images and their draws. Only the last epoch's are kept: a cache, not a state."""
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = self._draw(epoch) if self._draws is None else self._waited(self._draws, epoch, epoch + 1)
        return self._drawn[1], self._drawn[2]

    def _draw(self, epoch: int) -> tuple[int, Integers, Draws]:
        return epoch, self.order(epoch), draw(self.config.train.seed, epoch, self.split.rows, self.config.augment)

    def _waited(self, prefetch: Prefetch[Key, Value], key: Key, then: Key | None) -> Value:
        started = time.perf_counter()
        try:
            return prefetch.get(key, then)
        finally:
            self.waited_s += time.perf_counter() - started

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
        partners = to_device(draw_partners(config.train.seed, step, micro, micro_batch_size(config), len(unmixed)), self._device)
        return replace(
            unmixed,
            images=mix_images(unmixed.images, partners, mix),
            targets=soft_targets([labels, labels[partners]], [mix.own_share, 1.0 - mix.own_share], self.classes, smoothing),
            labels=dominant_labels(labels, partners, mix),
        )
