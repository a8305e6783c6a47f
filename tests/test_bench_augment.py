"""bench/augment.py as a program. What it measures is for a quiet machine, not for a test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "augment.py"


@pytest.mark.slow
def test_the_bench_finds_every_operation_equal_to_pil_and_compares_both_pipelines(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    done = subprocess.run([sys.executable, str(BENCH), "--quick", "--json", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["what"]: row for row in json.loads(out.read_text())["rows"]}
    unequal = {what: row["value"] for what, row in rows.items() if what.startswith("equal to PIL") and row["missed"]}
    assert not unequal and sum(what.startswith("equal to PIL") for what in rows) == 15, (unequal, list(rows))
    assert all(f"ours against {other}, batches of 1024" in rows for other in ("PIL", "v2")), list(rows)
