"""Which file is trusted, which is chosen and which may go. Files are made here byte by byte, without the writer and without torch."""

import hashlib
import json
from pathlib import Path

import pytest

from seresnet import attempts, checkpoint_files
from seresnet.attempts import Claim, Owner
from seresnet.checkpoint_files import Header, candidates, kept, needed_bases, newest_trusted, read_newest_trusted, trusted
from seresnet.errors import CheckpointError
from seresnet.run_folder import CheckpointName, RunFolder

NOBODY = Owner(host="elsewhere", pid=1)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    return folder


def put(folder: RunFolder, generation: int, step: int, schema: int = 1, **header: object) -> CheckpointName:
    """A file as the format says: length, JSON header with one metadata entry, data; named by the SHA-256 of its bytes."""
    entry = {"schema": schema, "header": {"generation": generation, "step": step, **header}, "scalars": {"step": step}}
    text = json.dumps({"__metadata__": {"seresnet": json.dumps(entry)}, "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}})
    payload = len(text).to_bytes(8, "little") + text.encode() + b"ab"
    name = f"g{generation:04d}-s{step:09d}-{hashlib.sha256(payload).hexdigest()[:16]}.safetensors"
    (folder.checkpoints / name).write_bytes(payload)
    parsed = CheckpointName.parse(name)
    assert parsed is not None
    return parsed


def damage(folder: RunFolder, name: CheckpointName) -> None:
    path = folder.checkpoints / str(name)
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)


def claim(folder: RunFolder, generation: int, base: CheckpointName | None = None) -> None:
    made = Claim(generation=generation, owner=NOBODY, base=None if base is None else str(base))
    assert attempts.publish_claim(folder, made)


def header(**flags: object) -> Header:
    return Header(generation=1, step=0, **flags)


def name(generation: int, step: int, digest: str = "0" * 16) -> CheckpointName:
    return CheckpointName(generation=generation, step=step, digest=digest)


def test_an_empty_folder_has_nothing_to_start_from(folder: RunFolder) -> None:
    assert newest_trusted(folder) is None
    assert newest_trusted(RunFolder(path=folder.path / "not-there")) is None


def test_generation_counts_before_step(folder: RunFolder) -> None:
    put(folder, 2, 900)
    newest = put(folder, 3, 10)
    put(folder, 3, 9)
    assert newest_trusted(folder) == newest


def test_generations_and_steps_sort_as_numbers(folder: RunFolder) -> None:
    put(folder, 9_999, 999_999_999)
    newest = put(folder, 10_000, 1_000_000_000)
    put(folder, 10_000, 999_999_999)
    assert newest_trusted(folder) == newest


def test_a_damaged_file_is_passed_over_and_set_aside_not_deleted(folder: RunFolder) -> None:
    good, bad = put(folder, 1, 10), put(folder, 1, 20)
    damage(folder, bad)
    content = (folder.checkpoints / str(bad)).read_bytes()
    assert newest_trusted(folder) == good
    assert (folder.set_aside / str(bad)).read_bytes() == content
    assert checkpoint_files.list_checkpoints(folder) == [good]


def test_a_second_damaged_file_of_the_same_name_does_not_replace_the_first(folder: RunFolder) -> None:
    put(folder, 1, 10)
    for _ in range(2):
        damage(folder, put(folder, 1, 20))
        newest_trusted(folder)
    assert len(list(folder.set_aside.iterdir())) == 2


def test_a_run_never_starts_over_in_silence(folder: RunFolder) -> None:
    names = [put(folder, 1, 10), put(folder, 1, 20)]
    for one in names:
        damage(folder, one)
    for _ in range(2):  # the second look must not find an emptied folder
        with pytest.raises(CheckpointError, match="no checkpoint can be trusted") as caught:
            newest_trusted(folder)
        assert all(str(one) in str(caught.value) for one in names)


def test_files_that_were_set_aside_still_forbid_starting_over(folder: RunFolder) -> None:
    good, bad = put(folder, 1, 10), put(folder, 1, 20)
    damage(folder, bad)
    newest_trusted(folder)
    (folder.checkpoints / str(good)).unlink()
    with pytest.raises(CheckpointError, match="was set aside before"):
        newest_trusted(folder)


def test_a_base_that_is_gone_forbids_starting_over(folder: RunFolder) -> None:
    base = put(folder, 1, 10)
    claim(folder, 2, base)
    (folder.checkpoints / str(base)).unlink()
    with pytest.raises(CheckpointError, match="is gone, and claim 2 started from it"):
        newest_trusted(folder)


def test_a_file_under_another_ones_name_is_not_trusted(folder: RunFolder) -> None:
    good, other = put(folder, 1, 10), put(folder, 1, 20)
    (folder.checkpoints / str(other)).rename(folder.checkpoints / str(name(1, 30, other.digest)))
    (folder.checkpoints / str(good)).rename(folder.checkpoints / str(name(2, 10, good.digest)))
    assert trusted(folder) == []
    last = put(folder, 1, 5)
    assert newest_trusted(folder) == last


def test_swapped_contents_are_not_trusted(folder: RunFolder) -> None:
    paths = [folder.checkpoints / str(put(folder, 1, step)) for step in (10, 20)]
    contents = [path.read_bytes() for path in paths]
    paths[0].write_bytes(contents[1])
    paths[1].write_bytes(contents[0])
    assert trusted(folder) == []


def test_trusted_changes_nothing(folder: RunFolder) -> None:
    good, bad = put(folder, 1, 10), put(folder, 1, 20)
    damage(folder, bad)
    before = sorted(folder.path.rglob("*"))
    assert trusted(folder) == [good]
    assert sorted(folder.path.rglob("*")) == before


def test_a_file_that_cannot_be_read_is_passed_over_but_not_set_aside(folder: RunFolder) -> None:
    good, unreadable = put(folder, 1, 10), name(1, 20)
    (folder.checkpoints / str(unreadable)).mkdir()
    assert newest_trusted(folder) == good
    assert (folder.checkpoints / str(unreadable)).exists()


def test_another_schema_is_refused_and_the_file_stays(folder: RunFolder) -> None:
    put(folder, 1, 10)
    later = put(folder, 1, 20, schema=2)
    with pytest.raises(CheckpointError, match="schema 2"):
        newest_trusted(folder)
    assert (folder.checkpoints / str(later)).exists()


def test_the_newest_claims_own_files_come_first(folder: RunFolder) -> None:
    base = put(folder, 1, 100)
    claim(folder, 2, base)
    own = put(folder, 2, 110)
    assert newest_trusted(folder) == own


def test_a_zombies_writes_after_the_claim_are_not_taken(folder: RunFolder) -> None:
    base = put(folder, 1, 100)
    claim(folder, 1)
    claim(folder, 2, base)
    put(folder, 1, 150)
    assert newest_trusted(folder) == base


def test_a_zombies_writes_are_not_taken_by_a_claim_that_started_from_nothing(folder: RunFolder) -> None:
    claim(folder, 2)
    put(folder, 1, 150)
    assert newest_trusted(folder) is None


def test_a_damaged_base_falls_back_to_older_files_before_zombies(folder: RunFolder) -> None:
    older, base = put(folder, 1, 90), put(folder, 1, 100)
    claim(folder, 2, base)
    zombie = put(folder, 1, 150)
    damage(folder, base)
    assert newest_trusted(folder) == older
    (folder.checkpoints / str(older)).unlink()
    assert newest_trusted(folder) == zombie


def test_the_base_comes_before_its_twin_of_the_same_step() -> None:
    twins = [name(1, 100, digest * 16) for digest in "a5f"]
    for base in twins:
        order = candidates(twins, Claim(generation=2, owner=NOBODY, base=str(base)))
        assert order[0] == base and sorted(order) == sorted(twins)


def test_a_torn_claim_lets_the_newest_file_count(folder: RunFolder) -> None:
    newest = put(folder, 1, 10)
    folder.claim(2).write_text('{"owner": {"ho')
    assert newest_trusted(folder) == newest


def test_an_explicit_claim_overrides_the_folders(folder: RunFolder) -> None:
    boundary = put(folder, 1, 50)
    put(folder, 1, 100)
    found = read_newest_trusted(folder, Claim(generation=2, owner=NOBODY, base=str(boundary)))
    assert found is not None and found.name == boundary


def test_retention_keeps_the_last_three_and_two_epoch_boundaries() -> None:
    headers = {name(1, step): header(epoch_boundary=step in (10, 20, 30)) for step in (5, 10, 20, 25, 30, 31, 32, 33)}
    assert sorted(one.step for one in kept(headers)) == [20, 30, 31, 32, 33]


def test_retention_keeps_the_final_and_the_best_that_kept_files_name() -> None:
    best, old_best = name(1, 4), name(1, 2)
    headers = {old_best: header(best=True), best: header(best=True), name(1, 6): header(final=True)}
    headers |= {name(2, step): header(best_so_far=str(best)) for step in range(10, 15)}
    assert sorted(one.step for one in kept(headers)) == [4, 6, 12, 13, 14]


def test_retention_goes_by_the_best_of_the_branch_that_is_trained_on() -> None:
    # Generation 1 reached a better model at step 90; generation 2 fell back to step 50, where the best was step 40.
    abandoned, best = name(1, 90), name(1, 40)
    headers = {best: header(best=True), abandoned: header(best=True, best_so_far=str(best))}
    headers |= {name(2, step): header(best_so_far=str(best)) for step in range(51, 55)}
    assert best in kept(headers) and abandoned not in kept(headers)


def test_retention_spares_the_base_and_newer_generations_and_what_it_cannot_verify(folder: RunFolder) -> None:
    base = put(folder, 1, 1)
    claim(folder, 2, base)
    old = [put(folder, 1, 2), put(folder, 1, 3)]
    damaged = put(folder, 1, 4)
    damage(folder, damaged)
    last = [put(folder, 1, 9), *(put(folder, 2, step) for step in (10, 11))]
    newer = put(folder, 3, 1)
    assert checkpoint_files.delete_superseded(folder, 2, {}) == old
    assert checkpoint_files.list_checkpoints(folder) == [base, damaged, *last, newer]


def test_a_base_goes_once_its_claim_has_three_verified_steps_of_its_own(folder: RunFolder) -> None:
    base = put(folder, 1, 1)
    claim(folder, 2, base)
    own = [put(folder, 2, 10), put(folder, 2, 10, best=True), put(folder, 2, 11), put(folder, 2, 12)]
    damage(folder, own[-1])
    assert checkpoint_files.delete_superseded(folder, 2, {}) == [], "two steps verify, with three files; the third is damaged"
    put(folder, 2, 13)
    assert checkpoint_files.delete_superseded(folder, 2, {}) == [base]


def test_the_bases_of_earlier_claims_go_and_a_torn_claim_is_taken_for_none() -> None:
    claims = [Claim(generation=number, owner=NOBODY, base=f"base of {number}") for number in (1, 2, 3)]
    assert needed_bases(claims, []) == {"base of 3"}
    torn = Claim(generation=4, owner=None, base=None)
    assert needed_bases([*claims, torn], []) == {"base of 3"}
    assert needed_bases(claims, [name(3, step) for step in (1, 2, 3)]) == set()
    assert needed_bases([], []) == set()


def test_retention_keeps_the_best_that_the_next_header_will_name(folder: RunFolder) -> None:
    best = put(folder, 1, 1, best=True)
    for step in (2, 3, 4):
        put(folder, 1, step)  # by a writer that could not read older files at first
    assert checkpoint_files.delete_superseded(folder, 1, {}, best=str(best)) == []
    assert checkpoint_files.delete_superseded(folder, 1, {}) == [best]


def test_a_fenced_owner_deletes_nothing(folder: RunFolder) -> None:
    names = [put(folder, 1, step) for step in range(6)]
    claim(folder, 1)
    claim(folder, 2, names[-1])
    assert checkpoint_files.delete_superseded(folder, 1, {}) == []
    assert checkpoint_files.list_checkpoints(folder) == names


def test_leftover_temps_of_dead_writers_go_and_those_of_newer_ones_stay(folder: RunFolder) -> None:
    dead, own, newer = (folder.checkpoints / f".{name(g, 7)}.0a1b2c.tmp" for g in (1, 2, 3))
    stranger = folder.checkpoints / ".notes.tmp"
    for path in (dead, own, newer, stranger):
        path.write_bytes(b"half")
    checkpoint_files.delete_leftover_temps(folder, 2)
    assert [path.exists() for path in (dead, own, newer, stranger)] == [False, False, True, True]


def test_a_step_of_two_generations_counts_once() -> None:
    """After a resume from step 117 whose stop saved it again (seen: of three steps only two stayed)."""
    headers = {name(1, step): header() for step in (78, 97, 117)} | {name(2, 117): header(), name(2, 120): header()}
    assert sorted((one.generation, one.step) for one in kept(headers)) == [(1, 97), (2, 117), (2, 120)]
