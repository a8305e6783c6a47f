"""Killed anywhere and started again, a run ends with the bits of an undisturbed one: 1, 2 and 4 ranks on the CPU."""

import random
import re
import resource
import signal
from pathlib import Path

import pytest
import ranks as ring

from seresnet import journal
from seresnet.journal import EpochRecord
from seresnet.run_folder import CheckpointName, RunFolder, TrainResult

WORLD_SIZES = (1, 2, 4)


@pytest.fixture(scope="session")
def undisturbed(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[TrainResult, list[EpochRecord]]]:
    """Result and journal of a run that nobody touched, for each world size."""
    results = {}
    for size in WORLD_SIZES:
        folder = tmp_path_factory.mktemp(f"undisturbed-{size}")
        config = ring.tiny_config(folder, digits_dir, size)
        results[size] = (ring.finish(config, folder / "run", size), journal.read(RunFolder(path=folder / "run")))
    return results


def assert_same(run_dir: Path, expected: tuple[TrainResult, list[EpochRecord]], story: str) -> None:
    """Same state, same numbers, every epoch once."""
    folder = RunFolder(path=run_dir)
    result = TrainResult.read(folder)
    assert result is not None, story
    assert result.state_digest == expected[0].state_digest, f"{story}: the state differs"
    assert result.confusion == expected[0].confusion, story
    found, wanted = (
        [(r.epoch, r.step, r.train_loss, r.val_top1_pct, r.test_loss) for r in log] for log in (journal.read(folder), expected[1])
    )
    assert found == wanted, f"{story}: {found} != {wanted}"


@pytest.mark.parametrize("size", WORLD_SIZES)
@pytest.mark.parametrize("seed", range(2))
def test_sigkill_at_random_times_changes_no_bit(size: int, seed: int, digits_dir: Path, undisturbed: dict, tmp_path: Path) -> None:
    draw = random.Random(1000 * size + seed)
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, size), tmp_path / "run"
    steps, codes = [], []
    for _ in range(4):
        goal = _newest_step(run_dir) + draw.randrange(0, 8)
        processes = ring.start(config, run_dir, size)
        ring.wait_until(lambda: _newest_step(run_dir) > goal or not all(p.is_alive() for p in processes))  # noqa: B023
        draw.choice(processes).kill()
        codes.append(ring.join_all(processes, limit_s=20))
        steps.append(_newest_step(run_dir))
    assert any(-signal.SIGKILL in attempt for attempt in codes), f"every kill came too late: {codes}"
    ring.finish(config, run_dir, size)
    assert_same(run_dir, undisturbed[size], f"{size} ranks killed with durable steps {steps}")


@pytest.mark.parametrize("size", WORLD_SIZES)
def test_stop_requests_save_and_exit_75_on_every_rank(size: int, digits_dir: Path, undisturbed: dict, tmp_path: Path) -> None:
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, size, checkpoint_every_s=3600), tmp_path / "run"
    for number in (signal.SIGTERM, signal.SIGUSR2):
        epochs = len(journal.read(RunFolder(path=run_dir)))
        processes = ring.start(config, run_dir, size)
        ring.wait_until(lambda: len(journal.read(RunFolder(path=run_dir))) > epochs)  # noqa: B023
        ring.send(processes, number)
        codes = ring.join_all(processes)
        output = (tmp_path / "output.txt").read_text()
        assert codes == [75] * size, f"{number.name}: {codes}\n{output[-3000:]}"
        stopped_at = int(re.findall(rf"reason={number.name} at step (\d+)", output)[-1])
        assert _newest_step(run_dir) == stopped_at, f"{number.name}: stopped at step {stopped_at}, which is not durable"
    ring.finish(config, run_dir, size)
    assert_same(run_dir, undisturbed[size], f"{size} ranks stopped twice")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="this system has no prlimit")
def test_a_stop_that_cannot_save_still_counts_as_a_stop(digits_dir: Path, undisturbed: dict, tmp_path: Path) -> None:
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, 1), tmp_path / "run"
    (process,) = ring.start(config, run_dir, 1)
    ring.wait_until(lambda: _newest_step(run_dir) >= 2)
    smallest = min(path.stat().st_size for path in run_dir.glob("ckpt/*.safetensors"))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (smallest - 1, smallest - 1))  # a full disk, for checkpoints alone
    ring.send([process], signal.SIGTERM)
    assert ring.join_all([process]) == [75], (tmp_path / "output.txt").read_text()[-3000:]
    assert "which is not saved" in (tmp_path / "output.txt").read_text()
    ring.finish(config, run_dir, 1)
    assert_same(run_dir, undisturbed[1], "stopped without space")


def test_training_a_finished_run_again_does_nothing(digits_dir: Path, tmp_path: Path) -> None:
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, 1), tmp_path / "run"
    ring.finish(config, run_dir, 1)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert ring.join_all(ring.start(config, run_dir, 1)) == [0]
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file() and path.name != "log.txt"}


def test_epochs_raised_within_the_horizon_give_the_bits_of_one_long_run(digits_dir: Path, undisturbed: dict, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = ring.tiny_config(tmp_path, digits_dir, 1, epochs=3)
    config.write_text(config.read_text().replace("optim:\n", "optim:\n  schedule_epochs: 5\n"))
    ring.finish(config, run_dir, 1)
    config.write_text(config.read_text().replace("\n  epochs: 3\n", "\n  epochs: 5\n"))
    ring.finish(config, run_dir, 1)
    assert_same(run_dir, undisturbed[1], "3 epochs, then raised to 5")


def test_damaged_newest_checkpoint_is_set_aside_and_the_one_before_used(digits_dir: Path, undisturbed: dict, tmp_path: Path) -> None:
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, 1), tmp_path / "run"
    processes = ring.start(config, run_dir, 1)
    ring.wait_until(lambda: len(list(run_dir.glob("ckpt/*.safetensors"))) >= 2)
    ring.kill_all(processes)
    newest = max(run_dir.glob("ckpt/*.safetensors"), key=lambda path: CheckpointName.parse(path.name))
    payload = bytearray(newest.read_bytes())
    payload[len(payload) // 2] ^= 1
    newest.write_bytes(payload)
    ring.finish(config, run_dir, 1)
    assert (run_dir / "ckpt" / "bad" / newest.name).exists(), "the damaged file was not kept for inspection"
    assert_same(run_dir, undisturbed[1], "one flipped bit")


def test_world_sizes_give_the_same_batches_and_nearly_the_same_losses(digits_dir: Path, tmp_path: Path) -> None:
    losses = {}
    for size in (1, 2, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        config = ring.tiny_config(folder, digits_dir, 4)
        ring.finish(config, folder / "run", size)
        losses[size] = [record.train_loss for record in journal.read(RunFolder(path=folder / "run"))]
    assert losses[2] == pytest.approx(losses[1], rel=1e-3), losses
    assert losses[4] == pytest.approx(losses[1], rel=1e-3), losses


def _newest_step(run_dir: Path) -> int:
    names = [CheckpointName.parse(path.name) for path in run_dir.glob("ckpt/*.safetensors")]
    return max((name.step for name in names if name), default=0)
