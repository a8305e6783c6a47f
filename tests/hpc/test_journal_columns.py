"""The journal as columns equals the journal as records, which seresnet.journal.read gives, whatever the files look like."""

import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_sweep import record

from hpc import journal_columns
from hpc.journal_columns import COLUMNS, Earlier
from seresnet import journal
from seresnet.run_folder import RunFolder


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short journals are parsed as long ones are."""
    monkeypatch.setattr(journal_columns, "_MANY", 1)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(path=tmp_path / "run")
    made.create()
    return made


def write(folder: RunFolder, generation: int, epochs: range) -> Path:
    for epoch in epochs:
        journal.append(folder, record("se", generation, epoch, 50, generation))
    return folder.journal(generation)


def as_records(folder: RunFolder) -> tuple[np.ndarray, dict[str, int]]:
    """The reference: one record at a time."""
    records, bad = journal.read_noting(folder)
    rows = [[getattr(each, key) for key in COLUMNS] for each in records]
    return np.array(rows, dtype=np.float64).reshape(-1, len(COLUMNS)).T, bad


def assert_equal(folder: RunFolder, earlier: Earlier | None = None) -> None:
    found = journal_columns.read(folder, earlier)
    values, bad = as_records(folder)
    np.testing.assert_array_equal(found.values, values)
    assert found.bad == bad


def test_later_generations_and_later_lines_win_as_they_do_among_records(folder: RunFolder) -> None:
    write(folder, 1, range(1, 9))
    write(folder, 3, range(5, 12))
    write(folder, 2, range(4, 10))
    write(folder, 2, range(8, 9))
    found = journal_columns.read(folder)
    assert found.values[COLUMNS.index("generation")].tolist() == [1, 1, 1, 2, *[3] * 7]
    assert_equal(folder)


def test_a_higher_generation_wins_also_from_an_earlier_file(folder: RunFolder) -> None:
    write(folder, 2, range(1, 6))
    write(folder, 9, range(3, 5)).rename(folder.journal(1))
    assert journal_columns.read(folder).values[COLUMNS.index("generation")].tolist() == [2, 2, 9, 9, 2]
    assert_equal(folder)


@pytest.mark.parametrize(
    "line",
    [
        b'{"epoch": 3}',
        b"[1, 2]",
        b"null",
        b"{" * 5000,
        b'{"epoch": 1}, {"epoch": 2}',
        b"\xff\xfe",
        b"  \r",
    ],
)
def test_a_foreign_line_is_counted_and_costs_no_other(folder: RunFolder, line: bytes) -> None:
    path = write(folder, 1, range(1, 6))
    path.write_bytes(path.read_bytes() + line + b"\n")
    write(folder, 1, range(6, 8))
    assert_equal(folder)
    assert journal_columns.read(folder).values.shape[1] == 7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", 3.0),
        ("epoch", True),
        ("epoch", 10**30),
        ("lr", 10**400),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", None),
        ("lr", "0.1"),
        ("val_loss", None),
        ("val_loss", 1),
        ("lr", 1e-300),
    ],
)
def test_a_value_of_another_kind_is_judged_as_among_records(folder: RunFolder, key: str, value: object) -> None:
    """With a checksum that fits, so that only the value is in question."""
    path = write(folder, 1, range(1, 4))
    fields = json.loads(path.read_text().splitlines()[1])
    del fields[journal.SUM]
    fields[key] = value
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    fields[journal.SUM] = zlib.crc32(text.encode())
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps(fields), lines[2]]) + "\n")
    assert_equal(folder)


def test_lines_without_checksum_or_in_another_order_are_read(folder: RunFolder) -> None:
    path = write(folder, 1, range(1, 5))
    values = [json.loads(line) for line in path.read_text().splitlines()]
    bare = {key: value for key, value in values[0].items() if key != journal.SUM}
    turned = dict(reversed(values[1].items()))
    path.write_text("\n".join(map(json.dumps, (bare, turned, *values[2:]))) + "\n")
    assert_equal(folder)
    assert journal_columns.read(folder).values.shape[1] == 4


def test_random_flips_and_cuts_are_judged_as_among_records(folder: RunFolder) -> None:
    path = write(folder, 1, range(1, 13))
    whole = path.read_bytes()
    for trial in range(150):
        draw = random.Random(trial)
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(data[: draw.choice([len(data), draw.randrange(len(data))])]))
        assert_equal(folder)


def earlier_of(folder: RunFolder) -> Earlier:
    found = journal_columns.read(folder)
    return Earlier(files=found.files, bad=found.bad, values=lambda: found.values)


def test_of_a_journal_that_grew_only_the_new_lines_are_parsed(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, 1, range(1, 20))
    path = write(folder, 2, range(15, 30))
    path.write_bytes(path.read_bytes() + b"torn\n")
    earlier = earlier_of(folder)
    write(folder, 2, range(29, 34))
    parsed: list[int] = []
    whole = journal_columns.parse
    monkeypatch.setattr(journal_columns, "parse", lambda data: (parsed.append(data.count(b"\n")), whole(data))[1])
    assert_equal(folder, earlier)
    assert parsed == [0, 5]


def append_to_older(folder: RunFolder) -> None:
    write(folder, 1, range(20, 22))


def edit(folder: RunFolder) -> None:
    path = folder.journal(2)
    path.write_bytes(path.read_bytes().replace(b'"seconds": 4.5', b'"seconds": 4.6', 1))
    write(folder, 2, range(29, 31))


def add_file(folder: RunFolder) -> None:
    write(folder, 3, range(28, 35))


def remove_file(folder: RunFolder) -> None:
    folder.journal(1).unlink()


@pytest.mark.parametrize("change", [append_to_older, edit, add_file, remove_file])
def test_any_other_change_is_read_anew(folder: RunFolder, change: Callable[[RunFolder], None]) -> None:
    write(folder, 1, range(1, 20))
    write(folder, 2, range(15, 29))
    earlier = earlier_of(folder)
    change(folder)
    assert_equal(folder, earlier)


def test_a_torn_last_line_that_was_completed_is_read_anew(folder: RunFolder) -> None:
    path = write(folder, 1, range(1, 5))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    earlier = earlier_of(folder)
    path.write_bytes(whole)
    assert_equal(folder, earlier)


def test_what_was_known_but_is_lost_is_read_anew(folder: RunFolder) -> None:
    write(folder, 1, range(1, 5))
    known = earlier_of(folder)
    assert_equal(folder, Earlier(files=known.files, bad=known.bad, values=lambda: None))
