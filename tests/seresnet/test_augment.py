import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torchvision.transforms import autoaugment as reference
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from seresnet import autoaugment
from seresnet.augment import Draws, augment, crop_and_flip, draw, normalise
from seresnet.autoaugment import apply_operations, draw_operations, magnitude, operation_table
from seresnet.config import AugmentConfig
from seresnet.mixing import Mix, dominant_labels, draw_mix, draw_partners, mix_images, soft_targets

SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")
NAMES = (*SIGNED, "posterize", "solarize", "autocontrast", "equalize", "invert")


@pytest.fixture(scope="module")
def pictures():
    """(n, 3, 32, 32) uint8: patches of photographs, digits, noise, and the corner cases of histograms."""
    rng = np.random.default_rng(0)
    photos = [
        photo[y : y + 32 * zoom : zoom, x : x + 32 * zoom : zoom]
        for photo in load_sample_images().images
        for y, x, zoom in zip(rng.integers(0, 300, 40), rng.integers(0, 500, 40), rng.integers(1, 4, 40), strict=True)
    ]
    digits = (load_digits().images[:20] * 15.9).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)[..., None].repeat(3, axis=3)
    noise = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    narrow = rng.integers(100, 104, (5, 32, 32, 3), dtype=np.uint8)
    flat = np.full((3, 32, 32, 3), [[[[0]]], [[[255]]], [[[77]]]], dtype=np.uint8)
    one_odd_pixel = flat.copy()
    one_odd_pixel[:, 5, 6, 1] = 9
    every = np.concatenate([np.stack(photos), digits, noise, narrow, flat, one_odd_pixel])
    return torch.from_numpy(every.transpose(0, 3, 1, 2).copy())


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def torchvision_name(name):
    return {"autocontrast": "AutoContrast"}.get(name, name.title().replace("_", ""))


def by_torchvision(images, name, value):
    """torchvision's own operation, image by image, on PIL images."""
    mode = F.InterpolationMode.NEAREST
    done = [reference._apply_op(to_pil(image), torchvision_name(name), value, mode, None) for image in images]
    return torch.stack([from_pil(image) for image in done])


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_equals_torchvision_on_pil_images_at_every_magnitude(pictures, name):
    magnitudes, signed = reference.AutoAugment()._augmentation_space(10, (32, 32))[torchvision_name(name)]
    values = sorted({sign * float(value) for value in magnitudes.reshape(-1) for sign in ((1, -1) if signed else (1,))})
    table = operation_table([(name, value) for value in values], 32, 32)
    for row, value in enumerate(values):
        found = apply_operations(pictures, np.full(len(pictures), row), table)
        differing = (found != by_torchvision(pictures, name, value)).sum().item()
        assert differing == 0, f"{name} {value:g}: {differing} of {found.numel()} values differ"


@pytest.mark.parametrize("name", ["rotate", "shear_x", "translate_y", "sharpness", "contrast", "equalize"])
def test_operations_equal_torchvision_on_images_that_are_not_square(name):
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (8, 3, 23, 40), dtype=np.uint8))
    value = 3.7 if name in ("rotate", "translate_y") else 0.27
    found = apply_operations(images, np.zeros(8, dtype=np.int64), operation_table([(name, value)], 23, 40))
    assert torch.equal(found, by_torchvision(images, name, value))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (2, 5), (3, 3)])
