"""bench/measure.py: floors that judge, JSON that others can read, an end in order."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import measure  # noqa: E402


def arguments(path: Path, **more: bool) -> argparse.Namespace:
    return argparse.Namespace(**{"check": True, "quick": False, "json": path, **more})


def test_a_ratio_is_how_many_times_faster_ours_is_round_by_round() -> None:
    found = measure.speedup([1.0, 2.0, 1.0], [2.0, 6.0, 4.0])
    assert (found.median, found.low, found.high, found.n) == (3.0, 2.0, 4.0, 3), found


@pytest.mark.parametrize(("value", "expected"), [(1.8, 0), (1.79, 1), (float("nan"), 1)])
def test_a_median_below_its_floor_or_no_number_fails_the_check(tmp_path: Path, value: float, expected: int) -> None:
    report = measure.Report(script="x.py")
    report.row("something", measure.spread([value] * 3), floor=1.8)
    code = report.finish(arguments(tmp_path / "rows.json"))
    assert code == expected, (value, code, report.missed)


def test_a_quick_run_is_not_judged(tmp_path: Path) -> None:
    report = measure.Report(script="x.py")
    report.row("something", 2.0, ceiling=1.0)
    assert report.finish(arguments(tmp_path / "rows.json", quick=True)) == 0 and report.missed == ["something"]


def test_the_json_is_valid_whatever_was_measured(tmp_path: Path) -> None:
    report = measure.Report(script="x.py")
    for value in (float("inf"), float("nan"), "words", measure.spread([float("nan")]), 1.5):
        report.row("something", value)
    report.finish(arguments(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text(), parse_constant=pytest.fail)["rows"]
    assert [row["value"] for row in rows[:3]] == ["inf", "nan", "words"] and rows[4]["value"] == 1.5, rows


def test_a_json_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        measure.parser("x").parse_args(["--json", str(tmp_path / "no" / "rows.json")])
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_benchmark_takes_its_folders_along(tmp_path: Path, number: signal.Signals) -> None:
    program = "import measure, tempfile, time\nmeasure.end_in_order(); measure.leave_no_compile_cache()\n"
    program += "with tempfile.TemporaryDirectory():\n    print('ready', flush=True)\n    time.sleep(60)\n"
    env = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    env |= {"PYTHONPATH": str(BENCH), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        before = len(list(tmp_path.iterdir()))
        child.send_signal(number)
        code = child.wait(30)
    assert (before, code, list(tmp_path.iterdir())) == (2, 128 + number, []), (before, code)
