"""The timeline and the hours: bars, waits and sums against what the attempts say."""

from dataclasses import replace

import pytest
from made_rows import made, made_row, made_span, with_rows
from matplotlib.figure import Figure

from hpc import figures
from hpc.figure_runs import _KINDS
from hpc.gather import Gathered, RunRow
from hpc.spans import Span
from seresnet.exits import AFTER_ENDING

HOUR = 3600.0
COLOURS = {kind.label: kind.colour for kind in _KINDS}


def of_spans(*runs: tuple[Span, ...]) -> Gathered:
    rows: list[RunRow] = [replace(made_row("se", seed, 1), spans=spans) for seed, spans in enumerate(runs)]
    return Gathered(arms=("se",), rows=tuple(rows), skipped=())


def span(generation: int, start: float, end: float | None, ending: str | None, job: str = "7_0", restart: int = 0) -> Span:
    """Hours after the first."""
    return made_span(generation, 1e9 + HOUR * start, None if end is None else 1e9 + HOUR * end, ending, job, restart)


def bars_of(figure: Figure | None) -> dict[str, list[tuple[float, float, int]]]:
    """Kind of ending -> (from, to, row)."""
    from matplotlib.colors import to_hex

    assert figure is not None
    labels = {colour.lower(): label for label, colour in COLOURS.items()}
    found = {}
    for part in figure.axes[0].collections:
        corners = [path.vertices for path in part.get_paths()]
        bars = [(float(box[:, 0].min().round(6)), float(box[:, 0].max().round(6)), round(float(box[:4, 1].mean()))) for box in corners]  # type: ignore[index, call-overload]
        found[labels[to_hex(part.get_facecolor()[0])]] = bars  # type: ignore[index, arg-type]
    return found


def test_a_bar_is_an_attempt_from_start_to_end_in_the_colour_of_its_ending() -> None:
    some = of_spans(
        (span(1, 0, 2, "preempted"), span(2, 3, 5, "finished", restart=1)),
        (span(1, 0.5, 4, "crashed"), span(2, 6, 7.5, None)),
    )
    assert bars_of(figures.figure(some, "timeline")) == {
        "finished": [(3, 5, 0)],
        "preempted, node failed": [(0, 2, 0)],
        "failed": [(0.5, 4, 1)],
        "not ended, or unknown": [(6, 7.5, 1)],
    }


def test_a_wait_says_whether_the_job_was_requeued_or_sent_again() -> None:
    some = of_spans((span(1, 0, 2, "preempted"), span(2, 3, 4, "stopped", restart=1), span(3, 6, 9, "finished", job="8_0")))
    figure = figures.figure(some, "timeline")
    assert figure is not None
    waits = [(list(line.get_xdata()), line.get_linestyle()) for line in figure.axes[0].lines]  # type: ignore[arg-type]
    assert [ends for ends, _ in waits] == [[2, 3], [4, 6]] and [style == "-" for _, style in waits] == [True, False]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "finished",
        "preempted, node failed",
        "stopped, cancelled",
        "requeued, in the queue",
        "until it was started again",
    ]
    assert figure.axes[0].get_xlabel() == "hours since the first attempt"


def test_another_try_within_one_job_is_no_requeue() -> None:
    figure = figures.figure(of_spans((span(1, 0, 2, "crashed"), span(2, 2.1, 4, "finished"))), "timeline")
    assert figure is not None and [text.get_text() for text in figure.legends[0].get_texts()][-1] == "until it was started again"


def test_attempts_of_unknown_time_are_counted_and_not_drawn() -> None:
    figure = figures.figure(of_spans((span(1, 0, None, None), span(2, 1, 2, "finished"))), "timeline")
    assert figure is not None
    assert figure.get_suptitle() == "CIFAR-10 (JPEG): 1 run, 2 attempts, 1 of unknown time, not drawn"
    assert figures.figure(of_spans((span(1, 0, None, None),)), "timeline") is None


def test_every_ending_that_is_ever_written_has_its_kind() -> None:
    kinds = {ending for kind in _KINDS for ending in kind.endings}
    assert set(AFTER_ENDING) - kinds == {"unknown", "interrupted"}  # nobody could tell how these ended
    assert len({kind.colour for kind in _KINDS}) == len(_KINDS)


def test_many_runs_are_named_by_arm_and_stay_on_a_page() -> None:
    some = made([f"r{place}" for place in range(20)], seeds=10, epochs=1)
    figure = figures.figure(some, "timeline")
    assert figure is not None and figure.get_figheight() < 11
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [f"r{place}" for place in range(20)]


def test_a_run_of_several_arms_is_one_line_and_one_that_no_arm_asks_for_the_last() -> None:
    some = made(("baseline", "se"), seeds=1, epochs=1)
    rows = [replace(some.rows[0], arms=("baseline", "se")), replace(made_row("old", 0, 1), arms=())]
    figure = figures.figure(with_rows(some, rows), "timeline")
    assert figure is not None and [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["baseline-s0", "old-s0"]


def test_hours_are_stacked_by_fate_and_sum_to_what_was_held() -> None:
    some = made(seeds=2, epochs=6)  # 27 s of epochs in 60 s of an attempt
    figure = figures.figure(some, "hours")
    assert figure is not None and figure.axes[0].get_xlabel() == "GPU-hours"
    widths = [patch.get_width() * HOUR for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert widths == pytest.approx([54, 0, 66] * 2)
    assert [text.get_text() for text in figure.axes[0].texts] == ["45 % useful"] * 2


def test_cores_and_gpus_are_never_one_sum() -> None:
    some = made(seeds=1, epochs=6)
    config = some.rows[1].config or {}
    cpu = replace(some.rows[1], config={**config, "train": {**config["train"], "device": "cpu"}})
    figure = figures.figure(with_rows(some, [some.rows[0], cpu]), "hours")
    assert figure is not None and [axes.get_xlabel() for axes in figure.axes] == ["GPU-hours", "core-hours"]
