"""The suite of the power-loss tests: what the product says while it lives on a simulated disk, and what must be true after a crash.

It knows nothing of pytest, so that test_mutants.py can run it on a damaged copy of the product. One invariant: everything that is done
to the disk is done by the product's own code.
"""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from simulated_disk import SimulatedDisk

from seresnet import checkpoint_files, journal
from seresnet.attempts import Claim, newest_claim, newest_generation, read_claim, write_end
from seresnet.checkpoint_writer import Save, Saver, recover
from seresnet.claims import acquire, this_process
from seresnet.errors import CheckpointError
from seresnet.journal import EpochRecord
from seresnet.run_folder import RunFolder, RunRecord, TrainResult
from seresnet.state import TrainState, state_digest

FOLDER = RunFolder(path=Path("/simulated/sweep/run"))
_KEPT_STEPS = 3  # what the documentation promises, not what the code says


class ViolationError(Exception):
    """The product broke a promise."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the product has reported so far. A later crash must not make it untrue."""

    durable: tuple[tuple[int, int], ...] = ()  # (generation, step)
    window: tuple[tuple[int, int], ...] = ()  # those of them that retention must have left
    claims: tuple[tuple[int, str | None], ...] = ()  # (generation, base)
    floors: tuple[tuple[int, int], ...] = ()  # (generation, the step that it must not start below)
    epochs: tuple[int, ...] = ()  # steps of journal lines
    result: int | None = None  # its step
    record: int = 0  # which version of run.yaml

    def saved(self, generation: int, step: int) -> "Told":
        report = (generation, step)
        return replace(self, durable=(*self.durable, report), window=tuple(sorted({*self.window, report}))[-_KEPT_STEPS:])

    def floor(self, newest: int) -> int:
        """The step that an attempt must reach if this is the newest claim that survives."""
        # A claim that was lost with its folder's fsync: its owner's files count all the same.
        last = max((generation for generation, _ in self.durable if generation >= newest), default=newest)
        own = [step for generation, step in self.durable if generation == last]
        return max([*own, *(step for generation, step in self.floors if generation == last)], default=0)


Moment = Callable[[SimulatedDisk, Told], None]


class Life:
    """Attempts at one run on one disk; moment is called before each thing that is done to the disk."""

    def __init__(self, moment: Moment, disk: SimulatedDisk | None = None, told: Told | None = None, first_try: int = 1) -> None:
        self.disk, self.told, self.moment = disk or SimulatedDisk(), told or Told(), moment
        self._try = first_try
        self._savers: list[tuple[Saver, int]] = []
        self._watched: dict[int, int | None] = {}
        self.intruder: tuple[int, Callable[[], None]] | None = None  # after how many more calls, who comes in between
        self.disk.before_call = self._before_call

    def _before_call(self, _: str) -> None:
        self._listen()
        self.moment(self.disk, self.told)
        if self.intruder is not None:
            left, act = self.intruder
            self.intruder = (left - 1, act) if left > 0 else None
            if left == 0:
                act()

    def _listen(self) -> None:
        """Note what the savers report at this very moment, not only when they return."""
        for index, (saver, generation) in enumerate(self._savers):
            if saver.durable_step != self._watched[index]:
                self._watched[index] = saver.durable_step
                assert saver.durable_step is not None
                self.told = self.told.saved(generation, saver.durable_step)

    def begin(self) -> None:
        FOLDER.create(self.disk)
        self.write_record(1)

    def write_record(self, number: int) -> None:
        run_record(number).write(FOLDER, self.disk)
        self.told = replace(self.told, record=number)

    def claim(self, back_to: str | None = None, is_synced: bool = True) -> Claim:
        """A new attempt; back_to: the base it chooses itself."""
        used = max(
            [newest_generation(FOLDER, self.disk), *(name.generation for name in checkpoint_files.list_checkpoints(FOLDER, self.disk))]
        )
        floor = self.told.floor(newest_generation(FOLDER, self.disk)) if back_to is None else _step(back_to)
        self.told = replace(self.told, floors=(*self.told.floors, (used + 1, floor)))
        self._try += 1
        choose = None if back_to is None else lambda _: back_to
        claim = acquire(FOLDER, replace(_me(), task_try=self._try), base=choose, observe_s=0.0, files=self.disk)
        expect(claim.generation > used, f"generation {claim.generation} was given out again, {used} is in use")
        if is_synced:
            self.told = replace(self.told, claims=(*self.told.claims, (claim.generation, claim.base)))
        return claim

    def resume(self, claim: Claim) -> tuple[Saver, int]:
        """A saver for this claim, and the step that it goes on from."""
        found = recover(FOLDER, claim.base, self.disk)
        floor = self.told.floor(claim.generation)
        if found is None:
            expect(floor == 0, f"starts over although step {floor} was reported durable")
        else:
            expect(state_digest(found[0]) == digest(found[1].step), f"{found[1]} came back with other bits than were saved")
            expect(found[0].step == found[1].step, f"{found[1]} holds step {found[0].step}")
            expect(found[1].step >= floor, f"goes on from {found[1]}, step {floor} was reported durable")
        saver = Saver(FOLDER, claim.generation, found[1] if found else None, self.disk)
        self._savers.append((saver, claim.generation))
        self._watched[len(self._savers) - 1] = saver.durable_step
        saver.learn_older_files()
        return saver, found[1].step if found else 0

    def save(self, saver: Saver, generation: int, step: int, **flags: bool) -> bool:
        is_fenced = newest_generation(FOLDER, self.disk) > generation
        before = checkpoint_files.list_checkpoints(FOLDER, self.disk)
        is_durable = saver.save(Save(state=state(step), **flags))
        self._listen()
        if is_durable:
            saver.tidy()
        if is_fenced:
            after = checkpoint_files.list_checkpoints(FOLDER, self.disk)
            expect(
                not is_durable and before == after,
                f"generation {generation} saved step {step} or deleted although a newer one owns the run",
            )
        return is_durable

    def note_epoch(self, generation: int, step: int) -> None:
        journal.append(FOLDER, epoch(generation, step), self.disk)
        self.told = replace(self.told, epochs=(*self.told.epochs, step))

    def finish(self, generation: int, step: int) -> None:
        result(step).write(FOLDER, self.disk)
        self.told = replace(self.told, result=step)
        write_end(FOLDER, generation, "finished", self.disk)


