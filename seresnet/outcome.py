"""The numbers that a run leaves: one record an epoch, and its result; made here from the engine, the evaluations and the journal.

When they are written is recipe.py's business, their form journal.py's and run_folder.py's. One invariant: a result is made from the
journal, so that it does not depend on how many attempts there were.
"""

import time
from dataclasses import asdict

from seresnet import journal, provenance
from seresnet.accounting import Timing, multiply_adds_of
from seresnet.array_file import Arrays
from seresnet.data import Splits
from seresnet.engine import Engine, EpochSums
from seresnet.evaluation import Evaluation
from seresnet.journal import EpochRecord
from seresnet.models import count_parameters
from seresnet.run_folder import RunFolder, RunRecord, TrainResult
from seresnet.state import TrainState, state_digest

#: A wait of less than this share of the epoch is no news.
_NOTEWORTHY = 0.01


def known_record(folder: RunFolder, step: int) -> EpochRecord | None:
    """What an earlier attempt wrote of the epoch that ended at this step: an evaluation done again must not replace its timing."""
    return next((record for record in journal.read(folder) if record.step == step), None)


def epoch_record(engine: Engine, generation: int, sums: EpochSums, val: Evaluation | None, test: Evaluation, timing: Timing) -> EpochRecord:
    """The record of the epoch whose last batch the engine has consumed."""
    epoch = engine.step // engine.steps_per_epoch  # from 1
    return EpochRecord(
        epoch=epoch,
        step=engine.step,
        generation=generation,
        lr=engine.lr_of(epoch - 1),
        train_loss=sums.mean_loss,
        train_top1_pct=sums.top1_pct,
        val_loss=val.loss if val else None,
        val_top1_pct=val.top1_pct if val else None,
        test_loss=test.loss,
        test_top1_pct=test.top1_pct,
        skipped_steps=sums.skipped,
        time=round(time.time(), 3),
        **asdict(timing),
    )


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """The epoch as one line of the log."""
    parts = [f"epoch={record.epoch}/{epochs}", f"step={record.step}", f"lr={record.lr:.4g}"]
    parts.append(f"train_loss={'nan' if record.train_loss is None else format(record.train_loss, '.4f')}")
    if record.val_top1_pct is not None:
        parts.append(f"val={record.val_top1_pct:.2f}%")
    parts += [f"test={record.test_top1_pct:.2f}%", f"images/s={record.images_per_s or 0:.0f}", f"seconds={record.seconds:.1f}"]
    if record.tflops is not None:
        share = "" if record.matmul_share_pct is None else f" ({record.matmul_share_pct:.0f}% of matmul)"
        parts.append(f"{_three_digits(record.tflops)}TFLOP/s{share}")
    waits = {"data_wait": record.data_wait_s, "checkpoint_stall": record.checkpoint_stall_s}
    parts += [f"{name}={wait:.2f}s" for name, wait in waits.items() if wait is not None and wait > _NOTEWORTHY * record.seconds]
    return " ".join(parts)


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def train_result(
    folder: RunFolder,
    record: RunRecord,
    generation: int,
    engine: Engine,
    splits: Splits,
    arrays: Arrays,
    test: Evaluation,
    state: TrainState,
) -> TrainResult:
    """The result of a run whose every epoch is in the journal. test: the last epoch's evaluation. state: as the final checkpoint has it."""
    epochs, pinned = journal.read(folder), record.pinned or {}
    last, best_on_test = epochs[-1], max(epochs, key=lambda record: (record.test_top1_pct, -record.epoch))
    chosen = next((record for record in epochs if record.epoch == engine.best_epoch), None)
    return TrainResult(
        run_id=record.run_id,
        slug=record.slug,
        epochs=last.epoch,
        step=engine.step,
        parameters=count_parameters(engine.model),
        multiply_adds=multiply_adds_of(engine),
        averaged=engine.average is not None,
        state_digest=state_digest(state),
        data_digest=arrays.digest,
        data_name=arrays.title,
        train_images=len(splits.train),
        val_images=len(splits.validation),
        test_images=len(splits.test),
        classes=list(arrays.classes),
        train_loss=last.train_loss,
        last_val_top1_pct=last.val_top1_pct,
        last_test_top1_pct=last.test_top1_pct,
        last_test_loss=last.test_loss,
        val_chosen_epoch=chosen.epoch if chosen else None,
        val_chosen_val_top1_pct=chosen.val_top1_pct if chosen else None,
        val_chosen_test_top1_pct=chosen.test_top1_pct if chosen else None,
        best_on_test_epoch=best_on_test.epoch,
        best_on_test_top1_pct=best_on_test.test_top1_pct,
        confusion=test.confusion,
        seconds=round(sum(record.seconds for record in epochs), 3),
        attempts=generation,
        tier="T2" if record.marks else "T1",
        world_size=engine.world.size,
        device=str(pinned.get("device")),
        amp=engine.config.train.amp,
        code_digest=provenance.code_digest(),
        commit=provenance.commit(),
        versions=provenance.versions(),
        parent=record.parent,
    )
