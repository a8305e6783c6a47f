"""A real disk of 64 MB that fills up: by the run's own checkpoints, which make room, and by somebody else's file, which does not."""

import errno
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Report
from power_loss import epoch
from ranks import tiny_config, wait_until
from small_disk import NoSmallDiskError, on_small_disk

from seresnet import journal
from seresnet.checkpoint_files import list_checkpoints
from seresnet.checkpoint_writer import CheckpointWriter, recover
from seresnet.run_folder import RunFolder, TrainResult
from seresnet.state import TrainState, state_digest

MB = 1 << 20
LIMIT_S = 120
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mount namespaces are Linux's")


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _state(step: int) -> TrainState:
    """14 MB: four of them fit, five do not."""
    values = torch.arange(7 * MB // 4, dtype=torch.float32) + step
    return TrainState(tensors={"model/w": values, "momentum/w": -values}, scalars={"step": step})


def _fill(path: Path) -> int:
    """Take every byte that is left, as another user would; the file's size."""
    with open(path, "wb", buffering=0) as file:
        for size in (MB, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return path.stat().st_size


def _live(disk: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    log = _Log()
    logging.getLogger("seresnet").addHandler(log)
    folder = RunFolder(path=disk / "run")
    folder.create()
    writer = CheckpointWriter(folder, 1)
    own = []
    for step in range(1, 13):
        # The best of two epochs' ends, and the last steps: more than fits.
        writer.save(_state(step), epoch_boundary=step % 3 == 0, best=step in (1, 6))
        own.append(writer.wait(LIMIT_S))
    freed = sum("disk_full" in line for line in log.lines)
    journal.append(folder, epoch(1, 12))
    told = []
    for step in range(13, 18):
        _fill(disk / f"ballast {step}")  # also what the writer has freed
        writer.save(_state(step))
        told.append((writer.wait(LIMIT_S), getattr(writer.last_error, "errno", None), writer.durable_step))
    line_failed = _append_fails(folder)
    left = [name.step for name in list_checkpoints(folder)]
    found = recover(folder, None)
    for path in disk.glob("ballast*"):
        path.unlink()
    writer.save(_state(18))
    again = writer.close(LIMIT_S)
    journal.append(folder, epoch(1, 15))
    after = recover(folder, None)
    assert found is not None and after is not None
    return {
        "own": own,
        "freed": freed,
        "told": told,
        "said": [line for line in log.lines if "checkpoint_failed" in line],
        "line_failed": line_failed,
        "left": left,
        "found": found[1].step,
        "found_same": state_digest(found[0]) == state_digest(_state(found[1].step)),
        "again": again,
        "after": after[1].step,
        "epochs": [record.step for record in journal.read(folder)],
        "temps": [path.name for path in folder.checkpoints.iterdir() if path.name.startswith(".")],
    }


def _append_fails(folder: RunFolder) -> bool:
    # A page that is there has room for some more lines.
    try:
        for step in range(100, 140):
            journal.append(folder, epoch(1, step))
    except OSError:
        return True
    return False


def test_a_real_disk_that_fills_up_costs_saves_and_no_checkpoint(report: Report) -> None:
    try:
        seen = on_small_disk(_live)
    except NoSmallDiskError as error:
        pytest.skip(f"no small disk here: {error}")
    assert all(seen["own"]) and seen["freed"] >= 1, f"own old files did not make room: {seen}"
    assert all(durable >= 12 for _, _, durable in seen["told"]), seen["told"]
    assert seen["told"][-1][:2] == [False, errno.ENOSPC] and "training goes on" in seen["said"][-1], seen
    assert seen["found_same"] and seen["found"] == seen["told"][-1][2] and seen["left"], seen
    assert seen["line_failed"] and seen["again"] and seen["after"] == 18, seen
    assert seen["epochs"][0] == 12 and 15 in seen["epochs"] and seen["temps"] == [], seen
    failed = sum(not is_durable for is_durable, _, _ in seen["told"])
    report(
        "a real 64 MB tmpfs", f"18 saves of 14 MB, {seen['freed']} with own files freed, {failed} refused", "trains on, goes on with space"
    )


def _start(config: Path, run_dir: Path, output: Path) -> subprocess.Popen[bytes]:
    with open(output, "wb") as file:
        command = [sys.executable, "-m", "seresnet.train", "--config", str(config), "--run-dir", str(run_dir)]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def _train(disk: Path, config: Path, elsewhere: Path) -> dict[str, Any]:
    folder, output = RunFolder(path=disk / "run"), elsewhere / "output.txt"
    undisturbed = _start(config, elsewhere / "undisturbed", elsewhere / "undisturbed.txt")
    assert undisturbed.wait(LIMIT_S) == 0, (elsewhere / "undisturbed.txt").read_text()[-2000:]
    run = _start(config, folder.path, output)
    wait_until(lambda: len(list_checkpoints(folder)) > 0)
    for part in range(3):  # the run frees what it can spare; so much is taken, too
        _fill(disk / f"ballast {part}")
    wait_until(lambda: "checkpoint_failed" in output.read_text() or run.poll() is not None)
    is_alive = run.poll() is None
    for path in disk.glob("ballast*"):
        path.unlink()
    results = [TrainResult.read(one) for one in (folder, RunFolder(path=elsewhere / "undisturbed"))] if run.wait(LIMIT_S) == 0 else []
    return {"code": run.returncode, "alive": is_alive, "digests": [one and one.state_digest for one in results], "said": output.read_text()}


@pytest.mark.slow
def test_a_run_trains_through_a_full_disk_to_the_same_bits(tmp_path: Path, digits_dir: Path, report: Report) -> None:
    config = tiny_config(tmp_path, digits_dir, 1, epochs=15)
    try:
        seen = on_small_disk(lambda disk: _train(disk, config, tmp_path), limit_s=5 * LIMIT_S)
    except NoSmallDiskError as error:
        pytest.skip(f"no small disk here: {error}")
    assert seen["code"] == 0 and seen["alive"], seen["said"][-3000:]
    assert len(set(seen["digests"])) == 1 and None not in seen["digests"], seen["digests"]
    failed = seen["said"].count("checkpoint_failed")
    report(
        "a real 64 MB tmpfs, training on it", f"1 run, {failed} saves refused", "trained on, finished once there was space, equal digest"
    )
