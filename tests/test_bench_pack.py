"""bench/pack.py as a program: two real runs, packed both ways, end in the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "pack.py"


@pytest.mark.slow
def test_runs_end_in_equal_states_however_they_are_packed(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH), "--quick", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["what"].partition(": ")[2]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert rows["share of 4 endings with equal state_digests"] == 1.0, rows
    assert rows["side by side / in turn, training"]["median"] > 0, rows
