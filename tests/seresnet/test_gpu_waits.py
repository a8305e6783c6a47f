"""That a step gives the GPU its work and goes on: torch itself reports each call for which the host would wait. Run with `pytest -m gpu`.

Not run yet: no GPU was at hand when this was written.
"""

import pytest
import torch
from test_gpu import config, engine

from seresnet.loss_watch import LATE_STEPS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (GPU)")]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_the_host_waits_for_the_device_in_no_step(amp: str) -> None:
    ours = engine(config(amp))  # fp16 takes the fused optimiser: before any other GradScaler reads whether a step is skipped
    for _ in range(LATE_STEPS + 2):
        ours.train_step()
    before = ours.step
    torch.cuda.set_sync_debug_mode("error")  # a call that waits raises
    try:
        for _ in range(3):
            ours.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ours.step == before + 3, ours.step


def test_memory_for_states_is_pinned_and_serves_again() -> None:
    ours = engine(config("bf16"))
    for _ in range(5):
        ours.train_step()
        state = ours.state(ours.epoch_sums())
    assert all(tensor.is_pinned() for tensor in state.tensors.values())
    assert ours._host_copies.blocks_made <= 2  # the one above is held while the next is made
