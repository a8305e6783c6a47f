"""The trend of a run's accuracy as little bars, and its column in status --watch."""

from io import StringIO
from pathlib import Path

import pytest
from fake_sweep import FakeSweep, record
from rich.console import Console

from hpc import slurm, status_look
from hpc.sparkline import sparkline
from hpc.status_look import Memory
from hpc.status_view import render
from hpc.status_watch import TREND_EPOCHS, watch


@pytest.mark.parametrize(
    ("values", "blocks", "letters"),
    [
        ([], "", ""),
        ([0, 100], "▁█", "_#"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█", "_.,-=+*#"),
        ([7, 0], "█▁", "#_"),
        ([50, 50, 50], "▅▅▅", "==="),
        ([50, 50.1, 50], "▄▅▄", "-=-"),
    ],
)
def test_values_become_bars(values: list[float], blocks: str, letters: str) -> None:
    assert sparkline(values, is_ascii=False, least_span=2) == blocks
    assert sparkline(values, is_ascii=True, least_span=2) == letters


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    monkeypatch.setattr(slurm, "listed_jobs", lambda: {})
    return FakeSweep(tmp_path, seeds=1, epochs=40).finish_all()


def test_a_watch_carries_the_accuracies_of_the_last_epochs(sweep: FakeSweep) -> None:
    rows = status_look.take(sweep.folder, Memory(trend_epochs=TREND_EPOCHS)).rows
    wanted = [record("baseline", 0, epoch, 40).val_top1_pct for epoch in range(40 - TREND_EPOCHS + 1, 41)]
    assert list(rows[0].trend) == wanted
    assert status_look.take(sweep.folder).rows[0].trend == (), "a plain look pays for nothing"


def test_the_column_is_the_first_to_give_way(sweep: FakeSweep) -> None:
    look = status_look.take(sweep.folder, Memory(trend_epochs=TREND_EPOCHS))
    wide, narrow = (render(look, width, is_ascii=False).plain for width in (140, 84))
    assert "trend" in wide and any(bar in wide for bar in "▁▂▃▄▅▆▇█")
    assert "trend" not in narrow and "val %" in narrow and max(map(len, narrow.splitlines()[:4])) <= 84
    assert "trend" not in render(status_look.take(sweep.folder), 140, is_ascii=False).plain


def test_where_there_is_no_terminal_the_last_table_is_ascii(sweep: FakeSweep) -> None:
    text = StringIO()
    watch(sweep.folder, Console(file=text, width=140), lambda seconds: None)
    assert "trend" in text.getvalue() and text.getvalue().isascii(), text.getvalue()
