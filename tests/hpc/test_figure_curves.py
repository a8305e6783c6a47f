"""Figures against epoch: the lines against numpy and pandas, which runs are drawn, and where the report's curve is laid over them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_sweep import record
from made_rows import made, made_row, with_rows, with_values
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hpc import figures, paper_curve
from hpc.gather import Gathered, RunRow
from hpc.history import COLUMNS

REPORT = "the report, original images (n = 1)"


def lines_of(figure: Figure | None, panel: int = 0) -> dict[str, np.ndarray]:
    assert figure is not None
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in figure.axes[panel].lines}


def legend_of(figure: Figure | None) -> list[str]:
    assert figure is not None
    return [text.get_text() for text in figure.legends[0].get_texts()]


def frame(gathered: Gathered) -> pd.DataFrame:
    """A line an epoch, by another way than the figures go."""
    parts = [
        pd.DataFrame({key: row.history.column(key) for key in COLUMNS}).assign(arm=row.arms[0], seed=row.seed) for row in gathered.rows
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(("name", "keys"), [("accuracy", ("test_top1_pct", "val_top1_pct")), ("loss", ("train_loss", "test_loss"))])
def test_lines_and_bands_are_mean_and_sample_deviation_over_seeds(name: str, keys: tuple[str, str]) -> None:
    gathered = made(seeds=3)
    figure = figures.figure(gathered, name)
    assert figure is not None and legend_of(figure) == ["baseline (n = 3)", "se (n = 3)"]
    for panel, key in enumerate(keys):
        expected = frame(gathered).groupby(["arm", "epoch"])[key].agg(["mean", "std"])
        for arm, band in zip(("baseline", "se"), figure.axes[panel].collections, strict=True):
            np.testing.assert_allclose(lines_of(figure, panel)[f"{arm} (n = 3)"], expected.loc[arm]["mean"])
            top = band.get_paths()[0].vertices[:, 1].max()  # type: ignore[index, call-overload]
            assert top == pytest.approx((expected.loc[arm]["mean"] + expected.loc[arm]["std"]).max())


def test_unfinished_runs_are_left_out_where_a_finished_one_exists() -> None:
    rows = [made_row("se", 0), made_row("se", 1, 2, "running", planned=6)]
    found = figures.curve(rows, "se", "test_top1_pct")
    assert found is not None and (found.n, len(found.epochs), found.label) == (1, 6, "se (n = 1)")


def test_an_arm_without_a_finished_run_is_drawn_over_common_epochs_and_says_unfinished() -> None:
    rows = [made_row("se", seed, epochs, "running", planned=6) for seed, epochs in ((0, 4), (1, 2))]
    found = figures.curve(rows, "se", "test_top1_pct")
    assert found is not None and list(found.epochs) == [1, 2] and found.label == "se (n = 2, unfinished)"
    expected = np.mean([[record("se", seed, epoch, 6).test_top1_pct for epoch in (1, 2)] for seed in (0, 1)], axis=0)
    np.testing.assert_allclose(found.mean, expected)


def test_an_epoch_that_one_run_did_not_measure_is_drawn_of_none() -> None:
    rows = [made_row("se", seed) for seed in (0, 1)]
    values = rows[1].history.column("train_loss").copy()
    values[2] = np.nan
    found = figures.curve([rows[0], with_values(rows[1], "train_loss", list(values))], "se", "train_loss")
    assert found is not None and list(found.epochs) == [1, 2, 4, 5, 6]
    np.testing.assert_allclose(found.mean, (rows[0].history.column("train_loss") + values)[[0, 1, 3, 4, 5]] / 2)
    nothing = with_values(rows[0], "val_loss", [np.nan] * 6)
    assert figures.curve([nothing], "se", "val_loss") is None


def test_one_run_of_one_epoch_is_a_marker_without_a_band() -> None:
    figure = figures.figure(made(seeds=1, epochs=1), "loss")
    assert figure is not None and legend_of(figure) == ["baseline (n = 1)", "se (n = 1)"] and not figure.axes[0].collections
    assert "standard deviation" not in figure.get_suptitle()
    assert [round(tick) for tick in figure.axes[1].get_xticks()] == [0, 1, 2]


def test_more_arms_than_looks_are_grey_and_counted_last() -> None:
    figure = figures.figure(made([f"r{place:02d}" for place in range(30)], seeds=1, epochs=2), "accuracy")
    assert figure is not None
    (grey,) = [one for one in figure.axes[0].collections if isinstance(one, LineCollection)]
    assert (
        len(grey.get_segments()) == 9
        and to_hex(grey.get_colors()[0]) == "#bbbbbb"
        and legend_of(figure)[-1] == "9 other arms"
        and len(legend_of(figure)) == 22
    )


@pytest.mark.parametrize(
    "arms", [("baseline", "se", "se-2ranks"), ("baseline", "se", "se-r8", "r-unfinished-still"), ("W" * 34,), ("W" * 90,)]
)
def test_no_legend_is_wider_than_its_figure(arms: tuple[str, ...]) -> None:
    figure = figures.figure(made(arms, epochs=2), "accuracy")
    assert figure is not None
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width + 0.5, (box, figure.bbox)


def test_a_spike_of_a_loss_is_cut_off_and_the_title_says_so() -> None:
    gathered = made(epochs=100)
    values = gathered.rows[3].history.column("train_loss").copy()
    values[50] = 1e6
    figure = figures.figure(with_rows(gathered, [*gathered.rows[:3], with_values(gathered.rows[3], "train_loss", list(values))]), "loss")
    assert figure is not None and figure.axes[0].get_ylim()[1] < 4
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Training loss, as each arm minimises it, spikes cut off", "Test loss"]


def test_arms_of_one_schedule_share_a_line_of_the_learning_rate() -> None:
    gathered = made(("baseline", "se", "se-warm"), seeds=1)
    warm = with_values(gathered.rows[2], "lr", [0.01, 0.02, 0.03, 0.02, 0.01, 0.0])
    figure = figures.figure(with_rows(gathered, [*gathered.rows[:2], warm]), "learning-rate")
    lines = lines_of(figure)
    assert list(lines) == ["baseline and 1 more", "se-warm"]
    assert list(lines["se-warm"]) == [0.01, 0.02, 0.03, 0.02, 0.01, 0.0]


def test_throughput_is_images_a_second() -> None:
    assert list(lines_of(figures.figure(made(), "throughput"))["se (n = 2)"]) == [1200.0] * 6


def with_setting(row: RunRow, dotted: str, value: Any) -> RunRow:
    section, key = dotted.split(".")
    config = row.config or {}
    return replace(row, config={**config, section: {**config[section], key: value}})


def reports(**changes: Any) -> RunRow:
    """A run as the report has it, but for changes: train__epochs=20 for train.epochs."""
    row = made_row("se", 0, 5, "running", planned=900)
    for dotted, value in changes.items():
        row = with_setting(row, dotted.replace("__", ".", 1), value)
    return row


def test_the_reports_curve_is_laid_over_its_own_recipe_as_far_as_the_runs_have_come() -> None:
    lines = lines_of(figures.figure(Gathered(arms=("se",), rows=(reports(),), skipped=()), "accuracy"))
    assert list(lines) == ["se (n = 1, unfinished)", REPORT]
    assert list(lines[REPORT]) == [27.20, 42.01, 52.73, 55.68, pytest.approx(lines[REPORT][4])]
    loss = figures.figure(Gathered(arms=("se",), rows=(reports(),), skipped=()), "loss")
    assert lines_of(loss, 0)[REPORT][0] == 2.1976 and lines_of(loss, 1)[REPORT][0] == 1.9533


def test_the_reports_curve_is_the_log_of_900_epochs() -> None:
    epochs, values = paper_curve.read("test_top1_pct")
    assert list(epochs) == list(range(1, 901)) and values[-1] == 97.37 and values.max() == 97.49


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__seed": 7, "data__val_images": 5000},
        {"optim__schedule_epochs": 1000},
        {"train__micro_batch_size": 1024, "train__device": "cpu", "data__path": "/data"},
    ],
)
def test_seeds_machines_and_held_out_images_do_not_make_another_recipe(changes: dict[str, Any]) -> None:
    assert paper_curve.applies([reports(**changes)])


@pytest.mark.parametrize(
    "changes",
    [
        {"model__width": 32},
        {"model__blocks": [3, 4, 3]},
        {"model__attention": "none"},
        {"model__reduction": 8},
        {"data__name": "digits"},
        {"data__train_images": 5000},
        {"augment__mix_prob": 0.5},
        {"optim__lr": 0.2},
        {"optim__schedule_epochs": 100},
        {"train__global_batch_size": 512},
        {"train__micro_batch_size": 128},
        {"model__of_a_newer_version": 1},
    ],
)
def test_the_reports_curve_is_laid_over_nothing_else(changes: dict[str, Any]) -> None:
    assert not paper_curve.applies([reports(**changes)]), changes
    assert not paper_curve.applies([replace(reports(), config=None)])


def test_a_config_from_before_a_key_was_there_ran_by_its_default() -> None:
    config = reports().config or {}
    older = {**config, "optim": {key: value for key, value in config["optim"].items() if key != "nesterov"}}
    assert paper_curve.applies([replace(reports(), config=older)])
    without = {**config, "model": {key: value for key, value in config["model"].items() if key != "attention"}}
    assert not paper_curve.applies([replace(reports(), config=without)])


def test_the_legend_names_the_images_unless_they_are_known_to_be_the_same() -> None:
    rows = [made_row("se", 0)]
    assert paper_curve.label(rows) == REPORT
    assert rows[0].result is not None
    original = replace(rows[0], result=replace(rows[0].result, data_name="CIFAR-10"))
    assert paper_curve.label([original]) == "the report (n = 1)"
    assert paper_curve.label([original, *rows]) == REPORT


def test_the_reports_curve_is_shipped_with_the_package() -> None:
    setup = Path(__file__).parents[2].joinpath("setup.cfg").read_text()
    assert "*.csv" in next(line for line in setup.splitlines() if line.startswith("hpc ="))
