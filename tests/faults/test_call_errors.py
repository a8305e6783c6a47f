"""Every call to the disk fails, once or from then on: what was running goes on or stops with an error, and what was durable stays."""

import errno
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from broken_files import BrokenFiles
from conftest import Amount, Report
from power_loss import FOLDER, Life, Told, digest, epoch, result, run_record, state, verify
from simulated_disk import DROPPED, SimulatedDisk

from seresnet import journal
from seresnet.attempts import newest_generation, read_end, write_end
from seresnet.checkpoint_writer import Save, Saver, recover
from seresnet.claims import acquire, this_process
from seresnet.errors import CheckpointError
from seresnet.state import state_digest

Act = Callable[[BrokenFiles, Told], Told]
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ESTALE, errno.EACCES)
FULL = (errno.ENOSPC, errno.EDQUOT)


def _save(files: BrokenFiles, told: Told) -> Told:
    saver = Saver(FOLDER, 1, None, files)
    saver.learn_older_files()
    for step in range(4, 8):
        if saver.save(Save(state=state(step), best=step == 5)):
            told = told.saved(1, step)
            saver.tidy()
        if files.number in FULL and files.failed:
            told = replace(told, window=told.window[-1:])
    missed = 4 - len([step for _, step in told.durable if step > 3])
    assert files.sticky or missed <= (0 if files.failed and files.number in FULL and "read" not in files.failed else 1), files.failed
    return told


def _claim(files: BrokenFiles, told: Told) -> Told:
    before = newest_generation(FOLDER, files.disk)
    try:
        claim = acquire(FOLDER, replace(this_process({}), task_try=50 + before), observe_s=0.0, files=files)
    except OSError:
        assert newest_generation(FOLDER, files.disk) == before, "raised, and claimed all the same"
        raise
    return replace(told, claims=(*told.claims, (claim.generation, claim.base)))


def _result(files: BrokenFiles, told: Told) -> Told:
    result(3).write(FOLDER, files)
    return replace(told, result=3)


def _journal(files: BrokenFiles, told: Told) -> Told:
    journal.append(FOLDER, epoch(1, 5), files)
    return replace(told, epochs=(*told.epochs, 5))


def _record(files: BrokenFiles, told: Told) -> Told:
    run_record(2).write(FOLDER, files)
    return replace(told, record=2)


def _end(files: BrokenFiles, told: Told) -> Told:
    write_end(FOLDER, 1, "preempted", files)
    end = read_end(FOLDER, 1, files.disk)
    assert end is not None and end.ending == "preempted"
    return told


def _create(files: BrokenFiles, told: Told) -> Told:
    FOLDER.create(files)
    return told


def _recover(files: BrokenFiles, told: Told) -> Told:
    found = recover(FOLDER, None, files)
    assert found is not None and state_digest(found[0]) == digest(found[1].step)
    return told


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def begun(quiet: None) -> tuple[SimulatedDisk, Told]:
    """A run with a claim, three checkpoints and an epoch. In memory: what is attacked are the calls, thousands of them."""
    life = Life(lambda *_: None)
    life.begin()
    saver, _ = life.resume(life.claim())
    for step in (1, 2, 3):
        life.save(saver, 1, step, epoch_boundary=step == 2)
    life.note_epoch(1, 2)
    return life.disk, life.told


def _attack(begun: tuple[SimulatedDisk, Told], act: Act, number: int, at: int, sticky: bool) -> BrokenFiles:
    disk, told = begun[0].copy(), begun[1]
    files = BrokenFiles(number, at, sticky, disk=disk)
    try:
        told = act(files, told)
    except (OSError, CheckpointError) as error:
        assert files.failed, f"raised {error!r} without an error of the disk"
    verify(disk, told)
    # A claim whose folder's fsync fails is a claim: its number is protected by what is written under it.
    verify(disk.crash([DROPPED] * len(disk.fates()), random.Random(0)), replace(told, claims=begun[1].claims))
    files.mend()
    told = act(files, told)
    verify(disk, told)
    return files


@pytest.mark.parametrize("act", [_save, _claim, _recover, _result, _journal, _record, _end, _create])
def test_an_error_of_any_call_stops_cleanly_or_not_at_all(
    begun: tuple[SimulatedDisk, Told], act: Act, amount: Amount, report: Report
) -> None:
    numbers, errors, seen = ERRORS[: amount(2, 5, 5)], 0, set()
    for number in numbers:
        for sticky in (False, True):
            at, failed = 1, ["first"]
            while failed:
                files = _attack(begun, act, number, at, sticky)
                failed = files.failed
                errors, at = errors + bool(failed), at + 1
                seen |= set(failed)
    assert errors >= 10 * len(numbers) or act in (_create, _recover), f"only {errors} calls failed"
    words = act.__name__.strip("_")
    report(
        f"errno on the n-th call, once and sticky: {words}",
        f"{errors} errors of {', '.join(sorted(seen))}",
        "older state intact, next try works",
    )
