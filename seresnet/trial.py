"""A run tried for some steps: train, save and exit; started again, resume, compare digests, take one more step, evaluate, report.

The same engine, writer and recovery as in training, stopped early: only the loop is another one. Meant for a scratch folder; which
runs are tried, and where, is the caller's business. One invariant: no epoch and no result is ever written.
"""

import logging
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from seresnet import provenance
from seresnet.array_file import Arrays
from seresnet.checkpoint_files import list_checkpoints
from seresnet.data import Split, Splits
from seresnet.durable import parse_json, write_json_durably
from seresnet.engine import Engine
from seresnet.errors import CheckpointError, ConfigError
from seresnet.recipe import Attempt, Stopped, Trainer
from seresnet.run_folder import RunFolder, TrainResult
from seresnet.signals import StopFlag
from seresnet.state import state_digest

log = logging.getLogger("seresnet")

#: In a trial's folder: that it is one, and once the state is durable what it was.
SAVED = "saved.json"
#: What the trial measured; written last of all.
REPORT = "trial.json"
#: Enough to time an evaluation; the whole of a large test set would be most of the trial.
EVALUATED_IMAGES = 2000
#: Steps that are not timed: kernels are chosen, memory is fetched, clocks rise.
WARM_UP_STEPS = 5
#: A trial is in no hurry: nobody stops it.
_SAVE_LIMIT_S = 300.0


def trial_of(steps: int) -> Callable[..., Trainer]:
    """What recipe.train takes in place of its Trainer."""
    return partial(Trial, steps=steps)


class Trial(Trainer):
    """One start of a trial: the first if nothing was saved yet, else the second."""

    def __init__(self, attempt: Attempt, engine: Engine, splits: Splits, arrays: Arrays, stop: StopFlag, *, steps: int) -> None:
        super().__init__(attempt, engine, splits, arrays, stop)
        # One step of the run must be left for the second start.
        self.goal = max(1, min(steps, self.epochs * engine.steps_per_epoch - 1))

    def run(self) -> TrainResult | None:
        """Raises Stopped at the end of the first start, CheckpointError if the restored state is another one."""
        saved = self._read_saved()
        self._resume()
        self.attempt.stages.mark("resume")
        if "state_digest" not in saved:
            self._train_and_save()
        self._check_restored(saved)
        self._step_and_evaluate(saved)
        return None

    def _read_saved(self) -> dict[str, Any]:
        """Rank 0's view on every rank: ranks must take the same way."""
        world, folder = self.engine.world, self.attempt.folder
        saved = _open(folder) if world.is_main else None
        return dict(world.broadcast_object(saved))

    def _train_and_save(self) -> None:
        engine = self.engine
        clock = _StepClock(engine.world.device)
        goal = max(self.goal, engine.step + 1)  # more only where a first start was interrupted just before its end
        while engine.step < goal:
            self._between_steps()
            engine.train_step()
            self._after_step()
            self.attempt.watchdog.step()
            clock.tick()
        times = clock.read()
        sums = engine.epoch_sums()
        self._save(sums, stop=True)
        if self.writer is not None:
            with self.attempt.watchdog.saving():
                is_durable = self.writer.wait(_SAVE_LIMIT_S)
            if not is_durable:
                raise CheckpointError(f"step {engine.step} could not be saved: {self.writer.last_error or 'it took too long'}")
            size = self._newest_size()
            facts = {"step": engine.step, "state_digest": state_digest(engine.state(sums)), "checkpoint_bytes": size, **times.to_dict()}
            write_json_durably(self.attempt.folder.path / SAVED, facts)
        self.agreement.settle()
        raise Stopped(f"trial: step {engine.step} is durable; started again, the trial goes on from it")

    def _newest_size(self) -> int:
        folder = self.attempt.folder
        return (folder.checkpoints / str(list_checkpoints(folder)[-1])).stat().st_size

    def _check_restored(self, saved: dict[str, Any]) -> None:
        sums = self.engine.epoch_sums()
        if not self.engine.world.is_main:
            return
        if self.engine.step != saved["step"]:
            raise CheckpointError(
                f"trial: resumed at step {self.engine.step}, but step {saved['step']} was saved: see ckpt/bad and the log."
            )
        digest = state_digest(self.engine.state(sums))
        if digest != saved["state_digest"]:
            raise CheckpointError(
                f"trial: the state resumed at step {saved['step']} has digest {digest[:16]}, {saved['state_digest'][:16]} was saved. "
                "A resumed run would not have the same bits: check disk and memory of this node, then try again."
            )
        log.info("resumed_state_is_the_saved_one step=%d state_digest=%s", self.engine.step, digest[:16])

    def _step_and_evaluate(self, saved: dict[str, Any]) -> None:
        self._between_steps()
        self.engine.train_step()
        self._after_step()
        self.attempt.watchdog.step()
        _wait_for(self.engine.world.device)
        split = first_images(self.splits.test, EVALUATED_IMAGES)
        started = time.monotonic()
        self._evaluate(split)
        evaluate_s = time.monotonic() - started
        self.agreement.settle()
        if self.engine.world.is_main:
            report = self._report(saved, evaluate_s, len(split))
            write_json_durably(self.attempt.folder.path / REPORT, report)
            log.info("trial_passed step_s=%.4f images_per_s=%.0f evaluate_s=%.2f", report["step_s"], report["images_per_s"], evaluate_s)

    def _report(self, saved: dict[str, Any], evaluate_s: float, evaluated: int) -> dict[str, Any]:
        train, device = self.attempt.config.train, self.engine.world.device
        measured = len(self.splits.test) + len(self.splits.validation)
        # The whole epoch as training counts it: all steps, and both splits evaluated.
        epoch_s = saved["step_s"] * self.engine.steps_per_epoch + evaluate_s * measured / max(1, evaluated)
        return {
            "run_id": self.attempt.record.run_id,
            "steps": saved["step"],
            "step_s": saved["step_s"],
            "first_step_s": saved["first_step_s"],
            "images_per_s": round(train.global_batch_size / saved["step_s"], 1),
            "evaluate_s": round(evaluate_s, 4),
            "evaluated_images": evaluated,
            "epoch_s": round(epoch_s, 4),
            "checkpoint_bytes": saved["checkpoint_bytes"],
            "peak_memory_mb": peak_memory_mb(device),
            "device": device.type,
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "ranks": self.engine.world.size,
            "nodes": train.nodes,
            "threads": train.threads,
            "amp": train.amp,
            "code_digest": provenance.code_digest(),
            "time": round(time.time(), 3),
        }


