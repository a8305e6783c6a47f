"""Stopped, damaged, raised or carried on, a run ends with the bits of an undisturbed one: 1, 2 and 4 ranks on the CPU."""

import re
import resource
import signal
from pathlib import Path

import pytest
import ranks as ring

from seresnet import journal
from seresnet.run_folder import CheckpointName, RunFolder

WORLD_SIZES = (1, 2, 4)


@pytest.mark.parametrize("size", WORLD_SIZES)
def test_stop_requests_save_and_exit_75_on_every_rank(size: int, digits_dir: Path, tmp_path: Path) -> None:
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
        assert ring.newest_step(run_dir) == stopped_at, f"{number.name}: stopped at step {stopped_at}, which is not durable"
    ring.finish(config, run_dir, size)
    ring.assert_same(run_dir, ring.undisturbed(digits_dir, size), f"{size} ranks stopped twice")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="this system has no prlimit")
def test_a_stop_that_cannot_save_still_counts_as_a_stop(digits_dir: Path, tmp_path: Path) -> None:
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, 1), tmp_path / "run"
    (process,) = ring.start(config, run_dir, 1)
    ring.wait_until(lambda: ring.newest_step(run_dir) >= 2)
    smallest = min(path.stat().st_size for path in run_dir.glob("ckpt/*.safetensors"))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (smallest - 1, smallest - 1))  # a full disk, for checkpoints alone
    ring.send([process], signal.SIGTERM)
    assert ring.join_all([process]) == [75], (tmp_path / "output.txt").read_text()[-3000:]
    assert "which is not saved" in (tmp_path / "output.txt").read_text()
    ring.finish(config, run_dir, 1)
    ring.assert_same(run_dir, ring.undisturbed(digits_dir, 1), "stopped without space")


def test_training_a_finished_run_again_does_nothing(digits_dir: Path, tmp_path: Path) -> None:
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, 1), tmp_path / "run"
    ring.finish(config, run_dir, 1)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert ring.join_all(ring.start(config, run_dir, 1)) == [0]
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file() and path.name != "log.txt"}


def test_epochs_raised_within_the_horizon_give_the_bits_of_one_long_run(digits_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = ring.tiny_config(tmp_path, digits_dir, 1, epochs=3)
    config.write_text(config.read_text().replace("optim:\n", "optim:\n  schedule_epochs: 5\n"))
    ring.finish(config, run_dir, 1)
    config.write_text(config.read_text().replace("\n  epochs: 3\n", "\n  epochs: 5\n"))
    ring.finish(config, run_dir, 1)
    ring.assert_same(run_dir, ring.undisturbed(digits_dir, 1), "3 epochs, then raised to 5")


def test_damaged_newest_checkpoint_is_set_aside_and_the_one_before_used(digits_dir: Path, tmp_path: Path) -> None:
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
    ring.assert_same(run_dir, ring.undisturbed(digits_dir, 1), "one flipped bit")
