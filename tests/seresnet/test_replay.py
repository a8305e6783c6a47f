"""The records of replays and the order in which a rewind changes files, on a run folder without training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_journal import record

from seresnet import journal, replay
from seresnet.attempts import Claim, Owner, publish_claim
from seresnet.checkpoint_files import Header, list_checkpoints
from seresnet.checkpoint_writer import recover, write_checkpoint
from seresnet.divergence import Diverged, NotFinite, Replays
from seresnet.errors import CheckpointError, OwnedElsewhereError
from seresnet.replay import Boundary, Replay, find_boundary, note, read_replays, rewind, write
from seresnet.run_folder import CheckpointName, RunFolder, RunRecord
from seresnet.state import TrainState
from seresnet.world import World

FAULT = NotFinite("loss not finite", step=47, first_bad=44, hosts=("gpu-17",))
SOME = Replay(number=1, what="loss not finite", step=47, from_step=40, hosts=("gpu-17",), suspects=())
ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def state(step: int) -> TrainState:
    return TrainState(tensors={"model/w": torch.full((4,), float(step))}, scalars={"step": step})


def claim(folder: RunFolder, generation: int, base: CheckpointName | None = None) -> Claim:
    """A claim of this generation, published."""
    made = Claim(generation=generation, owner=Owner(host="here", pid=1), base=base and str(base))
    assert publish_claim(folder, made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Attempt 1 saved steps 40 (an epoch's end), 43 and 46; epochs end at 20 and 40."""
    run = RunFolder(path=tmp_path / "run")
    run.create()
    claim(run, 1)
    for step in (40, 43, 46):
        write_checkpoint(run, state(step), Header(generation=1, step=step, epoch_boundary=step == 40))
    return run


def steps(folder: RunFolder) -> list[tuple[int, int]]:
    return [(name.generation, name.step) for name in list_checkpoints(folder)]


def replays_of(folder: RunFolder, generation: int, base: str | None = None, parent: object = None) -> Replays:
    made = RunRecord(run_id="r", slug="r", config={})
    if parent is not None:
        made = replace(made, parent=parent)  # type: ignore[arg-type]
    return Replays(folder, made, generation, base, ALONE)


def test_a_replay_starts_at_the_newest_boundary_whose_next_loss_was_finite(folder: RunFolder) -> None:
    mine = Claim(generation=1, owner=None, base=None)
    for first_bad, step in ((44, 40), (41, 40), (40, 0), (0, 0)):
        found = find_boundary(folder, mine, first_bad, is_fork=False)
        assert found is not None and found.step == step, f"the loss after {first_bad} batches is bad: from {found and found.step}"


def test_a_damaged_boundary_is_passed_over(folder: RunFolder) -> None:
    write_checkpoint(folder, state(20), Header(generation=1, step=20, epoch_boundary=True))
    next(folder.checkpoints.glob("*s000000040*")).write_bytes(b"junk")
    found = find_boundary(folder, Claim(generation=1, owner=None, base=None), 44, is_fork=False)
    assert found is not None and found.step == 20


def test_a_fork_never_goes_back_to_fresh_weights(folder: RunFolder) -> None:
    mine = Claim(generation=1, owner=None, base=None)
    found = find_boundary(folder, mine, 44, is_fork=True)
    assert found is not None and found.step == 40
    next(folder.checkpoints.glob("*s000000040*")).unlink()
    found = find_boundary(folder, mine, 44, is_fork=True)
    assert found is not None and found.step == 43, "the oldest that there is"
    assert find_boundary(folder, mine, 43, is_fork=True) is None
    with pytest.raises(Diverged, match="no checkpoint from before"):
        replays_of(folder, 1, parent="another run").go_back(NotFinite("loss not finite", 47, 43, ("h",)), lambda: state(0))


