"""bench/mirror.py's trainings, short: whatever becomes of W&B, the same bits, exit code 0 and no process left."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import mirror as bench


@pytest.mark.slow
def test_a_training_is_the_same_whatever_becomes_of_wandb(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: make setup")
    plain, *others = (bench.train(tmp_path / name, name, epochs=60) for name in ("disabled", "frozen", "silent"))
    for found, rows in zip(others, (tuple(range(1, 61)), None), strict=True):
        assert found.state_digest == plain.state_digest, "W&B has changed the training"
        assert found.left == 0, f"{found.left} processes outlived the task"
        assert found.end_s < bench.MOST_END_S + 1
        assert rows is None or found.steps == rows, f"a frozen core was not replaced: {found.steps}"
