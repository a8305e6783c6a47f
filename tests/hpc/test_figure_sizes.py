"""Figures of accuracy against size: points against sums by hand, and that nothing covers anything else as it is drawn."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from made_rows import legend_of, made, of_accuracies, with_rows
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from hpc import figures
from hpc.figure_sizes import beside, count_text


def of_sizes(*sizes: int) -> Figure:
    some = of_accuracies(**{f"arm{place}": [80 + place, 81 + place] for place in range(len(sizes))})
    rows = [replace(row, result=replace(row.result, parameters=sizes[int(row.arms[0][3:])])) for row in some.rows if row.result]
    made_of = figures.figure(with_rows(some, rows), "parameters")
    assert made_of is not None
    made_of.draw_without_rendering()
    return made_of


def test_a_point_is_parameters_and_mean_and_its_bar_the_sample_deviation() -> None:
    figure = figures.figure(of_accuracies(baseline=[90, 91, 92], se=[93, 95]), "parameters")
    assert figure is not None and legend_of(figure) == ["baseline (n = 3)", "se (n = 2)"]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].lines if line.get_marker() in "os"]  # type: ignore[index]
    assert marks == [(4_697_162, 91), (4_733_610, 94)]
    bars = [line.get_segments()[0][:, 1] for line in figure.axes[0].collections if isinstance(line, LineCollection)]
    np.testing.assert_allclose(bars, [[90, 92], [94 - np.sqrt(2), 94 + np.sqrt(2)]])


def test_sizes_far_apart_stand_on_a_logarithmic_axis_and_equal_ones_side_by_side() -> None:
    some = of_accuracies(baseline=[90], se=[91], big=[92])
    rows = [replace(row, result=replace(row.result, parameters=10**8)) if row.arms == ("big",) and row.result else row for row in some.rows]
    figure = figures.figure(with_rows(some, rows), "parameters")
    assert (
        figure is not None
        and figure.axes[0].get_xscale() == "log"
        and figure.axes[0].get_xlabel() == "parameters (logarithmic, near ones side by side)"
    )
    equal = figures.figure(of_accuracies(baseline=[90], r8=[91]), "parameters")
    assert equal is not None and equal.axes[0].get_xlabel() == "parameters (equal ones side by side)"


def test_an_arm_of_unknown_or_mixed_size_and_an_arm_alone_have_no_point() -> None:
    some = made(("baseline", "se"), seeds=2, epochs=1)
    assert figures.figure(some, "multiply-adds") is not None
    rows = [replace(row, result=replace(row.result, multiply_adds=None)) if row.seed == 1 and row.result else row for row in some.rows]
    assert figures.figure(with_rows(some, rows), "multiply-adds") is None
    assert figures.figure(of_accuracies(baseline=[90, 91]), "parameters") is None


@pytest.mark.parametrize(("value", "text"), [(4_697_162, "4.69716 M"), (78_250, "78.25 k"), (2e9, "2 G"), (12, "12"), (0, "0")])
def test_counts_are_written_with_their_letter(value: float, text: str) -> None:
    assert count_text(value) == text


FIVE_WITHIN_A_PERCENT = (297_242, 298_538, 299_906, 297_290, 299_976)
CROWDS = {
    "two, 0.6 % apart": (4_697_162, 4_725_345),
    "all equal": (78_042,) * 5,
    "five near and two far": (*FIVE_WITHIN_A_PERCENT, 1_183_242, 75_442),
    "five near and two not far": (*FIVE_WITHIN_A_PERCENT, 475_442, 594_242),
    "one parameter apart": (4_697_162, 4_697_163, 4_697_164),
    "twenty-one near": tuple(297_242 + 48 * place for place in range(21)),
    "near at the right end": (100_000, *(199_990 + place for place in range(15))),
}


@pytest.mark.parametrize("name", CROWDS)
def test_arms_of_near_sizes_cover_neither_each_other_nor_do_the_words_of_the_axis(name: str) -> None:
    figure = of_sizes(*CROWDS[name])
    axes = figure.axes[0]
    points = 72 / figure.dpi
    marks = sorted(line.get_transform().transform(line.get_xydata())[0][0] * points for line in axes.lines if line.get_marker() != "_")
    assert len(marks) == len(CROWDS[name]) and min(np.diff(marks)) > 4.5  # a marker and a cap are 4 points wide
    assert axes.bbox.x0 * points + 2 < marks[0] and marks[-1] < axes.bbox.x1 * points - 2
    texts = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
    assert texts and not [pair for pair in combinations(texts, 2) if pair[0].overlaps(pair[1])]


def test_a_tiny_spread_has_its_sizes_for_ticks_and_says_how_small_it_is() -> None:
    words = [text.get_text() for text in of_sizes(4_697_162, 4_725_345).axes[0].get_xticklabels()]
    assert words == ["4.697 M", "4.725 M\n+0.6 %"]  # 100 x 28,183 / 4,697,162 = 0.6000
    words = [text.get_text() for text in of_sizes(4_697_162, 4_697_163).axes[0].get_xticklabels()]
    assert words == ["4.697162 M", "4.697163 M\n+2.1e-05 %"]


def test_near_sizes_keep_their_order_and_far_ones_their_place() -> None:
    moved = beside({"b": 50.5, "a": 50.0, "far": 150.0, "c": 51.0})
    # Three of 7 points each around the mean of their places, by hand.
    assert moved == pytest.approx({"a": 50.5 - 7 - 50, "b": 0, "c": 50.5 + 7 - 51, "far": 0})


def test_an_axis_of_moved_arms_says_so() -> None:
    assert of_sizes(*FIVE_WITHIN_A_PERCENT, 10**7).axes[0].get_xlabel() == "parameters (logarithmic, near ones side by side)"
    assert of_sizes(4_697_162, 4_725_345).axes[0].get_xlabel() == "parameters"


def test_arms_without_a_look_are_one_drawing_with_a_bar_where_there_are_seeds() -> None:
    arms = {f"arm{place:02d}": [89.75 - place / 10, 90.25 - place / 10] if place % 2 else [90 - place / 10] for place in range(30)}
    some = of_accuracies(**arms)
    rows = [replace(row, result=replace(row.result, parameters=10**6 + 1000 * int(row.arms[0][3:]))) for row in some.rows if row.result]
    figure = figures.figure(with_rows(some, rows), "parameters")
    assert figure is not None and legend_of(figure)[-1] == "9 other arms"
    (grey,) = [line for line in figure.axes[0].lines if len(np.asarray(line.get_xdata())) == 9 and line.get_marker() == "o"]
    others = {1_000_000 + 1000 * place: sum(arms[f"arm{place:02d}"]) / len(arms[f"arm{place:02d}"]) for place in range(21, 30)}
    assert dict(zip(grey.get_xdata(), grey.get_ydata(), strict=True)) == pytest.approx(others)  # type: ignore[call-overload]
    (bars,) = [one for one in figure.axes[0].collections if isinstance(one, LineCollection) and len(one.get_segments()) == 9]
    assert sum(len(bar) == 2 for bar in bars.get_segments()) == 5, "an arm of one run has no deviation"
