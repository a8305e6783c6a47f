"""Gathered runs made in memory: what figures draw, without a file. The numbers are those of fake_sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from fake_sweep import CLASSES, COMMIT, confusion, record
from matplotlib.figure import Figure

from hpc.gather import Gathered, RunRow
from hpc.history import COLUMNS, History
from hpc.spans import Span
from seresnet.config import DataConfig, ModelConfig, RunConfig, TrainConfig, to_dict
from seresnet.run_folder import TrainResult

START = 1.7e9


def made_row(arm: str, seed: int, epochs: int = 6, state: str = "finished", planned: int | None = None) -> RunRow:
    """A run of the report's recipe. The longer part of an arm's name is ignored, its beginning with "se" gives it attention."""
    config = RunConfig(
        model=ModelConfig(attention="se" if arm.startswith("se") else "none"),
        data=DataConfig(val_images=5000),
        train=TrainConfig(seed=seed, epochs=planned or epochs),
    )
    started = START + 100 * seed
    records = [record(arm, seed, epoch, planned or epochs) for epoch in range(1, epochs + 1)]
    records = [replace(one, time=started + 20 + 5 * one.epoch) for one in records]
    done = state == "finished"
    return RunRow(
        sweep="demo",
        arms=(arm,),
        run_id=f"{arm}-{seed}",
        slug=f"{arm}-s{seed}",
        state=state,  # type: ignore[arg-type]
        ending="finished" if done else None,
        config=to_dict(config),
        result=made_result(arm, seed, epochs, records[-1].test_top1_pct) if done else None,
        history=history_of({key: [getattr(one, key) for one in records] for key in COLUMNS}),
        spans=(made_span(1, started, started + 5 * epochs + 30, "finished" if done else None),),
        epochs_planned=planned or epochs,
    )


def made_result(arm: str, seed: int, epochs: int, top1_pct: float) -> TrainResult:
    return TrainResult(
        run_id=f"{arm}-{seed}",
        slug=f"{arm}-s{seed}",
        epochs=epochs,
        step=10 * epochs,
        parameters=4_733_610 if arm.startswith("se") else 4_697_162,
        state_digest=f"{arm}-{seed}",
        data_digest="feedfacecafe0123",
        data_name="CIFAR-10 (JPEG)",
        train_images=45_000,
        val_images=5000,
        test_images=10_000,
        classes=CLASSES,
        train_loss=1.0,
        last_val_top1_pct=top1_pct,
        last_test_top1_pct=top1_pct,
        last_test_loss=0.3,
        val_chosen_epoch=epochs,
        val_chosen_val_top1_pct=top1_pct,
        val_chosen_test_top1_pct=top1_pct,
        best_on_test_epoch=epochs,
        best_on_test_top1_pct=top1_pct,
        confusion=confusion(arm, seed, top1_pct),
        seconds=4.5 * epochs,
        attempts=1,
        tier="T1",
        world_size=1,
        device="cuda: NVIDIA H100",
        amp="bf16",
        code_digest="abcd1234abcd1234",
        commit=COMMIT,
        multiply_adds=798_700_000 if arm.startswith("se") else 798_600_000,
    )


def made_span(generation: int, started: float | None, ended: float | None, ending: str | None, job: str = "7_1", restart: int = 0) -> Span:
    return Span(
        generation=generation, started=started, ended=ended, ending=ending, job=job, host="node1", restart_count=restart, devices=1.0
    )


def made(arms: Sequence[str] = ("baseline", "se"), seeds: int = 2, epochs: int = 6) -> Gathered:
    rows = [made_row(arm, seed, epochs) for arm in arms for seed in range(seeds)]
    return Gathered(arms=tuple(arms), rows=tuple(rows), skipped=())


def with_values(row: RunRow, key: str, values: Sequence[float]) -> RunRow:
    """The run with one column of its history replaced."""
    columns = {name: row.history.column(name) for name in COLUMNS}
    return replace(row, history=history_of({**columns, key: values}))


def history_of(columns: Mapping[str, Sequence[float | None]]) -> History:
    """A history in memory; every column has a value or None an epoch."""
    return History.of(np.array([columns[key] for key in COLUMNS], dtype=np.float64))


def with_rows(gathered: Gathered, rows: Sequence[RunRow]) -> Gathered:
    return Gathered(arms=gathered.arms, rows=tuple(rows), skipped=gathered.skipped)


def legend_of(figure: Figure | None) -> list[str]:
    assert figure is not None
    return [text.get_text() for text in figure.legends[0].get_texts()]


def with_accuracy(row: RunRow, top1_pct: float) -> RunRow:
    assert row.result is not None
    return replace(row, result=replace(row.result, last_test_top1_pct=top1_pct))


def of_accuracies(**arms: list[float]) -> Gathered:
    """Runs with these last-epoch accuracies, seeds from 0."""
    rows = [with_accuracy(made_row(arm, seed, 1), value) for arm, values in arms.items() for seed, value in enumerate(values)]
    return Gathered(arms=tuple(arms), rows=tuple(rows), skipped=())
