"""A power loss at every moment of a rewind: the next attempt goes on from the boundary if there is a record, else from where it was."""

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Amount, Report
from power_loss import epoch
from simulated_disk import SimulatedDisk, subsets

from seresnet import divergence, journal, replay
from seresnet.attempts import Claim, Owner, newest_generation, publish_claim
from seresnet.checkpoint_files import Header, newest_trusted
from seresnet.checkpoint_writer import recover, write_checkpoint
from seresnet.divergence import NotFinite, Replays
from seresnet.errors import CheckpointError
from seresnet.replay import read_replays
from seresnet.run_folder import RunFolder, RunRecord
from seresnet.state import TrainState
from seresnet.world import World

FOLDER = RunFolder(path=Path("/runs/run"))
RECORD = RunRecord(run_id="r", slug="r", config={})
ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def _state(step: int) -> TrainState:
    return TrainState(tensors={"model/w": torch.full((3,), float(step))}, scalars={"step": step})


def _claim(disk: SimulatedDisk) -> Claim:
    """The next attempt's, as a start makes it."""
    base = newest_trusted(FOLDER, disk)
    claim = Claim(generation=newest_generation(FOLDER, disk) + 1, owner=Owner(host="here", pid=1), base=str(base) if base else None)
    assert publish_claim(FOLDER, claim, disk)
    return claim


def _before(steps: tuple[int, ...]) -> tuple[SimulatedDisk, Claim]:
    """A second attempt that has just claimed: the first saved these steps, and every 40th is an epoch's end."""
    disk = SimulatedDisk()
    disk.make_folder(FOLDER.path.parent)
    disk.sync_folder(Path("/"))
    FOLDER.create(disk)
    _claim(disk)
    for step in steps:
        write_checkpoint(FOLDER, _state(step), Header(generation=1, step=step, epoch_boundary=step % 40 == 0), disk)
        if step % 40 == 0:
            journal.append(FOLDER, epoch(1, step), disk)
    return disk, _claim(disk)


def _replays(claim: Claim, disk: SimulatedDisk) -> Replays:
    return Replays(FOLDER, RECORD, claim.generation, claim.base, ALONE, disk)


def _come_back(disk: SimulatedDisk, newest: int, boundary: int) -> None:
    """Start again: from the boundary where a record tells so, from the newest checkpoint where none does; never from anything else."""
    told = bool(read_replays(FOLDER, disk))
    claim = _claim(disk)
    _replays(claim, disk).catch_up(lambda: _state(0))
    found = recover(FOLDER, claim.base, disk)
    assert found is not None and found[0].step == (boundary if told else newest), f"recorded: {told}; goes on from {found and found[1]}"
    assert bool((found[0].tensors["model/w"] == found[0].step).all()), found
    epochs = [record.step for record in journal.read(FOLDER, disk)]
    assert not told or not epochs or max(epochs) <= boundary, f"epochs {epochs} are of the abandoned branch"


def _once_more(disk: SimulatedDisk, draw: random.Random, check: Callable[[SimulatedDisk], None]) -> Callable[[str], None]:
    left = [draw.randrange(25)]

    def crash(_: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            check(disk.crash([draw.randrange(count) for count in disk.fates()], draw))

    return crash


def _attack(steps: tuple[int, ...], first_bad: int, boundary: int, cap: int) -> int:
    """The number of states that were reached. AssertionError and CheckpointError for a state from which the run does not go on."""
    draw, counted = random.Random(7), [0]
    disk, claim = _before(steps)

    def crash(_: str) -> None:
        for fates in subsets(disk.fates(), cap, draw):
            after = disk.crash(fates, draw)
            counted[0] += 1
            if counted[0] % 10 == 0:  # and once more, on the way back
                after.before_call = _once_more(after, draw, lambda again: _come_back(again, steps[-1], boundary))
            _come_back(after, steps[-1], boundary)

    disk.before_call = crash
    begun = _replays(claim, disk).go_back(NotFinite("loss not finite", first_bad + 3, first_bad, ("h",)), lambda: _state(0))
    disk.before_call = None
    assert begun.from_step == boundary
    _come_back(disk, steps[-1], boundary)
    return counted[0]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("steps", "first_bad", "boundary"), [((40, 43, 80, 81), 80, 40), ((40, 80, 83, 86), 85, 80), ((3, 6), 5, 0)])
def test_a_rewind_survives_a_power_loss_at_every_moment(
    steps: tuple[int, ...], first_bad: int, boundary: int, amount: Amount, report: Report
) -> None:
    states = _attack(steps, first_bad, boundary, amount(8, 40, 400))
    assert states > 30, f"only {states} states"
    report("simulated power loss in a rewind", f"{states} states", "all go on from the boundary, or from where they were")


@pytest.mark.parametrize(("module", "name"), [(divergence, "write_checkpoint"), (replay, "write"), (journal, "drop_after")])
def test_a_rewind_that_leaves_a_step_out_is_caught(module: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, lambda *args: None)
    with pytest.raises((AssertionError, CheckpointError)):
        _attack((3, 6), 5, 0, 8)
        _attack((40, 43, 80, 81), 80, 40, 8)
