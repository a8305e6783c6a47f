"""Threads beside the training: their kernels run on one core, whatever the training has, and they start no pool of their own."""

import threading
from pathlib import Path

import pytest
import torch

from seresnet.checkpoint_writer import CheckpointWriter
from seresnet.prefetch import Prefetch
from seresnet.run_folder import RunFolder
from seresnet.state import TrainState
from seresnet.threads import narrow_pool, start_narrow

#: Torch splits kernels from 32,768 elements on; in NHWC, so that saving it copies it as well.
LARGE = torch.ones(4, 64, 32, 32).contiguous(memory_format=torch.channels_last)

linux_only = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts this process's threads in /proc")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.aminmax(LARGE)  # the pool of this thread is there
    yield
    torch.set_num_threads(before)


def os_threads() -> set[str]:
    return {task.name for task in Path("/proc/self/task").iterdir()}


def more_than(before: set[str]) -> int:
    """Threads that have come since; those of earlier tests may still be going."""
    return len(os_threads() - before)


def test_a_thread_and_a_pool_compute_on_one_core_and_their_caller_on_as_many_as_before(two_threads):
    seen: list[int] = []
    start_narrow(lambda: seen.append(torch.get_num_threads()), "narrow").join(20)
    with narrow_pool("narrow") as pool:
        seen.append(pool.submit(torch.get_num_threads).result())
    assert (seen, torch.get_num_threads()) == ([1, 1], 2)


@linux_only
def test_a_plain_thread_starts_a_pool_so_that_the_tests_below_can_fail(two_threads):
    before, counts = os_threads(), []
    thread = threading.Thread(target=lambda: (torch.aminmax(LARGE), counts.append(more_than(before))))
    thread.start()
    thread.join(20)
    assert counts == [2], "the thread and one of its pool: torch no longer behaves as seresnet/threads.py says"


@linux_only
def test_saving_starts_no_second_pool_of_kernel_threads(two_threads, tmp_path):
    folder = RunFolder(path=tmp_path)
    folder.create()
    before = os_threads()
    writer = CheckpointWriter(folder, 1)
    writer.save(TrainState(tensors={"model/w": LARGE}, scalars={"step": 1}))
    assert writer.wait(20), writer.last_error
    assert more_than(before) == 1, "more than the writer's own thread"
    writer.close(20)


@linux_only
def test_fetching_ahead_starts_no_second_pool_of_kernel_threads(two_threads):
    before = os_threads()
    ahead = Prefetch(lambda rows: LARGE.index_select(0, rows), "gather")
    ahead.get(torch.arange(4), None)
    assert more_than(before) == 1, "more than the fetching thread"


def test_a_thread_that_cannot_be_narrowed_does_its_work_all_the_same(two_threads, monkeypatch):
    mine, real, done = threading.current_thread(), torch.set_num_threads, []

    def refuse(number: int) -> None:
        if threading.current_thread() is not mine:
            raise RuntimeError("refused")
        real(number)

    monkeypatch.setattr(torch, "set_num_threads", refuse)
    start_narrow(lambda: done.append("thread"), "narrow").join(20)
    with narrow_pool("narrow") as pool:
        pool.submit(done.append, "pool").result()
    assert done == ["thread", "pool"]
