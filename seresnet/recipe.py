"""How a run is trained, from its folder to its result: open the data, resume, train and evaluate epochs, save, finish.

Reads downward; one step is engine.py's, the process around it train.py's. Two invariants: saves and stops happen between optimiser
steps only, and nothing that a clock decides changes the state.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from seresnet import cleaned, journal
from seresnet.accounting import EpochClock, Timing, wait_for
from seresnet.array_file import Arrays
from seresnet.assembly import build_engine, facts_now, open_data
from seresnet.checkpoint_files import read_trusted
from seresnet.checkpoint_writer import CheckpointWriter, decode, recover
from seresnet.claims import refuse_if_fenced
from seresnet.config import RunConfig
from seresnet.data import Split, Splits
from seresnet.divergence import NotFinite, Replays
from seresnet.engine import Engine, EpochSums
from seresnet.errors import CheckpointError, ConfigError, OwnedElsewhereError
from seresnet.evaluation import Evaluation, evaluate
from seresnet.journal import EpochRecord
from seresnet.models import build_model
from seresnet.outcome import epoch_line, epoch_record, known_record, train_result
from seresnet.pinning import pin
from seresnet.profiling import StepProfiler
from seresnet.progress import EpochBar
from seresnet.run_folder import CheckpointName, RunFolder, RunRecord, TrainResult
from seresnet.signals import StopFlag
from seresnet.stages import Stages
from seresnet.state import TrainState, first_nonfinite
from seresnet.watchdog import Watchdog
from seresnet.world import Agreement, World

log = logging.getLogger("seresnet")

#: Within the 12 s that the supervisor gives ranks to stop, parting included. A run at its end may take as long as it needs.
STOP_SAVE_LIMIT_S = 10.0


class Stopped(Exception):  # noqa: N818 - an ending, not an error
    """The ranks agreed to stop. The state is durable, or the text says which older one is: there the run goes on."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of one run: where it lives, what it computes, and what it may continue from."""

    folder: RunFolder
    record: RunRecord
    config: RunConfig
    generation: int
    base: str | None  # file name of the checkpoint that the claim names
    watchdog: Watchdog = field(default_factory=Watchdog)  # is told of all progress
    stages: Stages = field(default_factory=Stages)  # of this start, up to its first step
    profile_steps: int = 0  # so many are traced, see seresnet.profiling


def train(attempt: Attempt, world: World, stop: StopFlag, trainer: "Callable[..., Trainer] | None" = None) -> TrainResult | None:
    """Train the run to its last epoch; the result on rank 0, None on the others. trainer: instead of Trainer, see seresnet.trial.

    Raises Stopped after a stop request, Diverged, and ToolkitErrors for what the user or the files are to blame for.
    """
    if attempt.config.train.compile:
        attempt.watchdog.expect_compiling()
    arrays = open_data(attempt.config, world, attempt.watchdog)
    attempt.stages.mark("data")
    record = pin(attempt.folder, attempt.record, attempt.config, attempt.generation, facts_now(arrays, world), write=world.is_main)
    engine, splits = build_engine(attempt.config, arrays, world)
    attempt.stages.mark("build")
    if engine.average is not None and world.is_main:
        log.info("evaluated=averaged_weights ema_decay=%g", engine.average.decay)
    return (trainer or Trainer)(replace(attempt, record=record), engine, splits, arrays, stop).run()


