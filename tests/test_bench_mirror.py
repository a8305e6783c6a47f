"""bench/mirror.py's trainings, short: whatever becomes of W&B, the same bits, exit code 0 and no process left."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import mirror as bench

EPOCHS = 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "rows"), [("frozen", tuple(range(1, EPOCHS + 1))), pytest.param("silent", None, marks=pytest.mark.nightly)]
)
def test_a_training_is_the_same_whatever_becomes_of_wandb(tmp_path: Path, variant: str, rows: tuple[int, ...] | None) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: make setup")
    plain, found = (bench.train(tmp_path / name, name, epochs=EPOCHS) for name in ("disabled", variant))
    assert found.state_digest == plain.state_digest, "W&B has changed the training"
    assert found.left == 0, f"{found.left} processes outlived the task"
    assert found.end_s < bench.MOST_END_S + 1
    assert rows is None or found.steps == rows, f"a frozen core was not replaced: {found.steps}"
