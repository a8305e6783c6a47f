"""Decisions of the epoch loop that need no training: when saves are offered, what a full disk does to the journal."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_engine import config, engine
from test_journal import record

from seresnet import journal
from seresnet.engine import EpochSums
from seresnet.errors import CheckpointError
from seresnet.recipe import Trainer, jitter
from seresnet.run_folder import RunFolder
from seresnet.signals import StopFlag
from seresnet.state import state_digest
from seresnet.watchdog import Watchdog


class LateAgreement:
    """What several ranks see: the answer to a call is what was offered at the call before."""

    def __init__(self) -> None:
        self.offered = (False, False, False)

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        answer, self.offered = self.offered, flags
        return answer


def trainer(**fields: object) -> Trainer:
    """A trainer with just these fields: no engine, no folder, no writer."""
    bare = object.__new__(Trainer)
    vars(bare).update(fields)
    return bare


def test_a_save_that_is_offered_is_made_once() -> None:
    engine = SimpleNamespace(
        world=SimpleNamespace(is_main=True), losses=SimpleNamespace(has_diverged=False), step=0, epoch_sums=lambda: None
    )
    attempt = SimpleNamespace(watchdog=Watchdog())
    loop = trainer(
        attempt=attempt, engine=engine, agreement=LateAgreement(), stop=StopFlag(), save_offered=False, last_save=0.0, save_interval_s=0.0,
        writer=None, replays=SimpleNamespace(is_passed_at=lambda step: False),
    )  # fmt: skip
    saved: list[int] = []

    def save(sums: object) -> None:
        saved.append(engine.step)
        loop.save_offered = False

    loop._save = save  # type: ignore[method-assign, assignment]
    for engine.step in range(1, 8):
        loop._between_steps()
    assert saved == [2, 4, 6], f"saves at {saved}: each is offered at one step and made at the next"


def test_a_save_that_was_refused_for_its_numbers_is_a_divergence_and_a_full_disk_is_none() -> None:
    for error, refused in ((None, False), (OSError(errno.ENOSPC, "full"), False), (CheckpointError("model/bn is not finite"), True)):
        assert trainer(writer=SimpleNamespace(last_error=error))._is_save_refused() is refused, error


def test_an_epoch_that_cannot_be_written_is_written_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(path=tmp_path)
    folder.create()
    loop = trainer(attempt=SimpleNamespace(folder=folder, generation=1), unwritten=[record(epoch=1, step=10)])
    append = journal.append

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal, "append", full)
    loop._write_down_epochs()
    assert len(loop.unwritten) == 1
    monkeypatch.setattr(journal, "append", append)
    loop.unwritten.append(record(epoch=2, step=20))
    loop._write_down_epochs()
    assert loop.unwritten == [] and [entry.epoch for entry in journal.read(folder)] == [1, 2]


def test_runs_save_at_other_moments_but_near_their_interval() -> None:
    factors = [jitter(f"{number:04x}00000000") for number in range(0, 0x10000, 0x1111)]
    assert min(factors) == 0.9 and max(factors) == pytest.approx(1.1) and len(set(factors)) == 16


def test_first_weights_for_a_replay_need_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiling = engine(config()), config(compile=True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    loop = trainer(attempt=SimpleNamespace(config=compiling), arrays=SimpleNamespace(classes=range(5)), engine=plain)
    assert state_digest(loop._initial_state()) == state_digest(plain.state(EpochSums.nothing()))
