"""What the pictures show: numbers against numpy, and which runs are drawn. How they look was judged by eye."""

from pathlib import Path

import numpy as np
import pytest
from fake_sweep import FakeSweep, record
from matplotlib.figure import Figure
from PIL import Image

from hpc import figures
from hpc.gather import Gathered, gather
from seresnet.config import ModelConfig


def gathered_of(sweep: FakeSweep) -> Gathered:
    return gather([sweep.folder.path])


def lines_of(figure: Figure | None, panel: int = 0) -> dict[str, np.ndarray]:
    assert figure is not None
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in figure.axes[panel].lines}


def test_curve_is_mean_and_sample_deviation_over_seeds(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=3).finish_all()
    found = figures.curve(gathered_of(sweep).of_arm("se"), "se", "test_top1_pct")
    expected = np.array([[record("se", seed, epoch, 6).test_top1_pct for epoch in range(1, 7)] for seed in range(3)])
    assert found is not None and found.n == 3
    np.testing.assert_allclose(found.mean, expected.mean(axis=0))
    np.testing.assert_allclose(found.std, expected.std(axis=0, ddof=1))


def test_unfinished_runs_are_left_out_where_a_finished_one_exists(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    sweep.finish("se", 0)
    sweep.train("se", 1, range(1, 3))
    found = figures.curve(gathered_of(sweep).of_arm("se"), "se", "test_top1_pct")
    assert found is not None and (found.n, len(found.epochs), found.label) == (1, 6, "se (n = 1)")


def test_an_arm_without_a_finished_run_is_drawn_over_common_epochs_and_says_unfinished(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    sweep.train("se", 0, range(1, 5))
    sweep.train("se", 1, range(1, 3))
    found = figures.curve(gathered_of(sweep).of_arm("se"), "se", "test_top1_pct")
    assert found is not None and list(found.epochs) == [1, 2] and found.label == "se (n = 2, unfinished)"


def test_accuracy_has_a_line_for_each_arm_on_test_and_validation(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    figure = figures.accuracy_figure(gathered_of(sweep))
    for panel, key in enumerate(("test_top1_pct", "val_top1_pct")):
        lines = lines_of(figure, panel)
        assert list(lines) == ["baseline (n = 2)", "se (n = 2)"]
        mean = np.mean([getattr(record("baseline", seed, 6, 6), key) for seed in (0, 1)])
        assert lines["baseline (n = 2)"][-1] == pytest.approx(mean), key


def test_confusion_counts_are_the_sums_over_seeds(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    results = [sweep.finish("se", seed) for seed in (0, 1)]
    figure = figures.confusion_figure(gathered_of(sweep))
    assert figure is not None
    texts = {tuple(map(int, text.get_position())): int(text.get_text()) for text in figure.axes[0].texts}
    total = np.sum([result.confusion for result in results], axis=0)
    assert texts == {(predicted, true): count for (true, predicted), count in np.ndenumerate(total) if count}


def test_confusion_of_many_arms_shows_four_and_says_so(tmp_path: Path) -> None:
    arms = {f"se {r}": ModelConfig(width=16, attention="se", reduction=r) for r in (1, 2, 4, 8, 16, 32)}
    figure = figures.confusion_figure(gathered_of(FakeSweep(tmp_path, arms=arms, seeds=1, epochs=2).finish_all()))
    assert figure is not None
    assert len([axes for axes in figure.axes if axes.get_xlabel() == "predicted"]) == 4
    assert "first 4 of 6 arms" in figure.get_suptitle()


def test_no_two_of_twenty_arms_look_alike(tmp_path: Path) -> None:
    arms = {f"r{r:02d}": ModelConfig(width=16, attention="se", reduction=r) for r in range(1, 21)}
    sweep = FakeSweep(tmp_path, arms=arms, seeds=1, epochs=2)
    for arm in arms:
        sweep.train(arm, 0, range(1, 3))
    figure = figures.loss_figure(gathered_of(sweep))
    assert figure is not None
    looks = {(str(line.get_color()), str(line._dash_pattern)) for line in figure.axes[0].lines}  # type: ignore[attr-defined]
    assert len(looks) == 20, looks


def test_pictures_are_written_whole_and_equal_each_time(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    first = [path.read_bytes() for path in figures.draw(gathered_of(sweep), tmp_path / "one")]
    again = figures.draw(gathered_of(sweep), tmp_path / "two")
    assert [path.name for path in again] == ["accuracy.png", "loss.png", "confusion.png"]
    assert [path.read_bytes() for path in again] == first
    assert all(Image.open(path).size[0] > 1000 for path in again)


def test_nothing_to_draw_removes_pictures_of_an_earlier_state(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "loss.png").write_bytes(b"old")
    assert figures.draw(gathered_of(sweep), tmp_path / "figures") == []
    assert not list((tmp_path / "figures").iterdir())
