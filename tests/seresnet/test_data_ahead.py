"""Batches that are augmented ahead, or wait on the host, against one micro-batch made alone."""

import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seresnet import data
from seresnet.augment import augment, draw, normalise
from seresnet.config import AugmentConfig, DataConfig, RunConfig, TrainConfig
from seresnet.data import TrainBatches, fits, load_splits
from seresnet.prefetch import Prefetch

CPU = torch.device("cpu")
IMAGE_BYTES = 16 * 16 * 3


@pytest.fixture(scope="module")
def arrays():
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (230, 16, 16, 3), dtype=np.uint8), np.arange(230) % 10
    return SimpleNamespace(train_images=images[:200], train_labels=labels[:200], test_images=images[200:], test_labels=labels[200:])


def config(data_on="auto", **augmentation):
    """190 training images in batches of 48 in micro-batches of 8: three batches, and one of 46 samples that ends in one of 6."""
    train = TrainConfig(seed=5, epochs=3, global_batch_size=48, micro_batch_size=8, data_on=data_on)
    return RunConfig(train=train, data=DataConfig(val_images=10), augment=AugmentConfig(**augmentation))


def batches(run, arrays, **share):
    return TrainBatches(load_splits(run, arrays, CPU).train, run, 10, (0.4,) * 3, (0.2,) * 3, CPU, **share)


def chunks_of(monkeypatch, images):
    monkeypatch.setitem(data.CHUNK_BYTES, "cpu", images * IMAGE_BYTES)


def tensors(batch):
    return (batch.images, batch.targets, batch.labels, torch.from_numpy(batch.indices))


def assert_same(found, expected, what):
    differing = [a.shape for a, b in zip(tensors(found), tensors(expected), strict=True) if not torch.equal(a, b)]
    assert not differing, f"{what}: {len(differing)} of 4 differ: {differing}"


def places(micros=range(6), epochs=(0, 1)):
    return [(epoch, batch, micro) for epoch in epochs for batch in range(4) for micro in micros]


@pytest.mark.parametrize("chunk", [9, 24, 64, 100_000])
def test_a_chunk_of_any_size_gives_the_bits_of_micro_batches_made_alone(monkeypatch, arrays, chunk):
    chunks_of(monkeypatch, 1)
    alone = {place: batches(config(), arrays).micro_batch(*place) for place in places()}
    chunks_of(monkeypatch, chunk)
    ahead = batches(config(), arrays)
    for place in places():
        assert_same(ahead.micro_batch(*place), alone[place], place)
    assert len(alone[0, 3, 5]) == 6


def test_a_micro_batch_is_what_augment_gives_for_its_samples_alone(arrays):
    run = config(mix_prob=0.0)
    ours = batches(run, arrays)
    for place in places(micros=(0, 5)):
        found = ours.micro_batch(*place)
        pixels = torch.from_numpy(arrays.train_images[found.indices].transpose(0, 3, 1, 2).copy())
        expected = normalise(augment(pixels, draw(5, place[0], 200, run.augment).of(found.indices), run.augment), ours.mean, ours.std)
        assert torch.equal(found.images, expected), place


@pytest.fixture
def augmented(monkeypatch):
    """How many images each call of augment got."""
    seen: list[int] = []
    monkeypatch.setattr(data, "augment", lambda images, *rest: (seen.append(len(images)), augment(images, *rest))[1])
    return seen


def test_ranks_get_the_bits_of_one_rank_and_augment_no_others_samples(augmented, arrays):
    whole = batches(config(), arrays)
    alone = {place: whole.micro_batch(*place) for place in places(epochs=(0,))}
    for rank in range(3):
        augmented.clear()
        ours, mine = batches(config(), arrays, rank=rank, ranks=3), places(micros=range(2 * rank, 2 * rank + 2), epochs=(0,))
        for place in mine:
            assert_same(ours.micro_batch(*place), alone[place], (rank, place))
        assert augmented == [sum(len(alone[place]) for place in mine)], (rank, augmented)


