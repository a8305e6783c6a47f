"""Training batches per core against torchvision's pipelines: PIL image by image, and v2 on tensors image by image.

All sides crop, flip, AutoAugment and normalise the same images into batches, without mixing, in one thread and one process; on a CPU
what ours draws at an epoch's start is charged to each image. Speed is judged only beside equality: each operation's pixels are
counted against torchvision on PIL images. AugMix (the paper's nine operations, nearest filter) is timed against torchvision's and
against the authors' loop over PIL images, AugMix and noise against our own batches without. Needs pillow and torchvision.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from measure import Report, alternate, amount, parser, speedup

if TYPE_CHECKING:
    import torch

    from seresnet.data import TrainBatches

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
#: Per core against PIL, on a CPU; images a second and share of a step on a GPU.
FLOOR_PIL, AIM_IMAGES_PER_S, AIM_SHARE_PCT = 5.0, 2e6, 3.0
SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
NAMES = (*SIGNED, "posterize", "solarize", "autocontrast", "equalize", "invert")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. images: of the data set; part: of them, what a round of the slow pipelines does."""

    images: int
    part: int
    rounds: int
    compared: int
    batches: tuple[int, ...]


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--data", metavar="PATH", type=Path, help="CIFAR-10 as seresnet.prepare reads it; unset = made-up images")
    args = options.parse_args()
    import torch

    torch.set_num_threads(1)
    report = Report(script="augment.py")
    report.introduce("one thread on each side; no mixing; ratios are medians (quartiles, rounds)")
    cuda = torch.cuda.is_available()
    sizes = Sizes(images=50_000 if cuda else 8192, part=1024, rounds=15, compared=2048, batches=(32, 64, 128, 256, 1024))
    if args.quick:
        sizes = replace(sizes, images=min(sizes.images, 2048), part=128, rounds=2, compared=128, batches=(64, 1024))
    device = torch.device("cuda" if cuda else "cpu")
    images = _images(args.data, sizes.images)
    _equality(report, images[: sizes.compared])
    drawn_s = _epoch_start(report, sizes)
    _speed(report, images, sizes, device, 0.0 if cuda else drawn_s)
    _augmix(report, images, sizes, device)
    _share(report, images, sizes, device)
    return report.finish(args)


def _images(path: Path | None, n: int) -> npt.NDArray[np.uint8]:
    import sample_data

    if path is None:
        return sample_data.made_up(n, 10).train_images
    with tempfile.TemporaryDirectory() as folder:
        return np.array(sample_data.given(path, Path(folder), n, 10).train_images)


def _batches(
    images: npt.NDArray[np.uint8], device: "torch.device", batch_size: int, data_on: str = "device", **augmentation: Any
) -> "TrainBatches":
    from seresnet.config import AugmentConfig, RunConfig, TrainConfig
    from seresnet.data import TrainBatches, load_splits

    train = TrainConfig(global_batch_size=batch_size, device=device.type, data_on=data_on)  # type: ignore[arg-type]
    config = RunConfig(train=train, augment=AugmentConfig(mix_prob=0.0, **augmentation))
    return TrainBatches(load_splits(config, _arrays(images), device).train, config, 10, MEAN, STD, device)


def _arrays(images: npt.NDArray[np.uint8]) -> Any:
    labels = np.arange(len(images)) % 10
    return SimpleNamespace(train_images=images, train_labels=labels, test_images=images[:10], test_labels=labels[:10])


