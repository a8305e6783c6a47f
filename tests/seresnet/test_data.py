from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from seresnet.augment import augment, draw, normalise
from seresnet.config import AugmentConfig, DataConfig, OptimConfig, RunConfig, TrainConfig
from seresnet.data import TrainBatches, load_splits, split_indices, stratified_order
from seresnet.errors import ConfigError
from seresnet.mixing import draw_mix, draw_partners

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def arrays():
    """1,500 train and 297 test digits, 8x8 RGB; the first pixel of train image i holds i, so that samples can be told apart."""
    digits = load_digits()
    images = np.repeat(digits.images.astype(np.uint8)[..., None] * 15, 3, axis=3)
    train = images[:1500].copy()
    train[:, 0, 0, 0], train[:, 0, 0, 1] = np.divmod(np.arange(1500), 256)
    return SimpleNamespace(
        train_images=train,
        train_labels=digits.target[:1500].astype(np.int64),
        test_images=images[1500:],
        test_labels=digits.target[1500:].astype(np.int64),
    )


@pytest.fixture
def config():
    return RunConfig(train=TrainConfig(seed=3, global_batch_size=64, micro_batch_size=16), data=DataConfig(val_images=100))


def make_batches(config, arrays):
    return TrainBatches(load_splits(config, arrays, CPU).train, config, 10, MEAN, STD, CPU)


def plain(config):
    """The same run without augmentation."""
    return replace(config, augment=AugmentConfig(crop_padding=0, flip=False, autoaugment="none", mix_prob=0.0))


def same(first, second):
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("images", "targets", "labels"))


# Splits


def test_train_and_validation_are_disjoint_and_together_all_of_train(arrays):
    split = split_indices(DataConfig(val_images=300), arrays.train_labels, arrays.test_labels)
    assert sorted([*split.train, *split.validation]) == list(range(1500))
    assert len(split.validation) == 300 and len(split.test) == 297


def test_splits_hold_each_class_in_its_share_of_the_whole(arrays):
    split = split_indices(DataConfig(val_images=203, train_images=377), arrays.train_labels, arrays.test_labels)
    share = np.bincount(arrays.train_labels) / 1500
    for indices in (split.validation, split.train):
        off = np.bincount(arrays.train_labels[indices], minlength=10) - share * len(indices)
        assert np.abs(off).max() < 1.01, off


def test_balanced_classes_are_split_exactly_evenly_and_a_tiny_subset_prefers_no_class():
    labels = np.arange(1000) % 10
    assert np.bincount(labels[stratified_order(labels, 0, "x")[:50]]).tolist() == [5] * 10
    first = {tuple(sorted(labels[stratified_order(labels, seed, "x")[:3]])) for seed in range(20)}
    assert len(first) > 10, first


def test_a_larger_split_contains_a_smaller_one(arrays):
    def of(**sizes):
        return split_indices(DataConfig(**sizes), arrays.train_labels, arrays.test_labels)

    small, large = (of(val_images=n, train_images=3 * n, test_images=n) for n in (40, 130))
    for name in ("train", "validation", "test"):
        assert set(getattr(small, name)) < set(getattr(large, name)), name


def test_the_train_subset_does_not_depend_on_the_size_of_validation(arrays):
    subsets = [split_indices(DataConfig(val_images=n, train_images=500), arrays.train_labels, arrays.test_labels).train for n in (0, 900)]
    assert np.array_equal(*subsets)


def test_the_split_seed_alone_draws_the_split(arrays):
    def validation(seed):
        return split_indices(DataConfig(val_images=100, split_seed=seed), arrays.train_labels, arrays.test_labels).validation

    assert np.array_equal(validation(1), validation(1))
    assert not np.array_equal(validation(1), validation(2))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"val_images": 1500}, r"data\.val_images: 1500 .* Use 1499 or less"),
        ({"val_images": 500, "train_images": 1001}, r"data\.train_images: 1001 .* Use 1000 or less"),
        ({"test_images": 298}, r"data\.test_images: 298 .* Use 297 or less"),
    ],
)
def test_a_size_that_does_not_fit_names_its_key_and_the_maximum(arrays, sizes, message):
    with pytest.raises(ConfigError, match=message):
        split_indices(DataConfig(**sizes), arrays.train_labels, arrays.test_labels)


