"""A real rank that hangs, or is only slow, in its first attempt: what, and in which rank, stands in the run folder's fault.txt."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
AT_STEP = 8


def stop_for_good() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_for_good() -> None:
    time.sleep(600)


def open_a_fifo() -> None:
    """What a dead file system does to open()."""
    fifo = FOLDER / f"fifo-{os.getpid()}"
    os.mkfifo(fifo)
    open(fifo, "rb").close()


def is_at(engine: Any, step: int) -> bool:
    return bool(engine.step == step)


def in_step(act: Any) -> None:
    """Instead of a step: its peer waits in the gradients' all-reduce."""
    from seresnet.engine import Engine

    step = Engine.train_step

    def faulty(engine: Engine) -> None:
        if is_at(engine, AT_STEP):
            act()
        step(engine)

    Engine.train_step = faulty  # type: ignore[method-assign]


def in_reader(act: Any) -> None:
    """Within a step, while the images of a micro-batch are made."""
    from seresnet.data import TrainBatches

    micro_batch = TrainBatches.micro_batch

    def faulty(self: TrainBatches, epoch: int, batch: int, micro: int) -> Any:
        if (epoch, batch) == (1, 2):
            act()
        return micro_batch(self, epoch, batch, micro)

    TrainBatches.micro_batch = faulty  # type: ignore[method-assign]


def at_start(act: Any) -> None:
    """While the prepared array is opened; before the first step the limit is 15 times as long, here 3 times."""
    from seresnet import assembly, watchdog

    def load(*args: Any) -> None:
        watchdog.START_FACTOR = 3.0  # only now: on a busy machine importing torch takes longer than that
        act()

    assembly.load_arrays = load  # type: ignore[assignment]


def slow(limit_s: float) -> None:
    """Whatever may take long: the first step, an evaluation of many batches, a save on a slow disk. Each beyond the limit of a step."""
    from seresnet import durable, engine, evaluation

    step, add_batch, sync = engine.Engine.train_step, evaluation._add_batch, durable.Files.sync
    slept: list[str] = []

    def first_step(self: engine.Engine) -> None:
        if is_at(self, 0):
            time.sleep(1.5 * limit_s)
        step(self)

    def batch(*args: Any) -> None:
        if slept.count("batch") < 5:
            slept.append("batch")
            time.sleep(limit_s / 3)
        add_batch(*args)

    def slow_sync(self: durable.Files, file: Any) -> None:
        if "ckpt" in str(file.name) and slept.count("sync") < 2:
            slept.append("sync")
            time.sleep(2 * limit_s)
        sync(self, file)

    engine.Engine.train_step = first_step  # type: ignore[method-assign]
    evaluation._add_batch = batch
    durable.Files.sync = slow_sync  # type: ignore[method-assign]


PLACES = {"step": in_step, "reader": in_reader, "start": at_start}
ACTS = {"stops": stop_for_good, "sleeps": sleep_for_good, "opens": open_a_fifo}


if __name__ == "__main__":
    story = FOLDER / "fault.txt"
    if story.exists() and os.environ["SERESNET_GENERATION"] == "1":
        act, place, rank = story.read_text().split()
        if act == "slow":
            slow(float(os.environ["SERESNET_WATCHDOG_S"]))
        elif rank == os.environ["RANK"]:
            PLACES[place](ACTS[act])
    from seresnet.train import main

    sys.exit(main(["--run-dir", str(FOLDER)]))