def _a_pass(batches: "TrainBatches", device: "torch.device", images: int) -> Callable[[], None]:
    """The next batches of the epoch, so many images of them; waits for the device."""
    import torch

    per_epoch = len(batches.split) // batches.config.train.global_batch_size
    count, position = max(1, images // batches.config.train.global_batch_size), 0

    def run() -> None:
        nonlocal position
        for _ in range(count):
            batches.micro_batch(0, position % per_epoch, 0)
            position += 1
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _by_pil(images: npt.NDArray[np.uint8]) -> Callable[[], object]:
    """As torchvision's data sets do it: an image made of the array, transforms, a stack."""
    import torch
    from PIL import Image
    from torchvision import transforms as t

    policy = t.AutoAugment(t.AutoAugmentPolicy.CIFAR10)
    steps = t.Compose([t.RandomCrop(32, padding=4), t.RandomHorizontalFlip(), policy, t.ToTensor(), t.Normalize(MEAN, STD)])
    return lambda: torch.stack([steps(Image.fromarray(image)) for image in images])


def _augmix(report: Report, images: npt.NDArray[np.uint8], sizes: Sizes, device: "torch.device") -> None:
    """Batches of 256 with AugMix, with noise, with neither. An epoch's draws are made in the first pass, which is not counted."""
    some, ours = images[: sizes.part // 4], len(images) if device.type == "cuda" else min(1024, len(images))
    ways: dict[str, dict[str, Any]] = {
        "crop and flip": {},
        "AugMix": {"augmix_severity": 3},
        "noise": {"noise_std": 0.1},
        "AutoAugment": {"autoaugment": "cifar10"},
    }
    passes = {name: _a_pass(_batches(images, device, 256, **{"autoaugment": "none", **on}), device, ours) for name, on in ways.items()}
    others = {"AugMix, torchvision": _augmix_by_torchvision(some), "AugMix, PIL": _augmix_by_pil(some)}
    seconds = alternate({**others, **passes}, sizes.rounds)
    each = {name: [s / (ours if name in ways else len(some)) for s in taken] for name, taken in seconds.items()}
    for name, taken in each.items():
        report.row(f"images/s, {name}{', ours, batches of 256' if name in ways else ''}", amount([1 / s for s in taken]))
    for name in others:
        report.row(f"AugMix, ours against {name.split()[1]}, batches of 256", speedup(each["AugMix"], each[name]), floor=FLOOR_PIL)
    for name in ("AugMix", "noise"):
        report.row(f"cost of a batch with {name} against crop and flip alone", speedup(each["crop and flip"], each[name]))


def _augmix_by_torchvision(images: npt.NDArray[np.uint8]) -> Callable[[], object]:
    """Given PIL images; inside, torchvision works on tensors."""
    import torch
    from PIL import Image
    from torchvision import transforms as t

    mix = t.AugMix(severity=3, all_ops=False, interpolation=t.InterpolationMode.NEAREST)
    steps = t.Compose([t.RandomCrop(32, padding=4), t.RandomHorizontalFlip(), mix, t.ToTensor(), t.Normalize(MEAN, STD)])
    return lambda: torch.stack([steps(Image.fromarray(image)) for image in images])


def _augmix_by_pil(images: npt.NDArray[np.uint8]) -> Callable[[], object]:
    """As the authors' code does it: chains on PIL images, each chain's end made a normalised tensor and added up."""
    import torch
    from PIL import Image
    from torchvision import transforms as t

    from seresnet.augmix import OPERATIONS

    begin = t.Compose([t.RandomCrop(32, padding=4), t.RandomHorizontalFlip()])
    end, draw = t.Compose([t.ToTensor(), t.Normalize(MEAN, STD)]), np.random.default_rng(0)

    def mixed(image: Any) -> "torch.Tensor":
        own, weights = draw.random(), draw.dirichlet([1.0] * 3)
        total = own * end(image)
        for weight in weights:
            done = image
            for _ in range(draw.integers(1, 4)):
                level = float(draw.uniform(0.1, 3))
                done = _augmix_operation(done, OPERATIONS[draw.integers(len(OPERATIONS))], level, -1 if draw.random() > 0.5 else 1)
            total += (1 - own) * weight * end(done)
        return total

    return lambda: torch.stack([mixed(begin(Image.fromarray(image))) for image in images])


def _augmix_operation(image: Any, name: str, level: float, sign: int) -> Any:
    from PIL import Image, ImageOps

    def affine(*matrix: float) -> Any:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.NEAREST)

    slope, pixels = sign * level * 0.03, sign * int(level * 32 / 30)
    return {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, 4 - int(level * 0.4)),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(level * 25.6)),
        "rotate": lambda: image.rotate(sign * int(level * 3), resample=Image.Resampling.NEAREST),
        "shear_x": lambda: affine(1, slope, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, slope, 1, 0),
        "translate_x": lambda: affine(1, 0, pixels, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, pixels),
    }[name]()