def test_all_faulty_sizes_are_named_at_once(arrays):
    with pytest.raises(ConfigError, match=r"(?s)data\.train_images.*data\.test_images"):
        split_indices(DataConfig(train_images=2000, test_images=2000), arrays.train_labels, arrays.test_labels)


def test_loaded_images_and_labels_are_those_of_the_indices(arrays, config):
    splits = load_splits(config, arrays, CPU)
    for split, images, labels in (
        (splits.train, arrays.train_images, arrays.train_labels),
        (splits.validation, arrays.train_images, arrays.train_labels),
        (splits.test, arrays.test_images, arrays.test_labels),
    ):
        assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), images[split.indices])
        assert np.array_equal(split.labels.numpy(), labels[split.indices])
        assert split.images.is_contiguous() and split.rows == len(labels)


def test_without_validation_the_split_is_empty_but_has_the_shape_of_images(arrays):
    validation = load_splits(RunConfig(), arrays, CPU).validation
    assert validation.images.shape == (0, 3, 8, 8) and validation.images.dtype == torch.uint8 and len(validation) == 0


# Batches


def test_an_epoch_meets_every_train_image_once_and_the_last_batch_is_the_rest(arrays, config):
    batches = make_batches(config, arrays)
    assert batches.steps_per_epoch == 22
    met = [batches.micro_batch(0, batch, micro).indices for batch in range(22) for micro in range(4)]
    assert sorted(np.concatenate(met)) == batches.split.indices.tolist()
    assert [len(m) for m in met[-4:]] == [16, 16, 16, 8] and batches.size(21) == 56 and batches.size(0) == 64


def test_micro_batches_beyond_the_last_slots_are_empty_but_well_formed(arrays):
    train = TrainConfig(global_batch_size=1024, micro_batch_size=256)
    empty = make_batches(RunConfig(train=train), arrays).micro_batch(0, 1, 3)
    assert (empty.images.shape, empty.targets.shape, empty.labels.shape) == ((0, 3, 8, 8), (0, 10), (0,))
    assert empty.images.dtype == torch.float32 and empty.labels.dtype == torch.int64 and len(empty) == 0


def test_a_micro_batch_is_the_same_whatever_was_asked_for_before(arrays, config):
    """One process that runs through everything, against fresh ones that ask backwards, as other ranks and resumed runs do."""
    places = [(epoch, batch, micro) for epoch in (0, 1) for batch in (0, 13, 21) for micro in range(4)]
    forward = make_batches(config, arrays)
    in_order = [forward.micro_batch(*place) for place in places]
    for place, expected in reversed(list(zip(places, in_order, strict=True))):
        assert same(make_batches(config, arrays).micro_batch(*place), expected), place