def test_another_ranks_micro_batch_may_be_asked_for_and_is_made_alone(augmented, arrays):
    found = batches(config(), arrays, rank=1, ranks=3).micro_batch(0, 0, 0)
    assert augmented == [8], augmented
    assert_same(found, batches(config(), arrays).micro_batch(0, 0, 0), "micro-batch 0 on rank 1")


def test_a_chunk_is_augmented_once_and_the_next_when_its_first_micro_batch_is_asked_for(monkeypatch, augmented, arrays):
    chunks_of(monkeypatch, 80)
    ours = batches(config(), arrays)
    for place in places(epochs=(0,)):
        ours.micro_batch(*place)
    assert augmented == [80, 80, 30], augmented


@pytest.mark.parametrize("first", [0, 5, 9, 23, 24, 30])
@pytest.mark.parametrize("chunk", [1, 40, 1000])
def test_batches_from_the_host_are_those_from_the_device_wherever_a_run_resumes(monkeypatch, arrays, first, chunk):
    chunks_of(monkeypatch, chunk)
    host, device = batches(config("host"), arrays), batches(config("device"), arrays)
    for place in places()[first:]:
        assert_same(host.micro_batch(*place), device.micro_batch(*place), place)


@pytest.mark.parametrize("data_on", ["host", "device"])
@pytest.mark.parametrize("chunk", [1, 24, 1000])
def test_no_order_of_asks_and_no_consumer_that_writes_changes_a_batch(monkeypatch, arrays, data_on, chunk):
    """50 images: the second batch has two samples in its first micro-batch, and five micro-batches without any."""
    run = replace(config(data_on), data=DataConfig(val_images=10, train_images=50))
    every = [(epoch, batch, micro) for epoch in range(3) for batch in range(2) for micro in range(6)]
    chunks_of(monkeypatch, 1)
    alone = {place: batches(run, arrays).micro_batch(*place) for place in every}
    assert [len(alone[0, 1, micro]) for micro in range(6)] == [2, 0, 0, 0, 0, 0]
    chunks_of(monkeypatch, chunk)
    ours, draw = batches(run, arrays), np.random.default_rng(chunk)
    for number in draw.integers(len(every), size=60):
        found = ours.micro_batch(*every[number])
        assert_same(found, alone[every[number]], every[number])
        found.images.zero_()
        found.targets.zero_()


def test_the_host_fetches_the_next_chunk_before_it_is_asked_for_and_none_after_the_last_epoch(monkeypatch, arrays):
    chunks_of(monkeypatch, 64)
    fetched, two = [], threading.Event()
    gather = TrainBatches._gather

    def watched(self, wanted):
        result = gather(self, wanted)
        fetched.append((wanted[0], threading.current_thread() is threading.main_thread()))
        if len(fetched) == 2:
            two.set()
        return result

    monkeypatch.setattr(TrainBatches, "_gather", watched)
    ours = batches(config("host"), arrays)
    ours.micro_batch(0, 0, 0)
    assert two.wait(10), fetched
    assert fetched == [((0, 0, 0), False), ((0, 1, 2), False)]
    for place in places(epochs=(0, 1, 2)):
        ours.micro_batch(*place)
    assert [start for start, _ in fetched] == [(epoch, *start) for epoch in range(3) for start in ((0, 0), (1, 2), (2, 4))], fetched


def test_an_error_while_fetching_is_raised_by_the_step_that_wants_the_batch(monkeypatch, arrays):
    chunks_of(monkeypatch, 48)
    ours, order = batches(config("host"), arrays), TrainBatches.order

    def failing(self, epoch):
        if epoch == 1:
            raise MemoryError("no more")
        return order(self, epoch)

    monkeypatch.setattr(TrainBatches, "order", failing)
    for place in places(epochs=(0,)):
        ours.micro_batch(*place)
    for _ in range(2):  # it is neither swallowed nor remembered
        with pytest.raises(MemoryError, match="no more"):
            ours.micro_batch(1, 0, 0)
    monkeypatch.undo()
    assert_same(ours.micro_batch(1, 0, 0), batches(config(), arrays).micro_batch(1, 0, 0), "after the error")


