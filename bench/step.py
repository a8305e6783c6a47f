"""One training step, ours against the plain loop: the same network written plainly, NCHW, eager, torch.optim.SGD, soft targets.

Both see the same preloaded images, so that the step alone is timed; augmentation is bench/augment.py's matter, the epoch bench/epoch.py's.
On CPU: width 16 and 64 (the floor of bf16 is that of width 64), on a GPU the report's network at batch 1024.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import Report, alternate, parser, speedup
from torch import Tensor, nn

from seresnet.assembly import make_deterministic
from seresnet.config import AugmentConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from seresnet.data import MicroBatch, TrainBatches, load_splits
from seresnet.engine import Engine
from seresnet.models import build_model, count_parameters
from seresnet.world import World

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}
Step = Callable[[], object]


class PlainSE(nn.Module):
    """Squeeze-and-excitation as it is usually written."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, channels // 16), nn.ReLU(), nn.Linear(channels // 16, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class PlainBlock(nn.Module):
    """He et al.'s basic block, as torchvision writes it, with SE before the addition."""

    def __init__(self, inputs: int, channels: int, stride: int, se: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            PlainSE(channels) if se else nn.Identity(),
        )
        changes = stride != 1 or inputs != channels
        norm = [nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)]
        self.shortcut = nn.Sequential(*norm) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x), inplace=True)


def plain_network(width: int, blocks: tuple[int, ...], block: Callable[[int, int, int], nn.Module]) -> nn.Module:
    """The report's network of these blocks: block(inputs, channels, stride)."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    inputs = width
    for stage, depth in enumerate(blocks):
        for index in range(depth):
            channels, stride = width * 2**stage, 2 if stage and not index else 1
            layers.append(block(inputs, channels, stride))
            inputs = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def plain_block(inputs: int, channels: int, stride: int) -> nn.Module:
    return PlainBlock(inputs, channels, stride, se=True)


def timms_block(inputs: int, channels: int, stride: int) -> nn.Module:
    """timm's BasicBlock with its own SE module. Raises ImportError without timm."""
    from timm.layers import SEModule
    from timm.models.resnet import BasicBlock

    changes = stride != 1 or inputs != channels
    shortcut = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)) if changes else None
    return BasicBlock(inputs, channels, stride, downsample=shortcut, attn_layer=functools.partial(SEModule, rd_divisor=1))


class Preloaded(TrainBatches):
    """Batches that are made before the clock runs."""

    def micro_batch(self, epoch: int, batch: int, micro: int) -> MicroBatch:
        made: dict[int, MicroBatch] = self.__dict__.setdefault("made", {})
        if batch not in made:
            made[batch] = super().micro_batch(epoch, batch, micro)
        return made[batch]


def run_config(width: int, batch: int, device: torch.device, *, attention: str = "se", ema: float = 0.0, **train: Any) -> RunConfig:
    """What is timed; train: over what is default."""
    return RunConfig(
        model=ModelConfig(width=width, attention=attention),  # type: ignore[arg-type]
        augment=AugmentConfig(autoaugment="none"),
        optim=OptimConfig(warmup_epochs=0, lr=0.01, ema_decay=ema),
        train=TrainConfig(**{"epochs": 10**6, "global_batch_size": batch, "device": device.type, **train}),
    )


def engine_of(run: RunConfig, device: torch.device) -> Engine:
    """An engine on two batches of random images."""
    draw, n = np.random.default_rng(0), 2 * run.train.global_batch_size
    images, labels = draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10
    arrays = SimpleNamespace(train_images=images, train_labels=labels, test_images=images[:10], test_labels=labels[:10])
    batches = Preloaded(load_splits(run, arrays, device).train, run, 10, (0.5,) * 3, (0.25,) * 3, device)
    for batch in range(batches.steps_per_epoch):
        batches.micro_batch(0, batch, 0)
    return Engine(run, build_model(run.model, 10, 0), batches, World(rank=0, local_rank=0, size=1, device=device))


def waiting(step: Step, device: torch.device, steps: int) -> Step:
    """So many steps and then the device's end of them."""

    def call() -> None:
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return call


def set_mode(run: RunConfig) -> None:
    """Deterministic or free, whatever the variant before had."""
    make_deterministic(run)
    if not run.train.deterministic:
        torch.use_deterministic_algorithms(False)


def our_step(run: RunConfig, device: torch.device, steps: int = 1) -> Step:
    """Our engine's step. Modes of determinism are set at each call, because variants are timed in turn."""
    engine = engine_of(run, device)

    def step() -> None:
        set_mode(run)
        engine.train_step()

    return waiting(step, device, steps)


