"""The W&B mirror on a disk that is full: it ends in time with exit code 0, and what it could not write is repaired later."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_disk import NoSmallDiskError, on_small_disk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hpc"))
from fake_sweep import FakeSweep
from mirror_scene import has_open, offline_files, run_mirror, start, wait_for
from wandb_stub import Stub

pytest.importorskip("wandb", reason="wandb is not installed: make setup")


def fill(folder: Path) -> Path:
    path = folder / "filling"
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return path


def mirror_while_full(folder: Path, *, online: bool) -> dict[str, Any]:
    """Rows of epochs 1 to 6 of which the last three come when there is no space; as the server has them before and after the repair."""
    stub, sweep = Stub(), FakeSweep(folder, seeds=1)
    told = stub.environment() if online else {}
    for epochs in (range(1, 4), range(4, 7)):
        sweep.train("se", 0, epochs)
    covered = [path for path in sweep.of("se", 0).checkpoints.iterdir() if "000000060" in path.name]
    covered[0].rename(folder / "later")
    following = start(sweep, "--follow", "--runs", "se-seed0", **told, TMPDIR="/tmp")
    wait_for(lambda: has_open(stub) if online else offline_files(sweep.of("se", 0)))
    time.sleep(1.0)
    filling = fill(folder)
    (folder / "later").rename(covered[0])
    time.sleep(3.0)
    asked = time.monotonic()
    following.terminate()
    output, _ = following.communicate(timeout=60)
    took, code = time.monotonic() - asked, following.returncode
    during = [step for run in stub.runs.values() for step in run.steps]
    filling.unlink()
    sweep.finish("se", 0)
    run_mirror(sweep, "--runs", "se-seed0", **stub.environment(), TMPDIR="/tmp")
    after = [step for run in stub.runs.values() for step in run.steps]
    stub.close()
    return {"output": output, "took": took, "code": code, "during": during, "after": after, "faults": stub.books.faults}


@pytest.mark.slow
@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
def test_a_full_disk_ends_no_task_late_and_is_repaired(online: bool) -> None:
    try:
        seen = on_small_disk(lambda folder: mirror_while_full(folder, online=online))
    except NoSmallDiskError as error:
        pytest.skip(str(error))
    assert seen["code"] == 0 and seen["took"] < 5.5, seen
    assert seen["after"] == [1, 2, 3, 4, 5, 6] and not seen["faults"], seen
    if online:
        assert seen["during"] == [1, 2, 3, 4, 5, 6], f"online nothing needs the disk: {seen}"