def _by_v2(images: npt.NDArray[np.uint8]) -> Callable[[], object]:
    import torch
    from torchvision.transforms import v2

    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    to_float = v2.ToDtype(torch.float32, scale=True)
    steps = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), policy, to_float, v2.Normalize(MEAN, STD)])
    tensors = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return lambda: torch.stack([steps(image) for image in tensors])


def _speed(report: Report, images: npt.NDArray[np.uint8], sizes: Sizes, device: "torch.device", drawn_s: float) -> None:
    """A round is `part` images of each side, or on a GPU an epoch of ours. drawn_s: an image's share of what is drawn before the epoch."""
    some, cuda = images[: sizes.part], device.type == "cuda"
    ours = len(images) if cuda else min(1024, len(images))
    variants: dict[str, Callable[[], object]] = {"PIL": _by_pil(some), "v2": _by_v2(some)}
    for batch_size in sizes.batches:
        variants[f"{batch_size}"] = _a_pass(_batches(images, device, batch_size), device, ours)
        alone = _batches(images, device, batch_size)
        alone._ahead = 1
        variants[f"{batch_size} alone"] = _a_pass(alone, device, ours)
    variants["from the host"] = _a_pass(_batches(images, device, 256, "host"), device, ours)
    variants["on the device"] = _a_pass(_batches(images, device, 256), device, ours)
    seconds = alternate(variants, sizes.rounds)
    each = {name: [s / sizes.part if name in ("PIL", "v2") else s / ours + drawn_s for s in taken] for name, taken in seconds.items()}
    for name in ("PIL", "v2"):
        report.row(f"images/s, {name}", amount([1 / s for s in each[name]]))
    for batch_size in sizes.batches:
        aim = AIM_IMAGES_PER_S if cuda and batch_size == 1024 else None
        report.row(f"images/s, ours, batches of {batch_size}", amount([1 / s for s in each[f"{batch_size}"]]), floor=aim)
    for batch_size in sizes.batches:
        chunk = speedup(each[f"{batch_size}"], each[f"{batch_size} alone"])
        report.row(f"augmented ahead against each batch alone, batches of {batch_size}", chunk)
    report.row("images on the device against on the host, batches of 256", speedup(each["on the device"], each["from the host"]))
    for name in ("PIL", "v2"):
        for batch_size in (64, 1024):
            floor = FLOOR_PIL if name == "PIL" else None
            report.row(f"ours against {name}, batches of {batch_size}", speedup(each[f"{batch_size}"], each[name]), floor=floor)


def _epoch_start(report: Report, sizes: Sizes) -> float:
    """Seconds an image of what an epoch of 50,000 draws at its start, on the host; on a GPU a thread does it during the epoch before."""
    from seresnet.augment import draw
    from seresnet.config import AugmentConfig
    from seresnet.randomness import permutation, words

    config = AugmentConfig()

    def all_draws() -> None:
        draw(0, 1, 50_000, config)
        permutation(words(0, "order", 1, 50_000)[:, 0])

    taken = alternate({"draws": all_draws}, 2 * sizes.rounds)["draws"]
    report.row("draws of an epoch of 50,000 images", amount([1000 * s for s in taken]), "ms")
    return statistics.median(taken) / 50_000