def test_going_back_leaves_the_boundary_as_the_newest_and_sets_the_rest_aside(folder: RunFolder) -> None:
    for epoch, step in ((1, 20), (2, 40), (3, 60)):
        journal.append(folder, record(epoch=epoch, step=step, generation=1))
    begun = replays_of(folder, 1).go_back(FAULT, lambda: state(0))
    assert steps(folder) == [(1, 40)] and begun.is_rewound and begun.from_step == 40
    assert sorted(path.name for path in folder.set_aside.iterdir()) == sorted(begun.suspects) and len(begun.suspects) == 2
    assert [known.step for known in journal.read(folder)] == [20, 40], "the epoch after it came from suspect weights"
    assert read_replays(folder) == [begun] and note(folder) == "loss not finite at step 47: replayed from step 40"


def test_a_later_attempt_makes_the_boundary_its_own_before_it_moves_its_base(folder: RunFolder) -> None:
    base = list_checkpoints(folder)[-1]
    claim(folder, 2, base)
    replays_of(folder, 2, str(base)).go_back(FAULT, lambda: state(0))
    found = recover(folder, str(base))
    assert found is not None and (found[1].generation, found[1].step) == (2, 40)
    assert bool((found[0].tensors["model/w"] == 40).all())


def test_without_a_boundary_it_starts_over_from_the_first_weights(folder: RunFolder) -> None:
    replays_of(folder, 1).go_back(NotFinite("loss not finite", 5, 2, ("h",)), lambda: state(0))
    assert steps(folder) == [(1, 0)]
    found = recover(folder, None)
    assert found is not None and found[0].step == 0


