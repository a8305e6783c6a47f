"""The journal against plain dictionaries: what is appended is read back, torn lines cost themselves, the newest attempt wins."""

import json
import random
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from seresnet import journal
from seresnet.attempts import read_claim
from seresnet.journal import EpochRecord
from seresnet.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    return folder


def record(epoch: int, generation: int = 1, **changes: object) -> EpochRecord:
    values = EpochRecord(
        epoch=epoch,
        step=10 * epoch,
        generation=generation,
        lr=0.1,
        train_loss=1.0 / 3.0,
        train_top1_pct=50.0,
        val_loss=None,
        val_top1_pct=None,
        test_loss=2.5,
        test_top1_pct=41.0,
        skipped_steps=0,
        seconds=1.5,
        images_per_s=1000.0,
        time=1.0e9,
    )
    return replace(values, **changes)


def test_what_is_appended_is_read_back_in_order_of_steps(folder: RunFolder) -> None:
    for epoch in (1, 3, 2):
        journal.append(folder, record(epoch))
    assert journal.read(folder) == [record(1), record(2), record(3)]


def test_a_line_is_one_json_object_with_every_field(folder: RunFolder) -> None:
    journal.append(folder, record(1, generation=12))
    text = (folder.path / "metrics" / "g0012.jsonl").read_text()
    values = asdict(record(1, generation=12))
    plain = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert text.endswith("\n") and json.loads(text) == {**values, "crc32": zlib.crc32(plain.encode())}


NEW = ("train_seconds", "eval_seconds", "data_wait_s", "checkpoint_stall_s", "tflops", "matmul_share_pct", "memory_peak_mib")


def test_a_line_of_an_older_version_lacks_the_cost_of_its_epoch_and_is_read() -> None:
    known = {name: value for name, value in asdict(record(1)).items() if name not in NEW}
    assert journal.parse(json.dumps(known).encode()) == record(1), "None stands for what was not measured"
    for name in known:
        less = {key: value for key, value in known.items() if key != name}
        assert journal.parse(json.dumps(less).encode()) is None, f"{name} was always there"


@pytest.mark.parametrize("name", NEW)
def test_the_cost_of_an_epoch_is_read_back_and_checked(folder: RunFolder, name: str) -> None:
    journal.append(folder, record(1, **{name: 2.5}))
    assert [getattr(entry, name) for entry in journal.read(folder)] == [2.5]
    for bad in ("fast", True, [1.0], float("nan")):
        assert journal.parse(json.dumps({**asdict(record(1)), name: bad}).encode()) is None, bad


def test_an_empty_or_missing_journal_has_no_epochs(folder: RunFolder, tmp_path: Path) -> None:
    assert journal.read(folder) == [] == journal.read(RunFolder(path=tmp_path / "nowhere"))


def test_of_one_step_the_highest_generation_wins_then_the_last_line(folder: RunFolder) -> None:
    entries = [
        record(e, g, test_top1_pct=t) for e, g, t in ((1, 2, 1.0), (1, 10, 2.0), (1, 10, 3.0), (1, 9, 4.0), (2, 9, 5.0), (3, 2, 6.0))
    ]
    random.Random(1).shuffle(entries)
    expected: dict[int, tuple[int, float]] = {}
    for entry in entries:
        journal.append(folder, entry)
        if entry.generation >= expected.get(entry.epoch, (0, 0.0))[0]:
            expected[entry.epoch] = (entry.generation, entry.test_top1_pct)
    assert {r.epoch: (r.generation, r.test_top1_pct) for r in journal.read(folder)} == expected


def test_generations_above_9999_sort_as_numbers(folder: RunFolder) -> None:
    for generation in (9_999, 10_000):
        journal.append(folder, record(1, generation))
    assert [entry.generation for entry in journal.read(folder)] == [10_000]


def test_a_line_torn_anywhere_loses_itself_and_no_other(folder: RunFolder) -> None:
    path = folder.journal(1)
    journal.append(folder, record(1))
    whole = path.read_bytes()
    for length in range(1, len(whole) - 1):
        path.write_bytes(whole + whole[:length])
        journal.append(folder, record(2))
        assert journal.read(folder) == [record(1), record(2)], f"torn after {length} bytes"


