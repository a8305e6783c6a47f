"""Whether recent losses were finite, read late so that no step waits for the device. What follows from it is recipe.py's business."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

#: The loss's finiteness is read this many steps late, so that the host never waits for the device.
LATE_STEPS = 16

#: So many steps in a row without a finite loss are a divergence; fp16 scaling alone recovers sooner.
DIVERGED_AFTER = 3


class LossWatch:
    """Whether recent losses were finite, read late so that no step waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._late = LATE_STEPS if device.type == "cuda" else 0
        self._queue: deque[tuple[Any, Tensor]] = deque()
        self.bad_in_a_row = 0

    @property
    def has_diverged(self) -> bool:
        return self.bad_in_a_row >= DIVERGED_AFTER

    @property
    def steps_in_doubt(self) -> int:
        """How many of the last steps have a loss that is not known to be finite."""
        return len(self._queue) + self.bad_in_a_row

    def forget(self) -> None:
        """Go on at another step: what was seen says nothing of it."""
        self._queue.clear()
        self.bad_in_a_row = 0

    def push(self, finite: Tensor) -> None:
        """finite: 0-dim bool tensor on the device."""
        event = None
        if self._late:
            # Into pinned memory: a copy to pageable memory would wait for the device after all.
            finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._queue.append((event, finite))
        while len(self._queue) > self._late:
            event, oldest = self._queue.popleft()
            if event is not None:
                event.synchronize()
            self.bad_in_a_row = 0 if bool(oldest) else self.bad_in_a_row + 1