@pytest.mark.parametrize("place", ["save", "drop_after", "_set_aside", "second word"])
def test_a_rewind_that_was_killed_is_brought_to_its_end_by_the_next_attempt(
    folder: RunFolder, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def die(*args: object, **more: object) -> None:
        raise KilledError

    mine, boundary = (
        Claim(generation=1, owner=None, base=None),
        find_boundary(folder, Claim(generation=1, owner=None, base=None), 44, False),
    )
    assert boundary is not None
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        if place == "second word":
            words: list[int] = []
            patch.setattr(replay, "write", lambda *args: die() if words else (words.append(1), write(*args)))
        elif place != "save":
            patch.setattr(journal if place == "drop_after" else replay, place, die)
        foreign = Boundary(name=replace(boundary.name, generation=0), header=boundary.header) if boundary.name else boundary
        rewind(folder, mine, SOME, foreign if place == "save" else boundary, die)
    base = list_checkpoints(folder)[-1]  # what the next claim would name
    claim(folder, 2, base)
    later = replays_of(folder, 2, str(base))
    later.catch_up(lambda: state(0))
    found = recover(folder, str(base))
    assert found is not None and found[1].step == 40, f"killed at {place}: goes on from {found and found[1]}"
    assert later.running is not None and later.running.is_rewound and not later.is_passed_at(66) and later.is_passed_at(67)


def test_once_is_for_each_divergence_and_not_for_each_attempt(folder: RunFolder) -> None:
    replays_of(folder, 1).go_back(FAULT, lambda: state(0))
    claim(folder, 2, list_checkpoints(folder)[-1])
    later = replays_of(folder, 2, str(list_checkpoints(folder)[-1]))
    later.catch_up(lambda: state(0))
    with pytest.raises(Diverged, match="loss not finite at step 48, again in a replay from step 40"):
        later.go_back(NotFinite("loss not finite", 48, 45, ("gpu-3",)), lambda: state(0))
    assert [known.outcome for known in read_replays(folder)] == ["came_back"] and note(folder) is None


def test_another_fault_within_a_replay_is_called_by_its_name(folder: RunFolder) -> None:
    mine = replays_of(folder, 1)
    mine.go_back(FAULT, lambda: state(0))
    said = "^model/w not finite at step 51, in a replay from step 40 that was for loss not finite at step 47$"
    with pytest.raises(Diverged, match=said):
        mine.go_back(NotFinite("model/w not finite", 51, 49, ("gpu-17",)), lambda: state(0))
    assert [known.outcome for known in read_replays(folder)] == ["came_back"]


def test_what_does_not_come_back_names_the_node_and_three_of_them_are_enough(folder: RunFolder) -> None:
    mine = replays_of(folder, 1)
    for _ in range(replay.MOST_SUSPECT):
        mine.go_back(FAULT, lambda: state(0))
        mine.pass_by()
    assert str(note(folder)).startswith("replayed step 40-47 without it (loss not finite): node gpu-17 is suspect; ")
    with pytest.raises(Diverged, match=r"and 3 times before .* Hardware is suspect: gpu-17$"):
        mine.go_back(FAULT, lambda: state(0))


def test_a_fenced_attempt_writes_no_word_and_moves_nothing(folder: RunFolder) -> None:
    before = steps(folder)
    claim(folder, 2)
    with pytest.raises(OwnedElsewhereError):
        replays_of(folder, 1).go_back(FAULT, lambda: state(0))
    assert steps(folder) == before and read_replays(folder) == []


def test_an_attempt_that_is_fenced_within_a_rewind_leaves_the_newer_one_alone(folder: RunFolder) -> None:
    """It was stopped for long while it saved the boundary: by then another attempt has taken over and trained on."""
    files = [str(name) for name in list_checkpoints(folder)]
    mine, boundary = Claim(generation=1, owner=None, base=None), Boundary()

    def sleep(at: Boundary) -> None:
        claim(folder, 2, list_checkpoints(folder)[-1])
        journal.append(folder, record(epoch=3, step=60, generation=2))

    with pytest.raises(OwnedElsewhereError):
        rewind(folder, mine, SOME, boundary, sleep)
    assert [known.generation for known in journal.read(folder)] == [2], "an epoch of the newer attempt is gone"
    assert [str(name) for name in list_checkpoints(folder)] == files, "the newer attempt's base was moved away"


def test_epochs_of_a_newer_attempt_are_not_dropped(folder: RunFolder) -> None:
    for generation in (1, 2):
        journal.append(folder, record(epoch=3, step=60, generation=generation))
    journal.drop_after(folder, 40, 1)
    assert not folder.journal(1).read_bytes() and [known.generation for known in journal.read(folder)] == [2]


def test_a_fork_that_diverges_in_its_first_step_is_replayed_from_its_parents_state(folder: RunFolder) -> None:
    for name in list_checkpoints(folder):
        (folder.checkpoints / str(name)).unlink()
    base = str(write_checkpoint(folder, state(40), Header(generation=0, step=40, epoch_boundary=True)))
    begun = replays_of(folder, 1, base, parent="another run").go_back(NotFinite("loss not finite", 43, 40, ("h",)), lambda: state(0))
    assert begun.from_step == 40 and (1, 40) in steps(folder), begun


def test_a_forks_broken_rewind_never_ends_in_fresh_weights(folder: RunFolder) -> None:
    write(folder, 1, replace(SOME, from_step=30))
    with pytest.raises(CheckpointError, match="nothing of step 30 or before is left"):
        replays_of(folder, 1, parent="another run").catch_up(lambda: state(0))


@pytest.mark.parametrize("odd", [{"number": [1]}, {"number": "1"}, {"suspects": [["x"]]}, {"from_step": None}, {"is_rewound": 1}])
def test_a_record_of_odd_types_is_passed_over(folder: RunFolder, odd: dict[str, object]) -> None:
    write(folder, 1, SOME)
    entry = json.loads(folder.replay(1).read_text())["replays"][0]
    folder.replay(2).write_text(json.dumps({"schema": replay.SCHEMA, "replays": [{**entry, **odd}]}))
    assert read_replays(folder) == [SOME] and note(folder) is not None


def test_junk_and_records_of_another_version_are_passed_over(folder: RunFolder) -> None:
    write(folder, 1, SOME)
    folder.replay(2).write_text("{")
    folder.replay(3).write_text(json.dumps({"schema": 99, "replays": []}))
    folder.replay(4).write_text("[]")
    assert read_replays(folder) == [SOME]


def test_the_word_of_the_newest_attempt_counts(folder: RunFolder) -> None:
    write(folder, 1, SOME)
    claim(folder, 2)
    write(folder, 2, replace(SOME, outcome="gone"))
    assert [known.outcome for known in read_replays(folder)] == ["gone"]
