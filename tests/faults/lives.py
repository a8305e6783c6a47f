"""Lives of one run on a simulated disk, for the power-loss tests: each a story of attempts, with a crash at each of its moments.

What must hold is power_loss.py's business. One invariant: a life that nothing disturbs ends without a violation.
"""

import contextlib
import errno
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from power_loss import FOLDER, Life, Moment, Suite, expect

from seresnet import checkpoint_files
from seresnet.checkpoint_writer import Saver
from seresnet.errors import OwnedElsewhereError


def three_attempts(life: Life) -> None:
    """Saves, epochs and ends; then a kill, an attempt that gets to nothing, and the end."""
    life.begin()
    first = life.claim()
    saver, _ = life.resume(first)
    life.write_record(2)
    for step in range(1, 7):
        life.save(saver, 1, step, epoch_boundary=step % 3 == 0, best=step in (2, 5))
        if step % 3 == 0:
            life.note_epoch(1, step)
    second = life.claim()
    saver, _ = life.resume(second)
    life.save(saver, 2, 7, stop=True)
    life.resume(life.claim())
    last = life.claim()
    saver, _ = life.resume(last)
    life.save(saver, 4, 8)
    life.save(saver, 4, 9, epoch_boundary=True)
    life.note_epoch(4, 9)
    life.save(saver, 4, 9, epoch_boundary=True, final=True)
    life.finish(4, 9)


def preempted_often(life: Life) -> None:
    """Attempts of none to four saves: the bases of the past go, and what is needed stays."""
    life.begin()
    step = 0
    for count in (1, 4, 0, 1, 1, 2, 4, 0, 3):
        claim = life.claim()
        saver, found = life.resume(claim)
        expect(found == step, f"attempt {claim.generation} begins at {found}, not {step}")
        for _ in range(count):
            step += 1
            life.save(saver, claim.generation, step)
        names = checkpoint_files.list_checkpoints(FOLDER, life.disk)
        expect(len(names) <= 5, f"attempt {claim.generation} leaves {len(names)} files: {names}")


def back_to_an_epoch(life: Life) -> None:
    """A second attempt that goes back to an epoch's end, as after a divergence, and a third."""
    life.begin()
    claim = life.claim()
    saver, _ = life.resume(claim)
    for step in range(1, 7):
        life.save(saver, 1, step, epoch_boundary=step == 3)
    boundary = next(str(name) for name in checkpoint_files.list_checkpoints(FOLDER, life.disk) if name.step == 3)
    second = life.claim(back_to=boundary)
    saver, found = life.resume(second)
    expect(found == 3, f"back at {found}, not 3")
    for step in range(4, 9):
        # Two more epochs' ends, so that the base is none of those that are kept as such.
        life.save(saver, 2, step, epoch_boundary=step in (4, 5))
        is_there = boundary in map(str, checkpoint_files.list_checkpoints(FOLDER, life.disk))
        expect(is_there or step > 5, f"the base is gone after {step - 3} saves")
    _, found = life.resume(life.claim())
    expect(found == 8, f"third attempt at {found}")


def without_links(life: Life) -> None:
    """Claims are made in place, so that a crash may tear them."""
    life.disk.has_links = False
    life.begin()
    for generation in (1, 2, 3):
        saver, step = life.resume(life.claim())
        for more in (1, 2):
            life.save(saver, generation, step + more)


def with_errors(life: Life) -> None:
    """A full disk, a claim and a journal whose folder could not be synced: the next call makes good."""
    life.begin()
    saver, _ = life.resume(life.claim())
    for step in range(1, 5):
        life.save(saver, 1, step)
    life.told = replace(life.told, window=life.told.window[-1:])
    life.disk.errors = [("create", errno.ENOSPC)]
    expect(life.save(saver, 1, 5), f"the save of a full disk was not tried again: {saver.last_error!r}")
    life.disk.errors = [("sync_folder", errno.EIO)]
    try:
        life.note_epoch(1, 5)
    except OSError:
        life.note_epoch(1, 5)
    # The folder is synced for the claim, and again for the end that it infers.
    life.disk.errors = [("sync_folder", errno.EIO)] * 2
    saver, _ = life.resume(life.claim(is_synced=False))
    for step in range(6, 12):
        life.save(saver, 2, step)
    life.note_epoch(2, 11)


LIVES: tuple[Callable[[Life], None], ...] = (three_attempts, preempted_often, back_to_an_epoch, without_links, with_errors)


def zombies(moment: Moment) -> Iterator[None]:
    """A new owner comes in between two calls of the old one's save, or of its records: at each of its calls in turn."""
    for act in (_save, _records):
        at, came = 0, True
        while came:
            came = _intruded(moment, act, at)
            at += 1
            yield


def _save(life: Life, old: Saver) -> None:
    life.save(old, 1, 5)


def _records(life: Life, _: Saver) -> None:
    life.write_record(2)
    life.note_epoch(1, 4)
    life.finish(1, 4)


def _intruded(moment: Moment, act: Callable[[Life, Saver], None], at: int) -> bool:
    life = Life(lambda *_: None)
    life.begin()
    saver, _ = life.resume(life.claim())
    for step in range(1, 5):
        life.save(saver, 1, step)
    life.moment = moment  # all that went before was crashed at in other lives
    came = False

    def new_owner() -> None:
        nonlocal came
        came = True
        life.write_record(2)
        claim = life.claim()
        new, step = life.resume(claim)
        expect(life.save(new, claim.generation, step + 1, best=True), f"the new owner cannot save: {new.last_error!r}")
        life.save(new, claim.generation, step + 2)
        life.note_epoch(claim.generation, step + 2)
        life.finish(claim.generation, step + 2)

    life.intruder = (at, new_owner)
    with contextlib.suppress(OwnedElsewhereError):
        act(life, saver)
    life.intruder = None
    # What the old owner does later, without having noticed.
    life.save(saver, 1, 6)
    if came:
        _, step = life.resume(life.claim())
        expect(step >= 6, f"after both owners: step {step}")
    return came


def run_all(seed: int, cap: int, share: float = 1.0) -> Suite:
    """Every life with a crash at every moment, or a share of them. Raises power_loss.ViolationError."""
    suite = Suite(random.Random(seed), cap, share)
    for live in LIVES:
        live(Life(suite.crash_at))
    for _ in zombies(suite.crash_at):
        pass
    return suite
