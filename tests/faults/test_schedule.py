"""900 epochs without training: what a step is follows from its number alone, in whatever order it is asked for."""

import math
from pathlib import Path

import numpy as np
import torch

from seresnet.config import RunConfig
from seresnet.config_file import read_run_config
from seresnet.data import Split, TrainBatches
from seresnet.engine import Engine
from seresnet.models import build_model
from seresnet.world import World

CONFIG = Path(__file__).parents[2] / "configs" / "seresnet.yaml"
CPU = torch.device("cpu")


def engine_of(config: RunConfig, images: int, rows: int) -> Engine:
    """A fresh engine over images of one pixel: nothing is trained."""
    indices = np.sort(np.random.default_rng(1).permutation(rows)[:images])
    split = Split(
        images=torch.zeros(images, 3, 1, 1, dtype=torch.uint8), labels=torch.zeros(images, dtype=torch.int64), indices=indices, rows=rows
    )
    batches = TrainBatches(split, config, 10, [0.5] * 3, [0.2] * 3, CPU)
    return Engine(config, build_model(config.model, 10, 0), batches, World(rank=0, local_rank=0, size=1, device=CPU))


def position(engine: Engine, step: int) -> tuple[int, int, int, float]:
    """Epoch, first slot, slots and rate of a step."""
    engine.step = step
    batch = step % engine.steps_per_epoch
    return engine.epoch, batch * engine.config.train.global_batch_size, engine.batches.size(batch), engine.lr_of(engine.epoch)


def rate_by_hand(epoch: int, epochs: int) -> float:
    """configs/seresnet.yaml: ten epochs of warm-up to 0.1, then half a cosine over the rest."""
    if epoch < 10:
        return 0.1 * (epoch + 1) / 10
    return 0.05 * (1 + math.cos(math.pi * (epoch - 10) / (epochs - 10)))


def test_every_step_of_900_epochs_follows_from_its_number(amount, report) -> None:
    config = read_run_config(CONFIG, ["train.device=cpu", "train.amp=off", "model.width=2", "data.val_images=5000"]).config
    images, size, epochs = 45_000, config.train.global_batch_size, config.train.epochs
    assert (size, epochs) == (1024, 900), "this test's numbers are those of configs/seresnet.yaml"
    replay = [(e, first, min(size, images - first), rate_by_hand(e, epochs)) for e in range(epochs) for first in range(0, images, size)]
    engine = engine_of(config, images, 50_000)
    assert engine.steps_per_epoch * epochs == len(replay) == 39_600
    in_turn = [position(engine, step) for step in range(len(replay))]
    for step in np.random.default_rng(0).permutation(len(replay)).tolist():
        found = position(engine, step)
        assert found == in_turn[step], f"step {step}: {found} out of turn, {in_turn[step]} in turn"
        assert found[:3] == replay[step][:3] and math.isclose(found[3], replay[step][3], abs_tol=1e-15), (
            f"step {step}: {found} != {replay[step]}"
        )
    checked = check_orders(config, images, amount(20, 150, 900))
    report(
        "900-epoch schedule without training", f"{len(replay)} steps, {checked} permutations", "lr, position and order follow from the step"
    )


def check_orders(config: RunConfig, images: int, epochs: int) -> int:
    """Orders asked for in turn, and again out of order from another engine's batches; the slots that a batch reads."""
    first, second = engine_of(config, images, 50_000).batches, engine_of(config, images, 50_000).batches
    chosen = np.linspace(0, config.train.epochs - 1, epochs).astype(int).tolist()
    seen: dict[int, bytes] = {}
    for epoch in chosen:
        order = first.order(epoch)
        assert np.array_equal(np.bincount(order, minlength=images), np.ones(images)), f"epoch {epoch}: no permutation"
        seen[epoch] = order.tobytes()
    assert len(set(seen.values())) == epochs, "two epochs have one order"
    for epoch in np.random.default_rng(2).permutation(chosen).tolist():
        assert second.order(epoch).tobytes() == seen[epoch], f"epoch {epoch}: another order when asked for out of turn"
    for epoch in chosen[:: max(1, epochs // 3)]:
        indices = np.concatenate([second.micro_batch(epoch, batch, 0).indices for batch in reversed(range(second.steps_per_epoch))][::-1])
        assert np.array_equal(indices, second.split.indices[first.order(epoch)]), f"epoch {epoch}: batches are not the order's slices"
    return epochs
