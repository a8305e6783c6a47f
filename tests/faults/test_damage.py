"""Checkpoints whose bytes or names are not what was written: never loaded, set aside, and the previous good one is chosen."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Amount, Report
from power_loss import digest, state

from seresnet.checkpoint_files import Header
from seresnet.checkpoint_writer import recover, write_checkpoint
from seresnet.errors import CheckpointError
from seresnet.run_folder import CheckpointName, RunFolder
from seresnet.state import state_digest

Contents = dict[CheckpointName, bytes]
Damage = Callable[[Contents, CheckpointName, random.Random], Contents]


def _flip(good: Contents, name: CheckpointName, draw: random.Random) -> Contents:
    changed = bytearray(good[name])
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return {**good, name: bytes(changed)}


def _truncate(good: Contents, name: CheckpointName, draw: random.Random) -> Contents:
    return {**good, name: good[name][: draw.randrange(len(good[name]))]}


def _zero_fill(good: Contents, name: CheckpointName, draw: random.Random) -> Contents:
    payload = good[name]
    start = draw.randrange(len(payload) - 1)
    end = draw.randrange(start + 1, len(payload)) + 1
    changed = payload[:start] + bytes(end - start) + payload[end:]
    return {**good, name: changed if changed != payload else bytes(len(payload))}


def _append(good: Contents, name: CheckpointName, draw: random.Random) -> Contents:
    return {**good, name: good[name] + draw.randbytes(draw.randrange(1, 100))}


def _take_content(good: Contents, name: CheckpointName, draw: random.Random) -> Contents:
    other = draw.choice([other for other in good if other != name])
    return {**good, name: good[other]}


def _take_name(good: Contents, name: CheckpointName, draw: random.Random) -> Contents:
    """The file of a good step under a name of a later step or generation: its digest is right."""
    later = {"step": name.step + draw.randrange(1, 1000)} if draw.random() < 0.5 else {"generation": name.generation + draw.randrange(1, 9)}
    return {**{known: payload for known, payload in good.items() if known != name}, replace(name, **later): good[name]}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    return folder


def _put(folder: RunFolder, contents: Contents) -> None:
    shutil.rmtree(folder.checkpoints)
    folder.checkpoints.mkdir()
    for name, payload in contents.items():
        (folder.checkpoints / str(name)).write_bytes(payload)


def _recovered(folder: RunFolder) -> int:
    found = recover(folder, None)
    assert found is not None
    assert state_digest(found[0]) == digest(found[1].step), f"{found[1]}: other bits than were saved"
    return found[1].step


@pytest.mark.parametrize("damage", [_flip, _truncate, _zero_fill, _append, _take_content, _take_name])
def test_a_damaged_file_is_never_loaded(
    folder: RunFolder, damage: Damage, amount: Amount, report: Report, request: pytest.FixtureRequest
) -> None:
    draw, trials = random.Random(f"{damage.__name__} {request.config.getoption('--seed')}"), amount(50, 150, 500)
    names = [write_checkpoint(folder, state(step), Header(generation=1 + step // 3, step=step)) for step in (1, 2, 3)]
    good = {name: (folder.checkpoints / str(name)).read_bytes() for name in names}
    for trial in range(trials):
        contents = damage(good, names[-1], draw)
        _put(folder, contents)
        assert _recovered(folder) == 2, f"trial {trial}"
        bad = contents.keys() - set(names[:-1])
        assert {path.name: path.read_bytes() for path in folder.set_aside.iterdir()} == {str(name): contents[name] for name in bad}
        for name in names[:-1]:
            contents = {known: payload for known, payload in contents.items() if known != name} | {
                known: payload for known, payload in damage(good, name, draw).items() if known not in names or known == name
            }
        _put(folder, contents)
        with pytest.raises(CheckpointError, match="no checkpoint can be trusted"):
            recover(folder, None)
    words = damage.__name__.replace("_", " ").strip()
    report(f"damaged checkpoints: {words}", f"{trials} + {trials} with all damaged", "previous good one chosen; all bad: an error")


def test_two_files_that_exchanged_their_names_are_both_refused(folder: RunFolder, amount: Amount, report: Report) -> None:
    draw, trials = random.Random(7), amount(50, 150, 500)
    names = [write_checkpoint(folder, state(step), Header(generation=1 + step % 2, step=step)) for step in range(1, 7)]
    good = {name: (folder.checkpoints / str(name)).read_bytes() for name in names}
    newest_first = sorted(names, reverse=True)
    for trial in range(trials):
        first, second = draw.sample(names, 2)
        if draw.random() < 0.5:
            contents = {**good, first: good[second], second: good[first]}
        else:  # step and generation change places, and the digests stay with their bytes
            swapped = {first: replace(second, digest=first.digest), second: replace(first, digest=second.digest)}
            contents = {swapped.get(name, name): payload for name, payload in good.items()}
        _put(folder, contents)
        chosen = next(name for name in newest_first if name not in (first, second))
        found = recover(folder, None)
        assert found is not None and found[1] == chosen, f"trial {trial}: {first} and {second} changed places"
        assert state_digest(found[0]) == digest(chosen.step)
    report("damaged checkpoints: swapped names", f"{trials}", "both refused, the newest other one chosen")
