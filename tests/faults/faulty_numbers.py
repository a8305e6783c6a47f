"""Hook of the divergence tests, called in each rank before main: plants what stands in fault.json beside the run folder.

kind: "nan once" and "nan always" make a weight of one rank NaN before a step, once in the life of the run or each time; "overflow"
raises the scale of fp16; "spike" makes a loss 1,000 times larger for one step. die_at: the rank is killed there, once, in a rewind.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch


def plant(run_dir: Path, rank: int) -> None:
    told = json.loads((run_dir.parent / "fault.json").read_text())
    if rank == told.get("rank", 0):
        _plant_in_step(told, run_dir)
    if rank == 0 and (place := told.get("die_at")):
        _plant_death(place, run_dir.parent / "died")


def _plant_in_step(told: dict[str, Any], run_dir: Path) -> None:
    from seresnet import engine

    step, loss_sum, done = engine.Engine.train_step, engine.cross_entropy_sum, run_dir.parent / "done"

    def spiked(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = loss_sum(logits, targets)
        return loss + 999 * loss.detach()

    def faulty(self: engine.Engine) -> None:
        is_due = self.step in told["steps"] and (told["kind"] != "nan once" or not (done / str(self.step)).exists())
        if self.step == told.get("stop_at"):
            os.kill(os.getpid(), signal.SIGTERM)
        if not is_due:
            return step(self)
        done.mkdir(exist_ok=True)
        (done / str(self.step)).touch()
        if told["kind"] == "overflow":
            self.scaler._scale.mul_(2**16)
        elif told["kind"] == "spike":
            engine.cross_entropy_sum = spiked
        else:
            with torch.no_grad():
                next(self.model.parameters())[0, 0, 0, 0] = float("nan")
        step(self)
        engine.cross_entropy_sum = loss_sum
        return None

    engine.Engine.train_step = faulty  # type: ignore[method-assign]


def _plant_death(place: str, mark: Path) -> None:
    """Die on the way into a function of the rewind, at its n-th call ("write 2")."""
    from seresnet import divergence, journal, replay

    name, number = place.split()
    module = {"drop_after": journal, "write_checkpoint": divergence, "find_boundary": divergence}.get(name, replay)
    real, calls = getattr(module, name), [0]

    def deadly(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == int(number) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)

    setattr(module, name, deadly)
