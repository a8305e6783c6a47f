"""Checkpoints of writers that are killed at random: real processes, real signals, a real disk."""

import multiprocessing
import os
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from conftest import Amount, Report

from seresnet import checkpoint_files
from seresnet.checkpoint_writer import CheckpointWriter, recover
from seresnet.claims import acquire, newest_claim, this_process
from seresnet.run_folder import RunFolder
from seresnet.state import TrainState, state_digest

# Forked and not spawned: a start costs 10 ms instead of a second. The children only do what one thread can.
PROCESSES = multiprocessing.get_context("fork")
LIMIT_S = 60


def state(step: int, size: int = 64) -> TrainState:
    """A pure function of the step, so that what was recovered can be checked bit for bit."""
    values = torch.arange(size, dtype=torch.float32) + step
    return TrainState(tensors={"model/w": values, "momentum/w": -values}, scalars={"step": step})


def new_folder(path: Path) -> RunFolder:
    folder = RunFolder(path=path / "run")
    folder.create()
    return folder


def recovered_step(folder: RunFolder, size: int = 64) -> int:
    claim = newest_claim(folder)
    found = recover(folder, claim.base if claim else None)
    assert found is not None
    assert state_digest(found[0]) == state_digest(state(found[1].step, size)), f"{found[1]}: other bits than were saved"
    return found[1].step


def _save_for_ever(path: str, size: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    folder = RunFolder(path=Path(path))
    claim = acquire(folder, this_process({}), observe_s=3600)
    found = recover(folder, claim.base)
    step, name = (0, None) if found is None else (found[1].step, found[1])
    writer = CheckpointWriter(folder, claim.generation, resumed_from=name)
    while True:
        step += 1
        writer.save(state(step, size), epoch_boundary=step % 7 == 0, best=step % 11 == 0)
        if writer.wait(LIMIT_S):
            os.write(pipe.fileno(), step.to_bytes(8, "little"))


def _save_once(folder: RunFolder, size: int) -> None:
    claim = acquire(folder, this_process({}), observe_s=3600)
    found = recover(folder, claim.base)
    assert found is not None
    writer = CheckpointWriter(folder, claim.generation, resumed_from=found[1])
    writer.save(state(found[1].step + 1, size))
    assert writer.close(LIMIT_S)


def test_sigkill_during_saves_never_loses_what_was_reported_durable(tmp_path: Path, amount: Amount, report: Report) -> None:
    folder, draw, size, kills = new_folder(tmp_path), random.Random(4), 100_000, amount(10, 20, 300)
    history = []
    for generation in range(1, kills + 1):
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=_save_for_ever, args=(str(folder.path), size, theirs), daemon=True)
        process.start()
        assert ours.poll(LIMIT_S), "the writer never reported"
        time.sleep(draw.uniform(0, 0.06))
        process.kill()
        process.join()
        theirs.close()
        reports = os.read(ours.fileno(), 1 << 20)
        reported = int.from_bytes(reports[-8:], "little")
        found = recovered_step(folder, size)
        history.append((generation, reported, found))
        assert found >= reported, f"(generation, reported, recovered): {history}"
    assert len(list(folder.attempts.glob("*.end.json"))) == kills - 1
    assert not folder.set_aside.exists(), "a kill alone must never leave a damaged file under a checkpoint's name"
    _save_once(folder, size)  # killed between a report and the deletions after it, attempts leave files to the next one that lives longer
    assert len(checkpoint_files.list_checkpoints(folder)) <= 10, "three steps, two epochs' ends, the best of each, one base"
    report("SIGKILL of a process that saves without pause", f"{kills} kills", "every recovery at least as new as the last report")