def test_operations_equal_torchvision_on_images_of_a_few_pixels(size):
    images = torch.randint(0, 256, (5, 3, *size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for name in NAMES:
        value = magnitude(name, 7, *size)
        found = apply_operations(images, np.zeros(5, dtype=np.int64), operation_table([(name, value)], *size))
        assert torch.equal(found, by_torchvision(images, name, value)), (name, size)


def test_the_policy_is_torchvisions_cifar10_policy():
    theirs = reference.AutoAugment(reference.AutoAugmentPolicy.CIFAR10).policies
    ours = [[(torchvision_name(name), probability) for name, probability, _ in sub] for sub in autoaugment.POLICY]
    assert ours == [[(name, probability) for name, probability, _ in sub] for sub in theirs]
    levels = [[level for _, _, level in sub] for sub in autoaugment.POLICY]
    assert levels == [[level or 0 for _, _, level in sub] for sub in theirs]


def test_the_whole_policy_with_the_same_draws_equals_torchvision_image_by_image(pictures, monkeypatch):
    """Each picture meets every sub-policy with every pair of signs, both operations applied or just one of them."""
    theirs = reference.AutoAugment(reference.AutoAugmentPolicy.CIFAR10)
    cases = [(policy, signs, probs) for policy in range(25) for signs in ((0, 0), (0, 1), (1, 0), (1, 1)) for probs in ((0, 0), (0, 1))]
    images = pictures[torch.arange(len(cases)) * 7 % len(pictures)]
    expected, operations = [], np.empty((len(cases), 2), dtype=np.int64)
    for i, (policy, signs, probs) in enumerate(cases):
        drawn = policy, torch.tensor(probs, dtype=torch.float32), torch.tensor(signs)
        monkeypatch.setattr(theirs, "get_params", lambda _, drawn=drawn: drawn)
        expected.append(from_pil(theirs(to_pil(images[i]))))
        for position in range(2):
            happens = probs[position] <= theirs.policies[policy][position][1]
            # torchvision's sign 0 is the negative one; its "<=" lets probability 0 happen at a draw of exactly 0.
            row = (policy * 2 + position) * 2 + (1 - signs[position])
            operations[i, position] = row if happens else autoaugment.IDENTITY
    nothing = np.zeros(len(cases), dtype=np.int64)
    draws = Draws(top=nothing, left=nothing, flip=nothing.astype(bool), operations=operations)
    found = augment(images, draws, AugmentConfig(crop_padding=0))
    wrong = [cases[i] for i in range(len(cases)) if not torch.equal(found[i], expected[i])]
    assert not wrong, f"{len(wrong)} of {len(cases)} differ: {wrong[:5]}"


def test_each_operation_is_drawn_as_often_as_the_policy_says():
    rows = draw_operations(0, 0, 200_000)
    for policy, sub in enumerate(autoaugment.POLICY):
        for position, (name, probability, _) in enumerate(sub):
            first = (policy * 2 + position) * 2
            shares = [np.mean(rows[:, position] == first + negative) for negative in (0, 1)]
            assert shares == pytest.approx([probability / 50] * 2, abs=0.0015), f"{policy} {name}: {shares}"
    both = np.mean((rows != autoaugment.IDENTITY).all(axis=1))
    assert both == pytest.approx(np.mean([sub[0][1] * sub[1][1] for sub in autoaugment.POLICY]), abs=0.005), both


def test_an_image_gets_the_same_whatever_batch_it_is_in(pictures):
    config = AugmentConfig()
    draws = draw(0, 0, len(pictures), config)
    whole = augment(pictures, draws, config)
    some = np.array([40, 3, 77])
    assert torch.equal(augment(pictures[some], draws.of(some), config), whole[some])


def test_crop_and_flip_equal_torchvision_on_pil_images(pictures):
    draws = draw(3, 0, len(pictures), AugmentConfig(autoaugment="none"))
    found = crop_and_flip(pictures, draws, 4)
    for i, image in enumerate(pictures):
        expected = F.crop(F.pad(to_pil(image), 4), draws.top[i], draws.left[i], 32, 32)
        expected = F.hflip(expected) if draws.flip[i] else expected
        assert torch.equal(found[i], from_pil(expected)), f"image {i}: {draws.top[i]}, {draws.left[i]}, {draws.flip[i]}"


def test_crops_and_flips_are_uniform_over_their_choices():
    draws = draw(0, 0, 81_000, AugmentConfig())
    counts = np.bincount(draws.top * 9 + draws.left, minlength=81)
    assert len(counts) == 81 and np.abs(counts - 1000).max() < 5 * 1000**0.5, counts
    assert abs(draws.flip.mean() - 0.5) < 0.01, draws.flip.mean()


def test_everything_switched_off_leaves_images_as_they_are(pictures):
    config = AugmentConfig(crop_padding=0, flip=False, autoaugment="none")
    assert torch.equal(augment(pictures, draw(0, 0, len(pictures), config), config), pictures)


def test_normalise_gives_the_bits_of_to_tensor_and_normalize(pictures):
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    expected = torch.stack([F.normalize(F.to_tensor(to_pil(image)), mean, std) for image in pictures])
    assert torch.equal(normalise(pictures, torch.tensor(mean), torch.tensor(std)), expected)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 3, 8, 10, generator=generator), torch.tensor([0, 1, 2, 3, 4, 1]), torch.arange(6).roll(1)


def test_mixup_equals_torchvision_v2_when_partners_are_its_neighbours(batch):
    images, labels, partners = batch
    params = {"labels": labels, "batch_size": 6, "lam": 0.3}
    theirs = v2.MixUp(num_classes=5)
    torch.testing.assert_close(mix_images(images, partners, Mix(mode="mixup", own_share=0.3)), theirs.transform(images, params))
    torch.testing.assert_close(soft_targets([labels, labels[partners]], [0.3, 0.7], 5, 0.0), theirs.transform(labels, params))


def test_cutmix_equals_torchvision_v2_when_partners_are_its_neighbours(batch):
    images, labels, partners = batch
    top, bottom, left, right = 2, 7, 1, 5
    share = 1 - 20 / 80
    params = {"labels": labels, "batch_size": 6, "box": (left, top, right, bottom), "lam_adjusted": share}
    theirs = v2.CutMix(num_classes=5)
    found = mix_images(images, partners, Mix(mode="cutmix", own_share=share, box=(top, bottom, left, right)))
    assert torch.equal(found, theirs.transform(images, params))
    torch.testing.assert_close(soft_targets([labels, labels[partners]], [share, 1 - share], 5, 0.0), theirs.transform(labels, params))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_give_the_loss_of_torchs_smoothed_cross_entropy(batch, smoothing):
    _, labels, partners = batch
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    hard = torch.nn.functional.one_hot(labels, 5) * 0.7 + torch.nn.functional.one_hot(labels[partners], 5) * 0.3
    expected = torch.nn.functional.cross_entropy(logits, hard, label_smoothing=smoothing, reduction="sum")
    targets = soft_targets([labels, labels[partners]], [0.7, 0.3], 5, smoothing)
    torch.testing.assert_close(-(targets * logits.log_softmax(1)).sum(), expected)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_the_dominant_label_is_the_largest_target(batch, share):
    _, labels, partners = batch
    mix = Mix(mode="mixup", own_share=share)
    targets = soft_targets([labels, labels[partners]], [share, 1 - share], 5, 0.1)
    assert torch.equal(dominant_labels(labels, partners, mix), targets.argmax(1))


def test_modes_are_drawn_with_their_shares_and_a_box_is_as_large_as_its_label_says():
    config = AugmentConfig(mix_prob=0.8, cutmix_share=0.25)
    mixes = [draw_mix(0, step, config, 32, 24) for step in range(4000)]
    shares = {mode: np.mean([mix.mode == mode for mix in mixes]) for mode in ("none", "mixup", "cutmix")}
    assert shares == pytest.approx({"none": 0.2, "mixup": 0.6, "cutmix": 0.2}, abs=0.03), shares
    for mix in (mix for mix in mixes if mix.mode == "cutmix"):
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= 32 and 0 <= left <= right <= 24, mix
        assert mix.own_share == pytest.approx(1 - (bottom - top) * (right - left) / (32 * 24)), mix


def test_lambda_of_mixup_follows_beta_of_its_alpha():
    draws = {
        alpha: [draw_mix(0, s, AugmentConfig(cutmix_share=0, mixup_alpha=alpha), 8, 8).own_share for s in range(3000)]
        for alpha in (1.0, 0.2)
    }
    variances = {alpha: np.var(values) for alpha, values in draws.items()}
    assert variances == pytest.approx({1.0: 1 / 12, 0.2: 1 / 5.6}, rel=0.06), variances


def test_box_centres_are_uniform_over_the_image():
    boxes = [draw_mix(0, step, AugmentConfig(cutmix_share=1, cutmix_alpha=8.0), 64, 64).box for step in range(3000)]
    whole = np.array([box for box in boxes if box[0] > 0 and box[1] < 64])
    centres = whole[:, :2].mean(axis=1)
    assert abs(centres.mean() - 32) < 1 and centres.min() < 24 and centres.max() > 40, (centres.mean(), centres.min(), centres.max())


def test_partners_are_a_permutation_inside_the_micro_batch_and_differ_between_them():
    first, second = (draw_partners(0, 5, micro, 64, 64) for micro in (0, 1))
    assert sorted(first) == sorted(second) == list(range(64))
    assert not np.array_equal(first, second)
    assert sorted(draw_partners(0, 5, 3, 64, 17)) == list(range(17))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_pixels_as_the_cpu(pictures):
    config = AugmentConfig()
    draws = draw(0, 0, len(pictures), config)
    assert torch.equal(augment(pictures.cuda(), draws, config).cpu(), augment(pictures, draws, config))
