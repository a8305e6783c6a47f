"""Threads beside the one that trains, whose torch kernels run on one core each: the pool of threads for kernels stays the trainer's.

What such a thread does is its caller's business. One invariant: the caller's own number of kernel threads, and so every bit that it
computes, is what it was.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

# Why: a kernel that is split up in a second thread makes OpenMP start a second pool. There are more threads than cores then, so GNU's
# OpenMP no longer lets idle ones spin for the next kernel but puts them to sleep at once, as long as that thread lives. A step calls
# hundreds of short kernels: it took 1.17 times as long in bf16, 1.11 in float32 (2 cores, width 16, n = 12; docs/performance.md).


def start_narrow(run: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread that runs this."""
    is_narrow = threading.Event()

    def narrow() -> None:
        _narrow()
        is_narrow.set()
        run()

    thread = threading.Thread(target=narrow, name=name, daemon=True)
    with _own_number_kept():
        thread.start()
        is_narrow.wait()
    return thread


def narrow_pool(name: str) -> ThreadPoolExecutor:
    """A pool of one such thread, started."""
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    with _own_number_kept():
        pool.submit(_narrow).result()
    return pool


def _narrow() -> None:
    torch.get_num_threads()  # a thread's first question sets it to everybody's number; later ones would undo what comes now
    with contextlib.suppress(RuntimeError):  # a torch that cannot: it is only speed
        torch.set_num_threads(1)


@contextlib.contextmanager
def _own_number_kept() -> Iterator[None]:
    """torch sets OpenMP's number for the calling thread alone, but MKL's and that of threads to come for all."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
