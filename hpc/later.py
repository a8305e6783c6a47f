"""A call that may take its time, in a thread, so that the loop that watches ranks never waits for a disk or a scheduler.

One invariant: the thread is a daemon, so that a call that never returns keeps no process from exiting.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Later(Generic[Value]):
    """Started at once; ask is_done before result()."""

    def __init__(self, call: Callable[[], Value], name: str) -> None:
        self._call = call
        self._value: list[Value] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Value:
        """What the call returned; raises what it raised."""
        assert self.is_done, "asked too early"
        if self._error is not None:
            raise self._error
        return self._value[0]

    def _run(self) -> None:
        try:
            self._value.append(self._call())
        except BaseException as error:
            self._error = error