@dataclass
class Suite:
    """Lives, crashes at every moment of them, and counts of what was checked."""

    draw: random.Random
    cap: int  # states a moment
    share: float = 1.0  # of the moments
    on: float = 0.3  # share of states in which the run goes on after it has recovered
    again: float = 0.05  # share of states that crash a second time while they recover or go on
    rot: float = 0.05  # share of states in which a file is damaged besides
    moments: int = 0
    states: int = 0
    second: int = 0
    damaged: int = 0
    _seen: set[int] = field(default_factory=set)

    def crash_at(self, disk: SimulatedDisk, told: Told) -> None:
        """Check every state that a power loss at this moment may leave."""
        from simulated_disk import subsets

        if self.draw.random() >= self.share:
            return
        self.moments += 1
        for fates in subsets(disk.fates(), self.cap, self.draw):
            after = disk.crash(fates, self.draw)
            key = hash((tuple(after.contents().items()), told))
            if key in self._seen:
                continue
            self._seen.add(key)
            self.states += 1
            if self.draw.random() < self.rot:
                self._check_damaged(after.copy(), told)
            self._check(after, told, self.draw.randrange(60) if self.draw.random() < self.again else None)

    def _check(self, disk: SimulatedDisk, told: Told, crash_again: int | None = None) -> None:
        verify(disk, told)
        left = crash_again

        def moment(disk: SimulatedDisk, told: Told) -> None:
            nonlocal left
            if left == 0:
                fates = [self.draw.randrange(count) for count in disk.fates()]
                self.second += 1
                self._check(disk.crash(fates, self.draw), told)
            left = None if left is None else left - 1

        life = Life(moment, disk, told, first_try=1000 if crash_again is not None else 2000)
        saver, generation, step = come_back(life)
        if crash_again is not None or self.draw.random() < self.on:
            go_on(life, saver, generation, step)

    def _check_damaged(self, disk: SimulatedDisk, told: Told) -> None:
        """One checkpoint rots, or takes another one's name: what is loaded is what was saved, or nothing is."""
        names = checkpoint_files.list_checkpoints(FOLDER, disk)
        if not names:
            return
        self.damaged += 1
        rotten = names[-1]
        content = disk.read(FOLDER.checkpoints / str(rotten))
        if self.draw.random() < 0.3:
            # The digest still agrees: only generation and step tell.
            disk.unlink(FOLDER.checkpoints / str(rotten))
            with disk.create(FOLDER.checkpoints / str(replace(rotten, step=rotten.step + 5))) as file:
                file.write(content)
        else:
            place = self.draw.choice([len(content) - 1 - self.draw.randrange(64), self.draw.randrange(len(content))])
            disk.damage(FOLDER.checkpoints / str(rotten), content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        life = Life(lambda *_: None, disk, replace(told, durable=(), floors=()), first_try=3000)
        try:
            FOLDER.create(disk)
            _, step = life.resume(life.claim())
        except CheckpointError:
            expect(len(names) == 1, f"gives up although only {rotten} is damaged")
            return
        expect(step not in (rotten.step + 5,), f"took {rotten} for another step")


def verify(disk: SimulatedDisk, told: Told) -> None:
    """What must be readable right after the crash. Raises ViolationError."""
    for generation, base in told.claims:
        claim = read_claim(FOLDER, generation, disk)
        expect(claim.owner is not None and claim.base == base, f"claim {generation} is lost or torn")
    trusted = {(name.generation, name.step) for name in checkpoint_files.trusted(FOLDER, disk)}
    # Not these very ones: a save that was not reported may have survived, or been found by a new owner, and counts like any other.
    expect(len(trusted) >= len(told.window), f"{told.window} were durable, only {sorted(trusted)} are left")
    present = {(name.generation, name.step) for name in checkpoint_files.list_checkpoints(FOLDER, disk)}
    expect(present == trusted, f"damaged under a checkpoint's name: {present - trusted}")
    found = TrainResult.read(FOLDER, disk)
    expect(found is None or found == result(found.step), "half a result")
    expect(told.result is None or (found is not None and found.step >= told.result), "the result is lost")
    records = journal.read(FOLDER, disk)
    expect(all(record == epoch(record.generation, record.step) for record in records), "a journal line that nobody wrote")
    lost = set(told.epochs) - {record.step for record in records}
    expect(not lost, f"the journal lost {lost}")
    texts = {run_yaml(number) for number in range(max(told.record, 1), 4)}
    is_there = FOLDER.run_yaml.name in disk.names(FOLDER.path)
    expect(disk.read(FOLDER.run_yaml) in texts if is_there else told.record == 0, "run.yaml is lost or half written")


def come_back(life: Life) -> tuple[Saver, int, int]:
    """A new attempt after the crash claims and recovers: its saver, its generation, and the step it goes on from."""
    FOLDER.create(life.disk)
    claim = life.claim()
    newest = newest_claim(FOLDER, life.disk)
    expect(newest is not None and newest.generation == claim.generation, f"{newest} is the newest claim after {claim}")
    saver, step = life.resume(claim)
    return saver, claim.generation, step


def go_on(life: Life, saver: Saver, generation: int, step: int) -> None:
    """Saves, finishes, and all of it holds."""
    life.write_record(max(life.told.record, 1))
    expect(life.save(saver, generation, step + 1, epoch_boundary=True), f"the save after the crash failed: {saver.last_error!r}")
    life.note_epoch(generation, step + 1)
    life.finish(generation, step + 1)
    verify(life.disk.copy(), life.told)


def expect(condition: bool, found: str) -> None:
    if not condition:
        raise ViolationError(found)


@functools.cache
def _me():  # type: ignore[no-untyped-def]  # of a class that test_mutants.py exchanges
    return this_process({})


@functools.cache
def state(step: int) -> TrainState:
    """A pure function of the step, so that what was recovered can be checked bit for bit."""
    values = torch.arange(48, dtype=torch.float32) * 0.37 + step
    return TrainState(tensors={"model/w": values, "momentum/w": -values}, scalars={"step": step})


@functools.cache
def digest(step: int) -> str:
    return state_digest(state(step))


def run_record(number: int) -> RunRecord:
    return RunRecord(run_id="0" * 12, slug="simulated", config={"train": {"epochs": 3}}, marks=tuple(f"mark {n}" for n in range(number)))


@functools.cache
def run_yaml(number: int) -> bytes:
    disk = SimulatedDisk()
    disk.make_folder(FOLDER.path)
    run_record(number).write(FOLDER, disk)
    return disk.read(FOLDER.run_yaml)


def epoch(generation: int, step: int) -> EpochRecord:
    return EpochRecord(
        epoch=step,
        step=step,
        generation=generation,
        lr=0.1,
        train_loss=1.0 / (step + 1),
        train_top1_pct=50.0,
        val_loss=None,
        val_top1_pct=None,
        test_loss=1.0,
        test_top1_pct=50.0 + generation,
        skipped_steps=0,
        seconds=1.0,
        images_per_s=None,
        time=1.0,
    )


@functools.cache
def result(step: int) -> TrainResult:
    return TrainResult(
        run_id="0" * 12,
        slug="simulated",
        epochs=step,
        step=step,
        parameters=1,
        state_digest=digest(step),
        data_digest="d",
        data_name="none",
        train_images=1,
        val_images=0,
        test_images=1,
        classes=["a"],
        train_loss=None,
        last_val_top1_pct=None,
        last_test_top1_pct=50.0,
        last_test_loss=None,
        val_chosen_epoch=None,
        val_chosen_val_top1_pct=None,
        val_chosen_test_top1_pct=None,
        best_on_test_epoch=1,
        best_on_test_top1_pct=50.0,
        confusion=[[1]],
        seconds=1.0,
        attempts=1,
        tier="T1",
        world_size=1,
        device="cpu",
        amp="off",
        code_digest="c",
        commit=None,
    )


def _step(name: str) -> int:
    parsed = checkpoint_files.CheckpointName.parse(name)
    assert parsed is not None
    return parsed.step
