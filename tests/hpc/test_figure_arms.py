"""Figures of the last epoch: differences, classes and confusions against sums by hand or numpy."""

from dataclasses import replace

import numpy as np
import pytest
from made_rows import legend_of, made, made_row, of_accuracies, with_accuracy, with_rows

from hpc import figures
from hpc.figure_arms import pairs
from hpc.figure_scene import scene


def test_differences_are_pairs_of_equal_seeds_with_mean_and_t_interval() -> None:
    found = pairs(scene(of_accuracies(baseline=[90, 91, 92], se=[91, 93, 92, 99])))
    assert [one.arm for one in found] == ["se"] and found[0].changes == pytest.approx((1, 2, 0))
    # By hand: mean 1, sample deviation 1, n = 3; the 97.5 % point of t with 2 degrees of freedom is 4.302653.
    half = 4.302653 / np.sqrt(3)
    assert (found[0].difference.low, found[0].difference.high) == pytest.approx((1 - half, 1 + half), abs=1e-5)


def test_the_figure_of_differences_draws_each_pair_the_mean_and_the_interval() -> None:
    figure = figures.figure(of_accuracies(baseline=[90, 91, 92], se=[91, 93, 92], r8=[95]), "differences")
    assert figure is not None and legend_of(figure) == ["a pair of runs", "mean", "95 % t interval"]
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["se (3)", "r8 (1)"]
    drawn = [sorted(np.asarray(line.get_xdata(), dtype=float).round(3)) for line in axes.lines]
    assert drawn == [[0, 0], [0, 1, 2], [-1.484, 3.484], [1], [5], [5]]  # of one pair no interval
    assert axes.get_xlabel() == "minus baseline\n(percentage points)"


def test_differences_refer_to_the_baseline_that_is_asked_for() -> None:
    figure = figures.figure(of_accuracies(baseline=[90, 91], se=[91, 93]), "differences", baseline="se")
    assert figure is not None and [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["baseline (2)"]


def test_without_a_common_seed_there_are_no_differences() -> None:
    some = of_accuracies(baseline=[90], se=[91])
    other = [with_accuracy(made_row("se", 5, 1), 91)]
    assert figures.figure(with_rows(some, [some.rows[0], *other]), "differences") is None


def test_of_many_arms_the_strongest_differences_are_drawn_and_it_says_so() -> None:
    arms = {f"r{place:02d}": [90 + place / 10] for place in range(60)}
    figure = figures.figure(of_accuracies(baseline=[90], **arms), "differences")
    assert figure is not None and "the 40 strongest of 60 arms" in figure.get_suptitle().replace("\n", " ")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert (labels[0], labels[-1], len(labels)) == ("r20 (1)", "r59 (1)", 40)


def test_accuracy_of_a_class_is_its_share_of_the_confusion_matrix() -> None:
    some = made(("se",), seeds=2, epochs=3)
    figure = figures.figure(some, "per-class")
    counts = np.array([row.result.confusion for row in some.rows if row.result])
    shares = (100 * counts.diagonal(axis1=1, axis2=2) / counts.sum(axis=2)).mean(axis=0)
    assert figure is not None and legend_of(figure) == ["se (n = 2)"]
    drawn = dict(zip([text.get_text() for text in figure.axes[0].get_yticklabels()], figure.axes[0].lines[0].get_xdata(), strict=True))  # type: ignore[call-overload]
    assert some.rows[0].result is not None
    assert drawn == pytest.approx(dict(zip(some.rows[0].result.classes, shares, strict=True)))
    assert list(drawn.values()) == sorted(drawn.values())  # the worst first


def test_confusion_counts_are_the_sums_over_seeds() -> None:
    some = made(("se",), seeds=2, epochs=3)
    figure = figures.figure(some, "confusion")
    assert figure is not None and figure.axes[0].get_title(loc="left") == "se, sum of 2 runs"
    texts = {tuple(map(int, text.get_position())): int(text.get_text()) for text in figure.axes[0].texts}
    total = np.sum([row.result.confusion for row in some.rows if row.result], axis=0)
    assert texts == {(predicted, true): count for (true, predicted), count in np.ndenumerate(total) if count}


def test_confusion_of_many_arms_shows_four_and_says_so() -> None:
    figure = figures.figure(made([f"r{place}" for place in range(6)], seeds=1, epochs=1), "confusion")
    assert figure is not None
    assert len([axes for axes in figure.axes if axes.get_xlabel() == "predicted"]) == 4
    assert "first 4 of 6 arms" in figure.get_suptitle()


def test_arms_that_mix_classes_have_no_matrix_and_a_hundred_classes_no_names() -> None:
    some = made(("se",), seeds=2, epochs=1)
    first = some.rows[0].result
    assert first is not None
    other = replace(some.rows[0], result=replace(first, classes=[name.upper() for name in first.classes]))
    assert figures.figure(with_rows(some, [other, some.rows[1]]), "confusion") is None
    many = replace(first, classes=[f"class {n}" for n in range(100)], confusion=np.eye(100, dtype=int).tolist())
    figure = figures.figure(with_rows(some, [replace(some.rows[0], result=many)]), "confusion")
    assert figure is not None and not figure.axes[0].texts
