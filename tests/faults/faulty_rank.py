"""A real rank in whose first attempt something goes wrong before its ninth step: what, stands in the run folder's fault.txt."""

import os
import signal
import sys
import time
from pathlib import Path

FOLDER = Path(sys.argv[1])


def exhaust() -> None:
    import torch

    torch.empty(1 << 46)


def hang() -> None:
    time.sleep(600)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def throw() -> None:
    raise ValueError("a fault of this run alone")


def plant(fault: str) -> None:
    """Let the fault happen in place of a step."""
    from seresnet.engine import Engine

    step = Engine.train_step

    def faulty(engine: Engine) -> None:
        if engine.step == 8:
            {"exhausts memory": exhaust, "hangs": hang, "is killed": kill, "raises": throw}[fault]()
        step(engine)

    Engine.train_step = faulty  # type: ignore[method-assign]


if __name__ == "__main__":
    story = FOLDER / "fault.txt"
    if story.exists() and os.environ["SERESNET_GENERATION"] == "1":
        plant(story.read_text())
    from seresnet.train import main

    sys.exit(main(["--run-dir", str(FOLDER)]))
