"""The benchmark of evaluation and averaging runs on a small machine; what it measures is not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.nightly
def test_a_quick_run_ends_with_every_row(tmp_path: Path) -> None:
    command = [sys.executable, "bench/evaluate.py", "--quick", "--check", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    names = [row["what"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]]
    for part in ("against torch's AveragedModel", "folded against plain", "share of a step", "freed memory kept"):
        assert any(part in name for name in names), f"{part} is in none of {names}"