def test_splitting_a_batch_into_smaller_micro_batches_keeps_samples_and_augmentations(arrays, config):
    """Mixing is off: partners live inside the micro-batch, everything before it belongs to the sample."""
    config = replace(config, augment=replace(config.augment, mix_prob=0.0))
    whole = make_batches(replace(config, train=replace(config.train, micro_batch_size=64)), arrays).micro_batch(2, 5, 0)
    parts = [make_batches(config, arrays).micro_batch(2, 5, micro) for micro in range(4)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert np.array_equal(np.concatenate([part.indices for part in parts]), whole.indices)


def test_epochs_and_seeds_order_and_augment_anew(arrays, config):
    other_seed = replace(config, train=replace(config.train, seed=4))
    first, later, other = (
        make_batches(c, arrays).micro_batch(epoch, 0, 0).indices.tolist() for c, epoch in ((config, 0), (config, 1), (other_seed, 0))
    )
    assert first != later and first != other
    assert not np.array_equal(draw(3, 0, 1500, config.augment).top, draw(3, 1, 1500, config.augment).top)


def test_a_sample_is_augmented_alike_in_the_whole_and_in_a_subset(arrays, config):
    config = replace(config, augment=replace(config.augment, mix_prob=0.0))
    whole, subset = (replace(config, data=DataConfig(train_images=n)) for n in (None, 200))

    def by_index(config):
        batches = make_batches(config, arrays)
        parts = [batches.micro_batch(0, batch, micro) for batch in range(batches.steps_per_epoch) for micro in range(4)]
        return {index: image for part in parts for index, image in zip(part.indices.tolist(), part.images, strict=True)}

    of_whole, of_subset = by_index(whole), by_index(subset)
    assert len(of_subset) == 200
    assert all(torch.equal(image, of_whole[index]) for index, image in of_subset.items())


def test_without_augmentation_a_micro_batch_is_its_images_normalised_with_one_hot_targets(arrays, config):
    found = make_batches(plain(config), arrays).micro_batch(0, 0, 1)
    pixels = arrays.train_images[found.indices].transpose(0, 3, 1, 2) / 255
    expected = (pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert np.allclose(found.images.numpy(), expected, atol=1e-6)
    assert found.labels.tolist() == arrays.train_labels[found.indices].tolist() == found.targets.argmax(1).tolist()
    assert torch.equal(found.targets.sum(1), torch.ones(16)) and found.targets.max(1).values.eq(1).all()


@pytest.mark.parametrize("cutmix_share", [0.0, 1.0])
def test_a_mixed_micro_batch_is_mixed_from_its_own_augmented_samples_with_the_draws_of_its_step(arrays, config, cutmix_share):
    config = replace(config, augment=replace(config.augment, cutmix_share=cutmix_share), optim=OptimConfig(label_smoothing=0.1))
    batches = make_batches(config, arrays)
    found = batches.micro_batch(2, 5, 3)
    mix, partners = draw_mix(3, 2 * 22 + 5, config.augment, 8, 8), draw_partners(3, 2 * 22 + 5, 3, 16, 16)
    pixels = torch.from_numpy(arrays.train_images[found.indices].transpose(0, 3, 1, 2).copy())
    own = normalise(augment(pixels, draw(3, 2, 1500, config.augment).of(found.indices), config.augment), batches.mean, batches.std)
    weight = torch.full((8, 8), mix.own_share)
    if mix.mode == "cutmix":
        top, bottom, left, right = mix.box
        weight = torch.ones(8, 8)
        weight[top:bottom, left:right] = 0
    torch.testing.assert_close(found.images, own * weight + own[partners] * (1 - weight))
    labels = np.eye(10)[arrays.train_labels[found.indices]]
    expected = (labels * mix.own_share + labels[partners] * (1 - mix.own_share)) * 0.9 + 0.01
    assert np.allclose(found.targets.numpy(), expected, atol=1e-6)


def test_all_micro_batches_of_a_step_share_one_lambda_and_the_next_step_has_another(arrays, config):
    config = replace(config, augment=replace(config.augment, cutmix_share=0.0))
    batches = make_batches(config, arrays)

    def lambdas(batch):
        return {
            round(value, 5)
            for micro in range(4)
            for value in batches.micro_batch(0, batch, micro).targets.max(1).values.tolist()
            if value < 0.9999
        }

    assert len(lambdas(0)) == len(lambdas(1)) == 1 and lambdas(0) != lambdas(1), (lambdas(0), lambdas(1))


@pytest.mark.gpu
def test_batches_of_a_gpu_are_those_of_the_cpu(arrays, config):
    cuda = torch.device("cuda")
    on_gpu = TrainBatches(load_splits(config, arrays, cuda).train, config, 10, MEAN, STD, cuda).micro_batch(1, 2, 3)
    on_cpu = make_batches(config, arrays).micro_batch(1, 2, 3)
    torch.testing.assert_close(on_gpu.images.cpu(), on_cpu.images)
    assert torch.equal(on_gpu.labels.cpu(), on_cpu.labels) and np.array_equal(on_gpu.indices, on_cpu.indices)