@pytest.mark.parametrize("junk", [b"", b"[]", b"17", b'{"epoch": 1}', b"\xff\xfe\x00", b"null"])
def test_lines_of_somebody_elses_making_are_passed_over(folder: RunFolder, junk: bytes) -> None:
    folder.journal(1).write_bytes(junk + b"\n")
    (folder.metrics / "gx.jsonl").write_bytes(junk)
    journal.append(folder, record(2))
    assert journal.read(folder) == [record(2)]


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"step": [1]},
        {"step": True},
        {"epoch": 1.5},
        {"test_top1_pct": "91"},
        {"seconds": None},
        {"lr": float("inf")},
        {"seconds": 10**400},
        {"step": 2**63},
    ],
)
def test_a_value_of_another_type_costs_its_line(folder: RunFolder, change: dict[str, object]) -> None:
    folder.journal(1).write_text(json.dumps({**asdict(record(1)), **change}) + "\n")
    journal.append(folder, record(2))
    assert journal.read(folder) == [record(2)]


def test_keys_of_a_later_version_do_no_harm(folder: RunFolder) -> None:
    folder.journal(1).write_text(json.dumps({**asdict(record(1)), "new": 1}) + "\n")
    assert journal.read(folder) == [record(1)]


def test_a_value_that_json_does_not_have_is_refused_and_writes_nothing(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="JSON"):
        journal.append(folder, record(1, train_loss=float("nan")))
    assert not folder.journal(1).exists()


@pytest.mark.parametrize("trial", range(30))
def test_the_last_records_are_those_at_the_end_of_all_records(folder: RunFolder, trial: int) -> None:
    """Attempts that overlap, doubled lines, torn lines, and lines of another attempt's number; each file in the order of its steps."""
    draw = random.Random(trial)
    for generation in range(1, draw.randrange(2, 5)):
        first = draw.randrange(1, 60)
        for epoch in range(first, first + draw.randrange(1, 80)):
            writer = draw.choice((generation, generation, generation, draw.randrange(1, 5)))
            for _ in range(draw.choice((1, 1, 1, 2))):
                with open(folder.journal(generation), "a") as file:
                    file.write(
                        json.dumps(asdict(record(epoch, writer, seconds=draw.random()))) + draw.choice(("\n", "\n", "\r\n", "\n{torn\n"))
                    )
    for count in (1, 2, 10, 500):
        assert journal.read_last(folder, count) == journal.read(folder)[-count:], count


def test_the_last_records_cost_the_end_of_a_file_only(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.journal(1).write_text("".join(json.dumps(asdict(record(epoch))) + "\n" for epoch in range(1, 1001)))
    parsed, parse = [], journal.parse
    monkeypatch.setattr(journal, "parse", lambda line: (parsed.append(line), parse(line))[1])
    assert [found.epoch for found in journal.read_last(folder, 3)] == [998, 999, 1000]
    assert len(parsed) <= 4


def test_torn_lines_are_counted_by_file(folder: RunFolder) -> None:
    folder.journal(1).write_text(json.dumps(asdict(record(1))) + '\n{"epoch": 2, \n\n[]\n')
    folder.journal(2).write_text(json.dumps(asdict(record(2, 2))) + "\n")
    assert journal.read_noting(folder) == ([record(1), record(2, 2)], {"g0001.jsonl": 2})


def test_a_line_nested_too_deeply_is_passed_over_as_junk(tmp_path: Path) -> None:
    folder = RunFolder(path=tmp_path)
    folder.create()
    folder.journal(1).write_bytes(b"[" * 100_000 + b"\n")
    folder.claim(1).write_bytes(b"[" * 100_000)
    assert journal.read_noting(folder) == ([], {"g0001.jsonl": 1})
    assert read_claim(folder, 1).owner is None


def test_a_line_that_was_garbled_and_still_reads_well_is_passed_over(folder: RunFolder) -> None:
    journal.append(folder, record(1))
    line = folder.journal(1).read_bytes()
    assert journal.parse(line) == record(1)
    for old, new in ((b'"epoch": 1', b'"epoch": 7'), (b'"lr": ', b'"lr": 1'), (b'"crc32": ', b'"crc32": NaN, "x": ')):
        assert old in line and journal.parse(line.replace(old, new)) is None, new
    assert journal.parse(json.dumps(asdict(record(1))).encode()) == record(1), "a line of a program that writes no checksum"
