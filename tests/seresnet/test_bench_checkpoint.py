"""bench/checkpoint.py as a program. What it measures is for a quiet machine, not for a test."""

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "checkpoint.py"


def test_help_of_the_bench_names_its_options_without_importing_torch() -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", str(BENCH), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(option in done.stdout for option in ("--check", "--quick", "--dir")), done.stdout
    assert "| torch" not in done.stderr