def first_images(split: Split, count: int) -> Split:
    """The first images of a split, for timing alone: they are no fair sample."""
    return replace(split, images=split.images[:count], labels=split.labels[:count], indices=split.indices[:count])


def peak_memory_mb(device: torch.device) -> float:
    """The most that this process held so far: of the GPU, as its allocator reserved it, else of the host."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_reserved(device) / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _open(folder: RunFolder) -> dict[str, Any]:
    """What the first start saved, marking the folder as a trial's if it is new. Raises ConfigError for the folder of a real run."""
    path = folder.path / SAVED
    try:
        return dict(parse_json(path.read_text()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}. Delete the folder of the trial and try again.") from error
    if list_checkpoints(folder) or folder.result.exists() or any(folder.metrics.glob("*.jsonl")):
        raise ConfigError(f"--trial: {folder.path} holds a run that was trained, and a trial would go on with it. Name a new --run-dir.")
    write_json_durably(path, {})
    return {}


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Seconds of steps, in their order."""

    seconds: tuple[float, ...]

    def to_dict(self) -> dict[str, float]:
        """The first step and the median after the warm-up, or after the first step where there are few."""
        later = self.seconds[WARM_UP_STEPS:] if len(self.seconds) > 2 * WARM_UP_STEPS else self.seconds[1:]
        return {"first_step_s": round(self.seconds[0], 6), "step_s": max(1e-6, round(statistics.median(later or self.seconds), 6))}


class _StepClock:
    """Times each step without making the host wait for a GPU: it records events there, and reads them in the end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        _wait_for(device)
        self._mark()

    def tick(self) -> None:
        """A step was given to the device."""
        self._mark()

    def read(self) -> StepTimes:
        """Waits for the device."""
        _wait_for(self._device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device.type == "cuda":
            return StepTimes(seconds=tuple(before.elapsed_time(after) / 1000 for before, after in pairs))
        return StepTimes(seconds=tuple(after - before for before, after in pairs))

    def _mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.monotonic())


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
