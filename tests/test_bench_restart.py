"""bench/restart.py as a program: what it measures is for a quiet machine, but that it measures can be seen anywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "restart.py"


@pytest.mark.nightly
def test_first_steps_and_helps_are_timed(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH), "--quick", "--check", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["what"].partition(" (")[0]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    expected = {"first step, fresh run", "first step, resumed run", "first step, plain script", "plain script / ours, fresh"}
    assert expected <= set(rows), rows
    assert all(0.1 < rows[name]["median"] < 180 for name in expected), rows