class Trainer:
    """The loop over epochs of one attempt."""

    def __init__(self, attempt: Attempt, engine: Engine, splits: Splits, arrays: Arrays, stop: StopFlag) -> None:
        self.attempt, self.engine, self.splits, self.arrays, self.stop = attempt, engine, splits, arrays, stop
        self.epochs = attempt.config.train.epochs
        self.agreement = Agreement(engine.world)
        self.clock = EpochClock(engine)
        is_profiled = engine.world.is_main and attempt.profile_steps > 0
        self.profiler = (
            StepProfiler(attempt.folder, attempt.generation, attempt.profile_steps, engine.world.device) if is_profiled else None
        )
        self.writer: CheckpointWriter | None = None
        self.saved_step: int | None = None
        self.save_offered = False
        self.last_save = time.monotonic()
        self.save_interval_s = attempt.config.train.checkpoint_every_s * jitter(attempt.record.run_id)
        self.unwritten: list[EpochRecord] = []
        self.last_test: Evaluation | None = None
        self.replays = Replays(attempt.folder, attempt.record, attempt.generation, attempt.base, engine.world)

    def run(self) -> TrainResult | None:
        """Resume, train what is left, finish; after a divergence from the last epoch's boundary, once."""
        self.replays.catch_up(self._initial_state)
        while True:
            try:
                self._resume()
                self.attempt.stages.mark("resume")
                self._train()
                return self._complete()
            except NotFinite as fault:  # on every rank, at the same step
                self._go_back(fault)

    def _train(self) -> None:
        if self.engine.epoch >= self.epochs:
            # No step is left to come: a rank that still left at once would miss while the others finish (seen: codes 75, 0, 0, 0).
            self.stop.first_step()
        if self.engine.at_epoch_end and not self._is_at_the_fork():
            # The save of an epoch's last step precedes its evaluation: evaluate again, the newer record wins.
            self.clock.begin()
            self._finish_epoch()
            self.attempt.stages.mark("evaluate")
        while self.engine.epoch < self.epochs:
            self.clock.begin()
            self._train_epoch()
            self._finish_epoch()

    def _resume(self) -> None:
        record, world = self.attempt.record, self.engine.world
        # Rank 0 chooses, because choosing may move damaged files away; the others read the very file that it chose.
        found = recover(self.attempt.folder, self.attempt.base) if world.is_main else None
        name = world.broadcast_object(found and found[1])
        if world.is_main:
            self.writer = CheckpointWriter(self.attempt.folder, self.attempt.generation, resumed_from=name)
        if name is None:
            log.info("started run=%s slug=%s generation=%d", record.run_id, record.slug, self.attempt.generation)
            return
        self.engine.load(found[0] if found else _read_chosen(self.attempt.folder, name))
        self.engine.losses.forget()
        self._refuse_fewer_epochs()
        world.sum(torch.ones(1, dtype=torch.int64))  # nobody saves, and so deletes, before everybody has read
        self.saved_step, self.save_offered = self.engine.step, False
        log.info("resumed run=%s step=%d epoch=%d from=%s", record.run_id, self.engine.step, self.engine.epoch, name)
        if world.is_main and (words := cleaned.going_on(self.attempt.folder, self.engine.step)):
            log.warning("cleaned run=%s %s", record.run_id, words)

    def _is_at_the_fork(self) -> bool:
        """Whether the epoch that has just ended is the parent's, which has evaluated it: the fork's journal begins after it."""
        parent = self.attempt.record.parent
        return parent is not None and parent.step == self.engine.step and self.engine.epoch < self.epochs

    def _refuse_fewer_epochs(self) -> None:
        done = self.engine.step / self.engine.steps_per_epoch
        if done > self.epochs:
            raise ConfigError(
                f"train.epochs: {self.epochs} is less than the {done:.1f} epochs that the run has behind it. "
                f"Use {math.ceil(done)} or more, or start a new sweep."
            )

    def _go_back(self, fault: NotFinite) -> None:
        """Make the folder what it was at the last epoch's boundary, so that resuming starts there. Raises Diverged if that was in vain."""
        self.agreement.settle()
        with self.attempt.watchdog.saving():
            if self.writer is not None:
                self.writer.close()  # what it has in hand may be of bad hardware, too: then it must lie there to be set aside
            replay = self.replays.go_back(fault, self._initial_state)
        self.unwritten = [record for record in self.unwritten if record.step <= replay.from_step]

    def _initial_state(self) -> TrainState:
        """The bits that a fresh start has: weights come from the law, everything else begins at nothing."""
        alone = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
        # Nothing runs on this engine: compiling for the CPU could ask for a compiler that a GPU's node need not have.
        config = replace(self.attempt.config, train=replace(self.attempt.config.train, compile=False))
        model = build_model(config.model, len(self.arrays.classes), config.train.seed)
        return Engine(config, model, self.engine.batches, alone).state(EpochSums.nothing())

    def _train_epoch(self) -> None:
        """Train to the end of the running epoch; Stopped and NotFinite are raised between steps."""
        engine = self.engine
        first = engine.step % engine.steps_per_epoch
        bar = EpochBar(engine.epoch + 1, self.epochs, first, engine.steps_per_epoch, visible=engine.world.is_main)
        try:
            for _ in range(first, engine.steps_per_epoch):
                self._between_steps()
                engine.train_step()
                self._after_step()
                bar.advance()
        finally:
            bar.close()

    def _between_steps(self) -> None:
        """What the ranks agreed on at the previous step: give up, stop, or save."""
        self.attempt.watchdog.step()
        # With several ranks the answer comes one step late: what was offered is not offered again meanwhile, or each save came twice.
        offer = not self.save_offered and self._is_save_due(1.0)
        self.save_offered = self.save_offered or offer
        bad = self.engine.losses.has_diverged or self._is_save_refused()
        stop, save, diverged = self.agreement.agree(self.stop.is_set, offer, bad)
        self.stop.first_step()
        if stop:
            self._stop_here()  # also from a state that is not finite: the next attempt meets it again
        if diverged:
            raise self._not_finite()
        if self.replays.is_passed_at(self.engine.step):
            self._refuse_nonfinite()
            self.replays.pass_by()
        if save:
            self._save(self.engine.epoch_sums())

    def _after_step(self) -> None:
        """What people want to know of a step; the state is only looked at."""
        if not self.attempt.stages.is_over:
            self._report_first_step()
        if self.profiler is not None and not self.profiler.is_over:
            with self.attempt.watchdog.saving() if self.profiler.is_due else contextlib.nullcontext():
                self.profiler.after_step(self.engine.step)

    def _report_first_step(self) -> None:
        wait_for(self.engine.world.device)  # once in an attempt: a step that was only handed to the device is none yet
        self.attempt.stages.finish()
        if self.engine.world.is_main:
            with self.attempt.watchdog.saving():
                self.attempt.stages.report(self.attempt.folder, self.attempt.generation)

    def _finish_epoch(self) -> None:
        """Save if it is due, evaluate, remember the best on validation, and write the epoch down."""
        engine = self.engine
        epoch = engine.step // engine.steps_per_epoch  # from 1
        sums = engine.epoch_sums()
        self.clock.training_is_over()
        if self._decide(self._is_save_due(0.5)):
            self._save(sums)
        self.save_offered = False  # an offer that is under way is swallowed by the evaluation's calls
        validation, self.last_test = self._evaluate(self.splits.validation), self._evaluate(self.splits.test)
        value = validation.top1_pct if validation else None
        if value is not None and (engine.best_value is None or value > engine.best_value):
            self._save(sums, best=True)  # durable before any later header names it: the writer is first in, first out
            engine.best_value, engine.best_epoch = value, epoch
        assert self.last_test is not None
        record = self._epoch_record(sums, validation, self.last_test)
        if engine.world.is_main:
            self.unwritten.append(record)
            with self.attempt.watchdog.saving():
                self._write_down_epochs()
            log.info("%s", epoch_line(record, self.epochs))

    def _epoch_record(self, sums: EpochSums, val: Evaluation | None, test: Evaluation) -> EpochRecord:
        timing = self.clock.timing()
        known = None if self.clock.has_trained else known_record(self.attempt.folder, self.engine.step)
        return epoch_record(self.engine, self.attempt.generation, sums, val, test, Timing.of(known) if known else timing)

    def _write_down_epochs(self) -> None:
        """Append what is not in the journal yet. A full disk does not stop training: the next epoch tries again, the end insists."""
        try:
            while self.unwritten:
                refuse_if_fenced(self.attempt.folder, self.attempt.generation)
                journal.append(self.attempt.folder, self.unwritten[0])
                del self.unwritten[0]
        except OSError as error:
            log.error("epoch_not_written epoch=%d error=%s training goes on", self.unwritten[0].epoch, error)

    def _evaluate(self, split: Split) -> Evaluation | None:
        """None for an empty split; a stop request ends the evaluation, and what it had is discarded."""
        if len(split) == 0:
            return None
        with self.clock.evaluating():
            result = evaluate(self.engine, split, self._must_stop_evaluating)
        if result is None:
            self._stop_here()
        return result

    def _must_stop_evaluating(self) -> bool:
        self.attempt.watchdog.beat()
        return self.agreement.agree(self.stop.is_set, False, False)[0]

    def _is_save_due(self, share: float) -> bool:
        """Whether this share of the interval has passed since the last save; only rank 0 has an opinion."""
        waited = time.monotonic() - self.last_save
        return self.engine.world.is_main and waited >= share * self.save_interval_s

    def _decide(self, opinion: bool) -> bool:
        return bool(self.engine.world.sum(torch.tensor([int(opinion)]))[0])

    def _save(self, sums: EpochSums, *, best: bool = False, final: bool = False, stop: bool = False) -> TrainState | None:
        """Hand a host copy to the writer; the state itself on rank 0, None elsewhere or where this step is saved already."""
        self.last_save, self.save_offered = time.monotonic(), False
        if self.saved_step == self.engine.step and not (best or final):
            return None
        self.saved_step = self.engine.step
        if self.writer is None:
            return None
        with self.clock.saving(), self.attempt.watchdog.saving():  # waits where two saves are under way
            state = self.engine.state(sums)
            self.writer.save(state, epoch_boundary=self.engine.at_epoch_end, best=best, final=final, stop=stop)
        return state

    def _is_save_refused(self) -> bool:
        """Whether the writer was given a state that is not finite, whatever the losses say: batch norm's statistics are no part of them."""
        return self.writer is not None and isinstance(self.writer.last_error, CheckpointError)

    def _not_finite(self, tensor: str | None = None) -> NotFinite:
        """What was seen, and where first. Every rank must call it at the same step. tensor: which is not finite; None = losses tell."""
        return NotFinite.gather(self.engine, self.saved_step, tensor)

    def _refuse_nonfinite(self) -> None:
        """Raise NotFinite if the state could not be saved. Every rank must call it at the same step."""
        world = self.engine.world
        tensor = first_nonfinite(self.engine.state(EpochSums.nothing())) if world.is_main else None
        if tensor := world.broadcast_object(tensor):
            raise self._not_finite(tensor)

    def _stop_here(self) -> None:
        """Make the state durable and raise Stopped. Every rank comes here at the same step."""
        self._save(self.engine.epoch_sums(), stop=True)
        self._write_down_epochs()
        saved = f"step {self.engine.step}"
        if self.writer is not None and not self.writer.wait(STOP_SAVE_LIMIT_S):
            self._raise_if_fenced()
            # The run goes on from what is durable: a save that failed is no reason to lose the requeue.
            durable = "nothing is durable yet" if self.writer.durable_step is None else f"durable is step {self.writer.durable_step}"
            saved = f"step {self.engine.step}, which is not saved ({self.writer.last_error}); {durable}"
            log.error("stop_not_saved %s", saved)
        self.agreement.settle()
        raise Stopped(f"{self.stop.signal_name or 'another rank'} at {saved}")

    def _raise_if_fenced(self) -> None:
        """A failed save means more than a full disk if a newer owner was in the way."""
        assert self.writer is not None
        if isinstance(self.writer.last_error, OwnedElsewhereError):
            raise self.writer.last_error

    def _complete(self) -> TrainResult | None:
        """The final checkpoint, then the result, last of all."""
        if self.profiler is not None:
            self.profiler.finish(self.engine.step)
        self.agreement.settle()
        self._refuse_nonfinite()
        state = self._save(self.engine.epoch_sums(), final=True)
        if state is None or self.writer is None:
            return None
        with self.attempt.watchdog.saving():
            return self._write_result(state, self.writer)

    def _write_result(self, state: TrainState, writer: CheckpointWriter) -> TrainResult:
        if not writer.close():
            self._raise_if_fenced()
            raise OSError(f"the final save did not become durable: {writer.last_error}")
        self.replays.pass_by()
        self._write_down_epochs()
        if self.unwritten:
            raise OSError(f"{len(self.unwritten)} epochs could not be written into {self.attempt.folder.metrics}")
        assert self.last_test is not None
        attempt = self.attempt
        result = train_result(
            attempt.folder, attempt.record, attempt.generation, self.engine, self.splits, self.arrays, self.last_test, state
        )
        result.write(attempt.folder, guard=lambda: refuse_if_fenced(attempt.folder, attempt.generation))
        log.info("finished run=%s test=%.2f%% state_digest=%s", result.run_id, result.last_test_top1_pct, result.state_digest[:16])
        return result


def jitter(run_id: str) -> float:
    """A factor within 0.9 and 1.1 from the run's id, so that the runs of a sweep do not all save in the same second."""
    return 0.9 + 0.2 * int(run_id[:4], 16) / 0xFFFF


def _read_chosen(folder: RunFolder, name: CheckpointName) -> TrainState:
    payload = read_trusted(folder, name)
    if payload is None:
        raise CheckpointError(f"{folder.checkpoints / str(name)}: rank 0 read it, this rank cannot. Check the file system and start again.")
    return decode(payload)
