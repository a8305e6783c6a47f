"""What only a GPU can show: one mixed-precision step, and tier T1 over a stop and a resume. Run with `pytest -m gpu`.

Not run yet: no GPU was at hand when this was written.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from same_bits import assert_same_bits_after_a_resume

from seresnet.assembly import make_deterministic
from seresnet.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from seresnet.data import TrainBatches, load_splits
from seresnet.engine import Engine
from seresnet.models import build_model
from seresnet.world import World

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (GPU)")]


def config(amp: str) -> RunConfig:
    return RunConfig(
        model=ModelConfig(attention="se"),
        data=DataConfig(name="digits"),
        optim=OptimConfig(warmup_epochs=0),
        train=TrainConfig(epochs=2, global_batch_size=128, device="cuda", amp=amp),  # type: ignore[arg-type]
    )


def engine(run: RunConfig) -> Engine:
    make_deterministic(run)
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (640, 32, 32, 3), dtype=np.uint8), np.arange(640) % 10
    arrays = SimpleNamespace(train_images=images, train_labels=labels, test_images=images[:10], test_labels=labels[:10])
    device = torch.device("cuda", 0)
    splits = load_splits(run, arrays, device)
    batches = TrainBatches(splits.train, run, 10, (0.5,) * 3, (0.25,) * 3, device)
    return Engine(run, build_model(run.model, 10, 0), batches, World(rank=0, local_rank=0, size=1, device=device))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_one_amp_step_stays_close_to_float32(amp: str) -> None:
    mixed, exact = engine(config(amp)), engine(config("off"))
    for one in (mixed, exact):
        one.train_step()
    a, b = mixed.epoch_sums(), exact.epoch_sums()
    assert a.n == b.n == 128 and a.not_finite == 0
    assert a.mean_loss == pytest.approx(b.mean_loss, rel=0.02), f"{amp}: {a.mean_loss}, float32: {b.mean_loss}"


@pytest.mark.parametrize("amp", ["bf16", "fp16", "off"])
def test_a_resumed_run_has_the_same_bits_in_deterministic_mode(amp: str) -> None:
    assert_same_bits_after_a_resume(engine(config(amp)), engine(config(amp)), before=4, after=6)


def test_losses_are_watched_late_and_still_seen() -> None:
    ours = engine(replace(config("bf16"), optim=OptimConfig(lr=1e30, warmup_epochs=0)))
    for _ in range(30):
        ours.train_step()
    assert ours.losses.has_diverged
