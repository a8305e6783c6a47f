"""`python -m seresnet.train` that waits for a line on standard input before each epoch and says how the last one went.

So that another program can let ours and something else train in turn, each in a process of its own. The code path is the toolkit's
own: claim, heart, watchdog, saves, journal. One invariant: an epoch that is said to be over is saved and written down.

    python bench/paced_train.py --config FILE --run-dir DIR key=value ...
"""

import os
import sys

from seresnet import journal, recipe, train


class PacedTrainer(recipe.Trainer):
    """Trainer with a gate before each epoch."""

    def _train_epoch(self) -> None:
        with self.attempt.watchdog.saving():
            self._say_and_wait()
        super()._train_epoch()

    def _say_and_wait(self) -> None:
        # A save that still runs in the background belongs to the epoch before.
        if self.writer is not None and not self.writer.wait(60.0):
            raise SystemExit(f"a save did not become durable within 60 s: {self.writer.last_error}")
        records = journal.read(self.attempt.folder)
        if records:
            last = records[-1]
            print(f"epoch={last.epoch} train_loss={last.train_loss} test={last.test_top1_pct:.2f}", flush=True)
        else:
            print(f"parameters={sum(parameter.numel() for parameter in self.engine.model.parameters())}", flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # whoever paced us is done


if __name__ == "__main__":
    recipe.Trainer = PacedTrainer  # type: ignore[misc]
    sys.exit(train.main())
