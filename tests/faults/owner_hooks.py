"""What is planted in ranks that fight for a run: a scaled watch and heart, a common start, a stop at a chosen moment.

A moment is a call of the product's own, before which the whole process sends itself SIGSTOP, once. Everything after it is the zombie.
"""

import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seresnet import claims, durable, run_folder

#: How long a standing beat is watched, and how often a heart beats: 90 s and 10 s, scaled.
OBSERVE_S, BEAT_S = 1.0, 0.1
#: For owners that must not be taken for dead, however loaded the machine is.
PATIENT_S = 60.0


def install(folder: Path, rank: int) -> None:
    """OWNER_OBSERVE_S: the scaled watch. OWNER_STOP_AT: a key of MOMENTS. OWNER_START: a file to wait for."""
    observe_s = float(os.environ.get("OWNER_OBSERVE_S", OBSERVE_S))
    claims.acquire = functools.partial(claims.acquire, observe_s=observe_s, poll_s=0.02)  # type: ignore[assignment]
    claims.Heart = functools.partial(claims.Heart, interval_s=BEAT_S)  # type: ignore[assignment,misc]
    if rank == 0 and (moment := os.environ.get("OWNER_STOP_AT")):
        MOMENTS[moment](_StopOnce())
    if start := os.environ.get("OWNER_START"):
        Path(f"{start}-{os.getpid()}").touch()
        while not Path(start).exists():
            time.sleep(0.001)


class _StopOnce:
    def __init__(self) -> None:
        self._is_done = False

    def __call__(self) -> None:
        if not self._is_done:
            self._is_done = True
            os.kill(os.getpid(), signal.SIGSTOP)


def _before(place: Any, name: str, matches: Callable[..., bool], nth: int = 1) -> Callable[[_StopOnce], None]:
    """Stop before the nth call of a function whose arguments match."""

    def plant(stop: _StopOnce) -> None:
        call, seen = getattr(place, name), [0]

        def wrapped(*args: Any, **keywords: Any) -> Any:
            if matches(*args):
                seen[0] += 1
                if seen[0] >= nth:
                    stop()
            return call(*args, **keywords)

        setattr(place, name, wrapped)

    return plant


def _always(*_: object) -> bool:
    return True


def _in_checkpoints(_: object, *paths: Path) -> bool:
    return paths[-1].parent.name == "ckpt"


MOMENTS: dict[str, Callable[[_StopOnce], None]] = {
    "before a checkpoint's rename": _before(durable.Files, "rename", _in_checkpoints, nth=3),
    "before the link of result.json": _before(durable.Files, "link", lambda _, __, target: target.name == "result.json"),
    "between claim and heart": _before(claims.Heart, "start", _always),
    "before result.json is made": _before(run_folder.TrainResult, "write", _always),
    "before run.yaml is made": _before(run_folder.RunRecord, "write", _always),
    "in a beat": _before(claims.Heart, "_beat", _always, nth=4),
    "before an epoch's line": _before(durable.Files, "append", lambda _, path: path.parent.name == "metrics", nth=2),
    "before a checkpoint goes": _before(durable.Files, "unlink", lambda _, path: path.suffix == ".safetensors"),
    "before a checkpoint's temp file": _before(durable.Files, "create", _in_checkpoints, nth=2),
    "before a folder's sync": _before(durable.Files, "sync_folder", lambda _, path: path.name == "ckpt", nth=3),
}
