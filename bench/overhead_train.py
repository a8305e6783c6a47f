"""`python -m seresnet.train` that runs the bare steps of an epoch before each epoch, and says what either took: part of overhead.py.

Bare steps: a second network and optimiser of the same config, batches that were augmented, mixed and laid out before, forward,
backward, update. Everything else is overhead. One invariant: an epoch is timed as a whole; the parts only explain it.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from seresnet import assembly, recipe, train
from seresnet.engine import cross_entropy_sum

#: Where the time of an epoch goes beside the bare steps: what we call it, the object it hangs on, the function.
PARTS = {
    "augmentation": ("batches", "micro_batch"),
    "layout": ("engine", "laid_out"),
    "sums": ("engine", "_count"),
    "agreement": ("trainer", "_between_steps"),
    "saving": ("trainer", "_save"),
    "loss watch": ("losses", "push"),
    "end of the epoch": ("trainer", "_finish_epoch"),
}


class OverheadTrainer(recipe.Trainer):
    """Trainer that times its epochs, and the bare steps between them."""

    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        self.began: float | None = None
        self.bare_s = self.bare_cpu_s = self.began_cpu_s = 0.0
        self.open: list[str] = []  # parts that are running, the innermost last
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.bare = BareSteps(self)
        holders = {"trainer": self, "engine": self.engine, "batches": self.engine.batches, "losses": self.engine.losses}
        for part, (holder, function) in PARTS.items():
            if hasattr(holders[holder], function):
                self._time(part, holders[holder], function)

    def _train_epoch(self) -> None:
        with self.attempt.watchdog.saving():
            self._say()
            before = time.process_time()
            self.bare_s = self.bare.run()
            self.bare_cpu_s = time.process_time() - before
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.began, self.began_cpu_s = time.perf_counter(), time.process_time()
        super()._train_epoch()

    def _complete(self) -> None:
        self._say()
        sys.stdout.flush()
        os._exit(0)

    def _say(self) -> None:
        if self.began is None:
            return
        facts = {
            "epoch_s": time.perf_counter() - self.began,
            "bare_s": self.bare_s,
            "epoch_cpu_s": time.process_time() - self.began_cpu_s,
            "bare_cpu_s": self.bare_cpu_s,
            "parts": self.parts,
            "steps": self.engine.steps_per_epoch,
            "saved": self.saved_step,
        }
        print(json.dumps(facts), flush=True)

    def _time(self, part: str, holder: Any, function: str) -> None:
        call: Callable[..., Any] = getattr(holder, function)

        @functools.wraps(call)
        def timed(*args: Any, **words: Any) -> Any:
            started = time.perf_counter()
            self.open.append(part)
            try:
                return call(*args, **words)
            finally:
                self.open.pop()
                seconds = time.perf_counter() - started
                self.parts[part] += seconds
                if self.open:  # a save between steps is saving, not agreement
                    self.parts[self.open[-1]] -= seconds

        setattr(holder, function, timed)


class BareSteps:
    """An epoch of forward, backward and update on tensors that lie ready."""

    def __init__(self, trainer: recipe.Trainer) -> None:
        config, world = trainer.attempt.config, trainer.engine.world
        # A network, an optimiser and random draws of its own: the measured run's bits and caches are left alone.
        self.engine, _ = assembly.build_engine(config, trainer.arrays, world)
        epoch = [self.engine.batches.micro_batch(0, step, 0) for step in range(self.engine.steps_per_epoch)]
        self.batches = [(self.engine.laid_out(batch.images).clone(memory_format=torch.preserve_format), batch.targets) for batch in epoch]

    def run(self) -> float:
        """Seconds, the device waited for."""
        self._wait()
        started = time.perf_counter()
        self.engine.model.train()
        for images, targets in self.batches:
            self._step(images, targets)
        self._wait()
        return time.perf_counter() - started

    def _step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        engine = self.engine
        with engine.autocast():
            logits = engine.model(images)
        (cross_entropy_sum(logits.float(), targets) / len(images)).backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad(set_to_none=True)

    def _wait(self) -> None:
        if self.engine.world.device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    recipe.Trainer = OverheadTrainer  # type: ignore[misc]
    sys.exit(train.main())