def plain_step(model: nn.Module, run: RunConfig, device: torch.device, steps: int = 1) -> Step:
    """The loop that everybody writes, on the batches of ours. In free mode, as everybody runs it, though ours is deterministic."""
    batches, model, amp = engine_of(run, device).batches, model.to(device).train(), run.train.amp
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    free, number = replace(run, train=replace(run.train, deterministic=False)), 0

    def step() -> None:
        nonlocal number
        set_mode(free)
        number += 1
        data = batches.micro_batch(0, number % 2, 0)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=DTYPES[amp], enabled=amp != "off"):
            loss = F.cross_entropy(model(data.images), data.targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return waiting(step, device, steps)


def against_plain(report: Report, args: argparse.Namespace, width: int, batch: int, amp: str, device: torch.device) -> None:
    """Ours against the plain loop and timm's blocks, at equal precision."""
    run, cuda = run_config(width, batch, device, amp=amp), device.type == "cuda"
    plain = plain_network(width, run.model.blocks, plain_block)
    ours = count_parameters(build_model(run.model, 10, 0))
    assert count_parameters(plain) == ours, f"the plain network has {count_parameters(plain)} parameters, ours {ours}"
    steps = 10 if cuda else 1
    best = replace(run, train=replace(run.train, compile=args.compile or cuda))
    variants = {"ours": our_step(best, device, steps), "plain": plain_step(plain, run, device, steps)}
    with contextlib.suppress(ImportError):
        variants["timm's blocks"] = plain_step(plain_network(width, run.model.blocks, timms_block), run, device, steps)
    seconds = alternate(variants, rounds(args, width), 2 if cuda else 1)
    for name, other in list(seconds.items())[1:]:
        floor = {"floor": 1.8 if cuda else 1.0} if name == "plain" else {}
        report.row(f"width {width}, {amp}: ours against {name}", speedup(seconds["ours"], other), **floor)
    report.row(f"width {width}, {amp}: our images a second", batch * steps / sorted(seconds["ours"])[len(seconds["ours"]) // 2])


def precision(report: Report, args: argparse.Namespace, width: int, batch: int, floor: float | None) -> None:
    """bf16 against float32, both ours."""
    device = torch.device("cpu")
    if not torch.cpu._is_avx512_bf16_supported():
        report.row(f"width {width}: bf16 against float32, both NHWC", "skipped: this CPU has no AVX-512 bf16")
        return
    variants = {amp: our_step(run_config(width, batch, device, amp=amp), device) for amp in ("bf16", "off")}
    # More than elsewhere: on the CPU at hand it lies near its floor.
    seconds = alternate(variants, 1 if args.quick else 14)
    report.row(f"width {width}: bf16 against float32, both NHWC", speedup(seconds["bf16"], seconds["off"]), floor=floor)


def settings(report: Report, args: argparse.Namespace, width: int, batch: int, device: torch.device) -> None:
    """Each setting against the default, and torch's own SGD step in its three forms."""
    base = run_config(width, batch, device, amp="bf16")
    changes = {
        "free mode": replace(base.train, deterministic=False),
        "fused SGD": replace(base.train, fused_optimizer=True),
        "NCHW": replace(base.train, channels_last=False),
    }
    if args.compile:
        changes["compiled blocks"] = replace(base.train, compile=True)
    runs = {"default": base, **{name: replace(base, train=train) for name, train in changes.items()}}
    runs["EMA"] = run_config(width, batch, device, amp="bf16", ema=0.999)
    steps = 10 if device.type == "cuda" else 1
    seconds = alternate({name: our_step(run, device, steps) for name, run in runs.items()}, rounds(args, width))
    for name in list(runs)[1:]:
        report.row(f"width {width}, bf16: {name} against the default", speedup(seconds[name], seconds["default"]))


def sgd_forms(report: Report, args: argparse.Namespace, width: int, device: torch.device) -> None:
    """The update alone."""
    variants: dict[str, Step] = {}
    for name, form in {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}.items():
        weights = [
            p.detach().to(device).requires_grad_() for p in build_model(ModelConfig(width=width, attention="se"), 10, 0).parameters()
        ]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer = torch.optim.SGD(weights, lr=1e-9, momentum=0.9, weight_decay=5e-4, **form)  # type: ignore[arg-type]
        variants[name] = waiting(optimizer.step, device, 10)
    seconds = alternate(variants, 5 if args.quick else 31, 2)
    for name in ("foreach", "fused"):
        report.row(f"width {width}: SGD update alone, {name} against plain", speedup(seconds[name], seconds["plain"]))


def rounds(args: argparse.Namespace, width: int) -> int:
    """Few of the long ones: the whole takes less than three minutes on one core."""
    return 1 if args.quick else 30 if torch.cuda.is_available() else 10 if width > 32 else 12


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--compile", action="store_true", help="on the CPU, too: compiling takes a minute for each precision")
    args = made.parse_args()
    report = Report(script="step.py")
    report.introduce("a ratio above 1: the first is faster")
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        device = torch.device("cuda")
        for amp in ("bf16", "fp16"):
            against_plain(report, args, 64, 1024, amp, device)
        settings(report, args, 64, 1024, device)
        sgd_forms(report, args, 64, device)
        return report.finish(args)
    device = torch.device("cpu")
    for width, batch in ((16, 64),) if args.quick else ((16, 64), (64, 32)):
        for amp in ("off", "bf16"):
            against_plain(report, args, width, batch, amp, device)
        precision(report, args, width, batch, 1.8 if width == 64 else None)
    settings(report, args, 16, 64, device)
    sgd_forms(report, args, 64, device)
    return report.finish(args)


if __name__ == "__main__":
    sys.exit(main())
