"""Engines of a tiny network on 70 random images of 16 x 16, for tests that look inside a step."""

from types import SimpleNamespace

import numpy as np
import torch

from seresnet.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from seresnet.data import Splits, TrainBatches, load_splits
from seresnet.engine import Engine
from seresnet.models import build_model
from seresnet.world import World

CPU = torch.device("cpu")


def arrays(n: int = 70, classes: int = 5, size: int = 16) -> SimpleNamespace:
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (n, size, size, 3), dtype=np.uint8), np.arange(n) % classes
    return SimpleNamespace(
        train_images=images, train_labels=labels, test_images=images[:23], test_labels=labels[:23], mean=(0.5,) * 3, std=(0.25,) * 3
    )


def config(micro: int | None = None, **train: object) -> RunConfig:
    values = {"epochs": 5, "global_batch_size": 32, "micro_batch_size": micro, "device": "cpu", "amp": "off", "eval_batch_size": 10}
    return RunConfig(
        model=ModelConfig(width=4, blocks=(1, 1), attention="se", reduction=2),
        data=DataConfig(name="digits"),
        augment=AugmentConfig(autoaugment="none", crop_padding=2),
        optim=OptimConfig(lr=0.1, warmup_epochs=2),
        train=TrainConfig(**{**values, **train}),
    )


def splits(run: RunConfig) -> Splits:
    return load_splits(run, arrays(), CPU)


def engine(run: RunConfig) -> Engine:
    data = arrays()
    batches = TrainBatches(splits(run).train, run, 5, data.mean, data.std, CPU)
    return Engine(run, build_model(run.model, 5, run.train.seed), batches, World(rank=0, local_rank=0, size=1, device=CPU))