def test_seconds_of_waiting_are_summed_until_they_are_read_and_none_are_where_images_wait_on_the_device(monkeypatch, arrays):
    slow, go = TrainBatches._gather, threading.Event()
    monkeypatch.setattr(TrainBatches, "_gather", lambda self, wanted: (go.wait(0.05), slow(self, wanted))[1])
    host, device = batches(config("host"), arrays), batches(config("device"), arrays)
    for ours in (host, device):
        ours.micro_batch(0, 0, 0)
        ours.micro_batch(0, 0, 1)
    assert host.waited_s >= 0.05 and device.waited_s == 0.0, (host.waited_s, device.waited_s)
    host.waited_s, go = 0.0, go.set()
    host.micro_batch(0, 0, 2)
    assert host.waited_s == 0.0, host.waited_s


def test_a_part_of_a_split_is_its_rows_on_the_device(arrays):
    split = load_splits(config("host"), arrays, CPU).test
    images, labels = split.batch(range(7, 12))
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), arrays.test_images[split.indices[7:12]])
    assert labels.tolist() == arrays.test_labels[split.indices[7:12]].tolist()


def test_images_wait_on_a_gpu_only_while_half_of_its_free_memory_holds_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    cuda = torch.device("cuda")
    found = [fits("auto", needed, cuda) for needed in (500, 501)], fits("device", 501, cuda), fits("host", 1, cuda), fits("auto", 501, CPU)
    assert found == ([True, False], True, False, True), found


def test_a_wrong_guess_is_dropped_and_the_right_value_comes():
    made = Prefetch(lambda key: 10 * key, "test")
    assert [made.get(1, 2), made.get(5, 6), made.get(6, None), made.get(1, None)] == [10, 50, 60, 10]


def test_a_process_ends_while_a_value_is_being_made():
    code = (
        "from seresnet.prefetch import Prefetch; import time; p = Prefetch(lambda k: time.sleep(0.2 * k), 'x'); p.get(0, 1); print('end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", ""), done


@pytest.mark.gpu
@pytest.mark.parametrize("data_on", ["host", "device"])
def test_batches_on_a_gpu_are_the_cpus_from_wherever_they_come_and_nothing_waits_for_the_gpu(arrays, data_on):
    cuda = torch.device("cuda", 0)
    ours = TrainBatches(load_splits(config(data_on), arrays, cuda).train, config(data_on), 10, (0.4,) * 3, (0.2,) * 3, cuda)
    ours.micro_batch(0, 0, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [ours.micro_batch(*place) for place in places()]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    alone = batches(config(), arrays)
    for place, batch in zip(places(), found, strict=True):
        expected = alone.micro_batch(*place)
        torch.testing.assert_close(batch.images.cpu(), expected.images)
        assert torch.equal(batch.labels.cpu(), expected.labels) and np.array_equal(batch.indices, expected.indices), place


@pytest.mark.parametrize(("micro_batch_size", "share"), [(48, {}), (8, {}), (8, {"rank": 1, "ranks": 2})])
def test_augmix_and_noise_of_a_sample_depend_neither_on_micro_batches_nor_on_ranks(arrays, micro_batch_size, share):
    run = config(autoaugment="none", augmix_severity=3, noise_std=0.1, mix_prob=0)
    planar = torch.from_numpy(arrays.train_images.transpose(0, 3, 1, 2).copy())
    expected = normalise(augment(planar, draw(5, 1, 200, run.augment), run.augment), torch.full((3,), 0.4), torch.full((3,), 0.2))
    run = replace(run, train=replace(run.train, micro_batch_size=micro_batch_size))
    made = batches(run, arrays, **share)
    for place in places(range(48 // micro_batch_size), epochs=(1,)):
        batch = made.micro_batch(*place)
        assert torch.equal(batch.images, expected[torch.from_numpy(batch.indices)]), place
