"""The numbers of an epoch against formulas and clocks written here; that measuring them moves no bit."""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from small_engine import config, engine
from test_journal import record

from seresnet import accounting
from seresnet.accounting import EpochClock, Timing, largest, multiply_adds
from seresnet.config import ModelConfig
from seresnet.outcome import epoch_line
from seresnet.state import state_digest


def by_hand(width: int, blocks: tuple[int, ...], reduction: int | None, size: int, classes: int) -> int:
    """Multiply-adds of the report's network, from He et al. 2016 and Hu et al. 2018: kernel area x channels in x out x places."""
    total, before = size**2 * 9 * 3 * width, width
    for stage, count in enumerate(blocks):
        channels, side = width * 2**stage, size // 2**stage
        for block in range(count):
            total += side**2 * 9 * (before * channels + channels**2)
            total += side**2 * before * channels if stage > 0 and block == 0 else 0
            total += 2 * channels * (channels // reduction) if reduction else 0
            before = channels
    return total + before * classes


def test_the_full_se_resnet_takes_4_79_gflop_an_image_forward_and_backward() -> None:
    found = multiply_adds(ModelConfig(attention="se"), 10, (32, 32))
    assert found == by_hand(64, (4, 4, 3), 16, 32, 10) == 798_724_608, found
    assert math.isclose(found * accounting.FLOP_PER_MULTIPLY_ADD, 4.79e9, rel_tol=1e-3), found


@pytest.mark.parametrize(("width", "blocks", "attention", "size"), [(8, (1, 2), "none", 32), (16, (2, 1, 1), "se", 64)])
def test_other_networks_count_as_the_formula_says(width: int, blocks: tuple[int, ...], attention: str, size: int) -> None:
    model = ModelConfig(width=width, blocks=blocks, attention=attention)  # type: ignore[arg-type]
    expected = by_hand(width, blocks, model.reduction if attention == "se" else None, size, 7)
    assert multiply_adds(model, 7, (size, size)) == expected


def test_products_of_matrices_count_too() -> None:
    with accounting._Count() as count:
        a, b = torch.ones(2, 3), torch.ones(3, 5)
        _ = (a @ b, torch.matmul(a, b), torch.nn.functional.linear(a, weight=b.T), torch.addmm(torch.ones(5), a, b))
    assert count.multiply_adds == 4 * (2 * 3 * 5), count.multiply_adds


class FakeTime:
    """A clock that only its owner moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTime]:
    fake = FakeTime()
    monkeypatch.setattr(accounting, "time", fake)
    monkeypatch.setattr(accounting, "matmul_tflops_of", lambda engine: 0.5)
    yield fake


def timing_of_an_epoch(time: FakeTime, first: int = 0) -> Timing:
    """Of three steps of 70 images, from step `first` on: 6 s of training, 1 s of which in a save, 2 s evaluated, 0.5 s waited for data."""
    ours = engine(config())
    for _ in range(first):
        ours.train_step()
    clock = EpochClock(ours)
    time.now += 1000.0  # whatever was before the epoch
    clock.begin()
    while not ours.at_epoch_end:
        ours.train_step()
    ours.batches.waited_s += 0.5
    time.now += 5.0
    with clock.saving():
        time.now += 1.0
    clock.training_is_over()
    with clock.saving():
        time.now += 0.25
    with clock.evaluating():
        time.now += 2.0
    return clock.timing()


def test_seconds_go_to_what_they_were_spent_on(time: FakeTime) -> None:
    found = timing_of_an_epoch(time)
    expected = {"seconds": 8.25, "train_seconds": 6.0, "eval_seconds": 2.0, "checkpoint_stall_s": 1.25, "data_wait_s": 0.5}
    assert {name: getattr(found, name) for name in expected} == expected, found


@pytest.mark.parametrize(("first", "images"), [(0, 70), (1, 38), (2, 6)])
def test_speed_is_that_of_the_images_which_this_attempt_trained(time: FakeTime, first: int, images: int) -> None:
    found = timing_of_an_epoch(time, first)
    flop = images * 6 * multiply_adds(config().model, 5, (16, 16))
    assert found.images_per_s == round(images / 6.0, 1), found
    assert found.tflops == pytest.approx(flop / 6.0 / 1e12, rel=1e-3), found
    assert found.matmul_share_pct == pytest.approx(100 * flop / 6.0 / 1e12 / 0.5, abs=0.01), found


def test_an_epoch_that_is_only_evaluated_has_no_speed(time: FakeTime) -> None:
    clock = EpochClock(engine(config()))
    clock.training_is_over()
    with clock.evaluating():
        time.now += 3.0
    found = clock.timing()
    assert (found.eval_seconds, found.images_per_s, found.train_seconds, found.tflops, found.matmul_share_pct) == (3.0, *[None] * 4), found


def test_memory_is_what_this_process_held_at_most() -> None:
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    found = accounting.peak_memory_bytes(torch.device("cpu"))
    assert len(block) < found < 2**40, found


def test_of_several_ranks_the_largest_number_counts() -> None:
    others = torch.tensor([[5, 1], [0, 0], [2, 9]])
    world = SimpleNamespace(size=3, rank=1, sum=lambda table: table + others)
    assert largest(world, (3, 4)) == [5, 9]  # type: ignore[arg-type]


def test_an_evaluation_done_again_keeps_the_known_timing_of_every_number() -> None:
    numbers = {name: float(place) for place, name in enumerate(asdict(Timing(seconds=0.0)), start=1)}
    assert asdict(Timing.of(record(1, **numbers))) == numbers


def test_measuring_moves_no_generator_no_setting_and_no_bit_of_the_training() -> None:
    measured, plain = engine(config(amp="bf16")), engine(config(amp="bf16"))
    before = torch.get_rng_state(), torch.backends.cuda.matmul.allow_tf32
    for step in range(6):
        for one in (measured, plain):
            one.train_step()
        if step == 2:
            accounting._matmul_tflops.cache_clear()
            multiply_adds.cache_clear()
            rate, count = accounting.matmul_tflops_of(measured), accounting.multiply_adds_of(measured)
            assert rate is not None and rate > 0 and count > 0, (rate, count)
    digests = [state_digest(one.state(one.epoch_sums())) for one in (measured, plain)]
    assert digests[0] == digests[1]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == torch.backends.cuda.matmul.allow_tf32


def test_a_device_without_memory_for_the_matmul_costs_only_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    accounting._matmul_tflops.cache_clear()
    monkeypatch.setattr(accounting, "_matmul_seconds", full)
    assert accounting.matmul_tflops_of(engine(config())) is None
    accounting._matmul_tflops.cache_clear()


# --- the epoch's line


def test_the_line_names_the_share_and_only_waits_that_matter() -> None:
    known = replace(record(3), seconds=100.0, tflops=1.2345, matmul_share_pct=31.4, data_wait_s=0.9, checkpoint_stall_s=2.0)
    line = epoch_line(known, 10)
    assert line.endswith("images/s=1000 seconds=100.0 1.23TFLOP/s (31% of matmul) checkpoint_stall=2.00s"), line
    assert len(epoch_line(replace(known, checkpoint_stall_s=0.5), 900)) <= 130, line


def test_the_line_of_an_older_record_says_nothing_new() -> None:
    assert epoch_line(record(3), 10).endswith("images/s=1000 seconds=1.5")
    line = epoch_line(record(3, tflops=254.4), 10)
    assert line.endswith("seconds=1.5 254TFLOP/s"), line
