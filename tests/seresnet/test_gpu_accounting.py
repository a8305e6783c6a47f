"""What an epoch costs, measured on a GPU: nothing of it may make a step wait. Run with `pytest -m gpu`.

Not run yet: no GPU was at hand when this was written.
"""

import gzip
import json
from pathlib import Path

import pytest
import torch
from test_gpu import config, engine

from seresnet.accounting import EpochClock, matmul_tflops_of
from seresnet.loss_watch import LATE_STEPS
from seresnet.profiling import WARM_UP_STEPS, StepProfiler, rows
from seresnet.run_folder import RunFolder
from seresnet.state import state_digest

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (GPU)")]


def test_the_clock_of_an_epoch_waits_for_the_device_in_no_step() -> None:
    ours = engine(config("bf16"))
    clock = EpochClock(ours)
    for _ in range(LATE_STEPS + 2):
        ours.train_step()
    before = ours.step
    torch.cuda.set_sync_debug_mode("error")  # a call that waits raises
    try:
        clock.begin()
        for _ in range(3):
            ours.train_step()
        with clock.saving(), clock.evaluating():
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ours.step == before + 3, ours.step


def test_an_epoch_on_a_gpu_has_every_number_and_a_share_below_the_whole() -> None:
    ours = engine(config("bf16"))
    clock = EpochClock(ours)
    while not ours.at_epoch_end:
        ours.train_step()
    ours.epoch_sums()
    clock.training_is_over()
    found = clock.timing()
    assert found.tflops and found.matmul_share_pct and 0 < found.matmul_share_pct < 100, found
    assert found.memory_peak_mib and 20 < found.memory_peak_mib < 80_000, found


def test_the_matmul_moves_no_bit_of_the_training() -> None:
    measured, plain = engine(config("bf16")), engine(config("bf16"))
    for step in range(6):
        measured.train_step()
        plain.train_step()
        if step == 2:
            assert matmul_tflops_of(measured)
    digests = [state_digest(one.state(one.epoch_sums())) for one in (measured, plain)]
    assert digests[0] == digests[1]


def test_a_trace_on_a_gpu_names_kernels(tmp_path: Path) -> None:
    ours = engine(config("bf16"))
    profiler = StepProfiler(RunFolder(path=tmp_path), 1, 2, ours.world.device)
    for step in range(1, WARM_UP_STEPS + 3):
        ours.train_step()
        profiler.after_step(step)
    (path,) = (tmp_path / "profile").glob("*.json.gz")
    found = rows(json.loads(gzip.decompress(path.read_bytes()))["traceEvents"], "cuda")
    assert found and not any(row.name.startswith("aten::") for row in found), [row.name for row in found[:5]]
