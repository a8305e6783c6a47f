"""The next value of a function, made in a background thread while the last one is in use.

What is made is the caller's business. One invariant: get(key) gives what make(key) gives, whatever was made ahead; a guess that turns
out wrong is dropped.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from seresnet.threads import narrow_pool

Key = TypeVar("Key")
Value = TypeVar("Value")


class Prefetch(Generic[Key, Value]):
    """One thread, started at the first get. At exit Python waits for the value in hand, so make must not wait for other threads."""

    def __init__(self, make: Callable[[Key], Value], name: str) -> None:
        """make: pure as far as the caller can tell, and called in the thread only. name: of the thread."""
        self._make, self._name = make, name
        self._pool: ThreadPoolExecutor | None = None
        self._coming: tuple[Key, Future[Value]] | None = None

    def get(self, key: Key, then: Key | None) -> Value:
        """make(key), and begin with make(then), which is expected to be asked for next. Raises what make(key) raised."""
        pool = self._pool = self._pool or narrow_pool(self._name)
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == key:
            future = coming[1]
        else:
            if coming is not None:
                coming[1].cancel()
            future = pool.submit(self._make, key)
        # Before the wait: the thread goes on at once where the caller needs time of its own.
        if then is not None:
            self._coming = then, pool.submit(self._make, then)
        return future.result()
