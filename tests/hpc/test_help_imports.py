"""--help of every command, in a fresh interpreter: it answers at once, so it imports nothing heavy. The seconds are bench/restart.py's."""

import subprocess
import sys
from pathlib import Path

import pytest

from hpc.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "wandb", "submitit", "PIL", "scipy")
MODULES = sorted({word for command, _ in COMMANDS for word in command.split() if word.startswith(("hpc.", "seresnet."))} | {"hpc"})


def test_the_list_of_commands_was_read() -> None:
    assert {"hpc.launch", "hpc.move", "seresnet.train", "seresnet.checkpoint"} <= set(MODULES), MODULES


@pytest.mark.parametrize("module", MODULES)
def test_help_imports_nothing_heavy(module: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "python -m" in done.stdout, done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not imported & set(HEAVY), imported & set(HEAVY)