def _share(report: Report, images: npt.NDArray[np.uint8], sizes: Sizes, device: "torch.device") -> None:
    """Our batches, mixing included, against whole steps; the report's network and batch on a GPU, width 16 and 64 on a CPU."""
    import torch

    from seresnet.config import DataConfig, ModelConfig, RunConfig, TrainConfig
    from seresnet.data import TrainBatches, load_splits
    from seresnet.engine import Engine
    from seresnet.models import build_model
    from seresnet.world import World

    cuda = device.type == "cuda"
    batch_size, width = (1024, 64) if cuda else (64, 16)
    train = TrainConfig(global_batch_size=batch_size, device=device.type, amp="bf16" if cuda else "off")  # type: ignore[arg-type]
    config = RunConfig(model=ModelConfig(width=width, attention="se"), data=DataConfig(name="cifar10"), train=train)
    split = load_splits(config, _arrays(images), device).train
    engine = Engine(config, build_model(config.model, 10, 0), TrainBatches(split, config, 10, MEAN, STD, device), _world(World, device))

    def step() -> None:
        engine.train_step()
        if cuda:
            torch.cuda.synchronize()

    steps, count = 8, max(8, len(images) // batch_size // 2)
    a_pass = _a_pass(TrainBatches(split, config, 10, MEAN, STD, device), device, count * batch_size)
    seconds = alternate({"data": a_pass, "steps": lambda: [step() for _ in range(steps)]}, max(2, sizes.rounds // 3))
    share = amount([100 * (d / count) / (s / steps) for d, s in zip(seconds["data"], seconds["steps"], strict=True)])
    report.row(f"share of a step, width {width}, batches of {batch_size}", share, "%", ceiling=AIM_SHARE_PCT if cuda else None)


def _world(world: Any, device: "torch.device") -> Any:
    import torch

    return world(rank=0, local_rank=0, size=1, device=torch.device("cuda", 0) if device.type == "cuda" else device)


def _equality(report: Report, images: npt.NDArray[np.uint8]) -> None:
    """Per cent of values equal to torchvision's on PIL images: each operation at drawn magnitudes, then everything in a row."""
    import torch
    from torchvision.transforms.autoaugment import AutoAugment

    from seresnet.autoaugment import apply_operations, operation_table

    planar, draw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), np.random.default_rng(0)
    planar = planar.to("cuda" if torch.cuda.is_available() else "cpu")
    space = AutoAugment()._augmentation_space(10, (32, 32))
    for name in NAMES:
        magnitudes, signed = space[_torchvision_name(name)]
        values = sorted({sign * float(value) for value in magnitudes.reshape(-1) for sign in ((1, -1) if signed else (1,))})
        rows = draw.integers(0, len(values), len(images))
        found = apply_operations(planar, rows, operation_table([(name, value) for value in values], 32, 32, planar.device)).cpu()
        expected = [_by_torchvision(_pil(image), name, values[row]) for image, row in zip(images, rows, strict=True)]
        floor = 99.9 if name in GEOMETRIC else 100.0
        report.row(f"equal to PIL, {name}, {len(images)} images", _equal_pct(found, expected), "%", floor=floor)
    report.row(f"equal to PIL, crop, flip and policy, {len(images)} images", _whole_policy(images, planar), "%", floor=99.9)


def _whole_policy(images: npt.NDArray[np.uint8], planar: "torch.Tensor") -> float:
    """torchvision's own operations, given our draws where its transforms would make theirs."""
    from torchvision.transforms import functional

    from seresnet.augment import augment, draw
    from seresnet.autoaugment import IDENTITY, POLICY, magnitude
    from seresnet.config import AugmentConfig

    draws, expected = draw(0, 0, len(images), AugmentConfig()), []
    assert draws.operations is not None
    for i, image in enumerate(images):
        done = functional.crop(functional.pad(_pil(image), 4), int(draws.top[i]), int(draws.left[i]), 32, 32)
        done = functional.hflip(done) if draws.flip[i] else done
        for row in draws.operations[i].tolist():
            if row != IDENTITY:
                name, _, level = POLICY[row // 4][row // 2 % 2]
                done = _by_torchvision(done, name, magnitude(name, level, 32, 32) * (-1 if row % 2 and name in SIGNED else 1))
        expected.append(done)
    return _equal_pct(augment(planar, draws, AugmentConfig()).cpu(), expected)


def _by_torchvision(image: Any, name: str, value: float) -> Any:
    """torchvision's own operation on a PIL image."""
    from torchvision.transforms import InterpolationMode, autoaugment

    return autoaugment._apply_op(image, _torchvision_name(name), value, InterpolationMode.NEAREST, None)


def _torchvision_name(name: str) -> str:
    return {"autocontrast": "AutoContrast"}.get(name, name.title().replace("_", ""))


def _pil(image: npt.NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(image)


def _equal_pct(found: "torch.Tensor", expected: list[Any]) -> float:
    theirs = np.stack([np.asarray(image) for image in expected]).transpose(0, 3, 1, 2)
    return float(100 * np.mean(found.numpy() == theirs))


if __name__ == "__main__":
    sys.exit(main())
