"""A power loss at every moment of a run's life: what was reported stays, and what was not does no harm."""

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Amount, Report
from lives import run_all
from simulated_disk import DROPPED, GARBLED, KEPT, TORN, SimulatedDisk

ATTACK = "simulated power loss over save, retention, claim, result"


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_what_was_reported_survives_a_power_loss_at_every_moment(
    quiet: None, amount: Amount, report: Report, request: pytest.FixtureRequest
) -> None:
    suite = run_all(request.config.getoption("--seed"), cap=amount(3, 15, 1000), share=amount(30, 100, 100) / 100)
    found = f"all recovered and verified; {suite.second} crashed again on the way, {suite.damaged} damaged besides"
    report(ATTACK, f"{suite.states} states of {suite.moments} moments", found)
    assert suite.states >= amount(500, 5000, 10_000), f"only {suite.states} states were reached"


@pytest.mark.parametrize(("fate", "content"), [(KEPT, b"ab"), (DROPPED, b""), (GARBLED, None), (TORN, None)])
def test_the_simulated_disk_loses_what_was_not_synced(fate: int, content: bytes | None) -> None:
    disk = SimulatedDisk()
    disk.make_folder(Path("/d"))
    disk.sync_folder(Path("/"))
    with disk.create(Path("/d/new")) as file:
        file.write(b"ab")
        assert disk.read(Path("/d/new")) == b"", "what is not flushed is nowhere"
    found = disk.crash([KEPT, fate], random.Random(1)).read(Path("/d/new"))
    assert found == content if content is not None else found != b"ab"
    assert disk.crash([DROPPED, KEPT], random.Random(1)).names(Path("/d")) == [], "a name that was not synced is gone with its file"


def test_a_name_can_survive_without_its_content_and_the_other_way_round() -> None:
    disk = SimulatedDisk()
    with disk.create(Path("/old")) as file:
        file.write(b"ab")
        file.flush()
        disk.sync(file)
    disk.sync_folder(Path("/"))
    disk.rename(Path("/old"), Path("/new"))
    assert [disk.crash([fate], random.Random(1)).names(Path("/")) for fate in (KEPT, DROPPED)] == [["new"], ["old"]]
    with disk.create(Path("/empty")) as file:
        file.write(b"ab")
    assert disk.crash([KEPT, KEPT, DROPPED], random.Random(1)).contents() == {"/new": b"ab", "/empty": b""}
