"""What hours became, against sums by hand. Times are seconds from 0; one device unless said, so that an hour is 3,600 seconds."""

from dataclasses import replace

import numpy as np
import pytest
from made_rows import history_of, made_row, made_span

from hpc.fates import Fates, fates, of_run
from hpc.history import COLUMNS, History

#: Of an epoch: 100 s, of them 90 s training 900 images.
WHOLE = {"seconds": 100.0, "train_seconds": 90.0, "eval_seconds": 10.0, "images_per_s": 10.0}


def history(*epochs: dict[str, float]) -> History:
    """generation and time of every epoch, and what differs from WHOLE."""
    lines = [{"epoch": float(number), **WHOLE, **epoch} for number, epoch in enumerate(epochs, 1)]
    return history_of({key: [line.get(key, np.nan) for line in lines] for key in COLUMNS})


def seconds(found: Fates) -> tuple[float, float, float]:
    return tuple(round(3600 * hours, 6) for hours in (found.useful, found.repeated, found.lost))  # type: ignore[return-value]


def test_a_run_of_one_attempt_is_useful_but_for_its_start() -> None:
    record = history({"generation": 1, "time": 130}, {"generation": 1, "time": 230})
    assert seconds(of_run(record, [made_span(1, 10, 235, "finished")])) == (200, 0, 25)


def test_devices_multiply_the_hours() -> None:
    span = replace(made_span(1, 10, 235, "finished"), devices=4)
    found = of_run(history({"generation": 1, "time": 130}, {"generation": 1, "time": 230}), [span])
    assert seconds(found) == (800, 0, 100) and found.held * 3600 == pytest.approx(4 * 225)


def test_what_a_killed_attempt_did_after_its_last_epoch_that_counts_is_repeated() -> None:
    # Killed at 250, 150 s after epoch 1; the next attempt trains epochs 2 and 3 from their beginning, starting up in 20 s.
    record = history({"generation": 1, "time": 100}, {"generation": 2, "time": 420}, {"generation": 2, "time": 520})
    spans = [made_span(1, 0, 250, "killed"), made_span(2, 300, 525, "finished")]
    assert seconds(of_run(record, spans)) == (300, 150, 25)


def test_the_part_of_an_epoch_that_a_later_attempt_went_on_from_is_useful() -> None:
    # 40 s into epoch 2 the attempt saved 360 of its 900 images and ended after 5 s more; the next one trained the other 540.
    rest = {"generation": 2, "time": 364, "seconds": 64, "train_seconds": 54, "images_per_s": 10}
    record = history({"generation": 1, "time": 100}, rest, {"generation": 2, "time": 464})
    spans = [made_span(1, 0, 145, "preempted"), made_span(2, 280, 464, "finished")]
    # The median epoch trains for 90 s, so 40 % of it are 36 s of the 45.
    assert seconds(of_run(record, spans)) == (100 + 36 + 64 + 100, 9, 20)


def test_an_epoch_that_was_only_evaluated_again_is_its_trainers() -> None:
    # The record of epoch 2 keeps the timing of attempt 1, which trained it from 100 to 200 and was killed at 205.
    record = history({"generation": 1, "time": 100}, {"generation": 2, "time": 330})
    spans = [made_span(1, 0, 205, "killed"), made_span(2, 300, 331, "finished")]
    assert seconds(of_run(record, spans)) == (100 + 100 + 10, 5, 21)


def test_attempts_that_left_no_epoch_and_work_that_nobody_went_on_from_are_lost() -> None:
    spans = [made_span(1, 0, 50, "crashed"), made_span(2, 60, 260, "diverged")]
    assert seconds(of_run(history({"generation": 2, "time": 180}), spans)) == (100, 0, 50 + 20 + 80)


def test_three_attempts_within_one_epoch_share_what_was_kept_of_it() -> None:
    # 90 images were left to the third: the first two trained 810, 81 s, and the newer of them has at most the 60 s that it held.
    record = history({"generation": 3, "time": 500, "seconds": 19, "train_seconds": 9}, {"generation": 3, "time": 600})
    spans = [made_span(1, 0, 50, "preempted"), made_span(2, 100, 160, "preempted"), made_span(3, 470, 600, "finished")]
    kept = 0.9 * (9 + 90) / 2
    assert seconds(of_run(record, spans)) == (119 + kept, 0, pytest.approx(110 - kept + 11))


def test_an_attempt_of_unknown_length_is_counted_and_guessed_at_nowhere() -> None:
    spans = [made_span(1, 0, None, None), made_span(2, None, 50, "killed"), made_span(3, 100, 210, "finished")]
    found = of_run(history({"generation": 1, "time": 90}, {"generation": 3, "time": 210}), spans)
    assert seconds(found) == (100, 0, 10) and found.unknown == 2


def test_records_of_an_older_version_and_no_record_at_all_are_no_error() -> None:
    old = history({"generation": 1, "time": 100, "train_seconds": np.nan, "eval_seconds": np.nan}, {"generation": 2, "time": 300})
    old.column("train_seconds")[:] = np.nan
    spans = [made_span(1, 0, 150, "killed"), made_span(2, 190, 300, "finished")]
    assert seconds(of_run(old, spans)) == (200, 50, 10)
    assert seconds(of_run(History(), spans)) == (0, 0, 260)


def test_fates_of_several_runs_are_their_sum() -> None:
    rows = [made_row("se", seed) for seed in (0, 1)]
    assert fates(rows) == of_run(rows[0].history, rows[0].spans) + of_run(rows[1].history, rows[1].spans)
    assert fates(rows).held == pytest.approx(sum(row.device_hours for row in rows))
