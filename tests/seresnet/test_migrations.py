"""Records of older versions: the chain is complete, applied on reading, and a newer version's record is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from seresnet import __version__, checkpoint_files, migrations
from seresnet.checkpoint_files import ForeignFileError, Header, metadata, read_metadata, read_record
from seresnet.errors import CheckpointError, ConfigError

FORMATS = Path(__file__).resolve().parents[1] / "golden" / "formats"


def payload(entry: object) -> bytes:
    text = json.dumps({"__metadata__": {"seresnet": json.dumps(entry)}})
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize("kind", sorted(migrations.CURRENT))
def test_every_released_schema_has_a_migration_and_a_fixture(kind: str) -> None:
    older = range(1, migrations.CURRENT[kind])
    assert [schema for schema in older if schema not in migrations.CHAINS[kind]] == []
    files = {"checkpoint": "run/ckpt/*.safetensors", "run.yaml": "run/run.yaml", "result.json": "run/result.json"}
    schemas = set()
    for path in FORMATS.glob(f"*/{files[kind]}"):
        text = path.read_bytes()
        size = int.from_bytes(text[:8], "little")
        meta = json.loads(json.loads(text[8 : 8 + size])["__metadata__"]["seresnet"]) if kind == "checkpoint" else None
        line = next((line for line in text.decode(errors="replace").splitlines() if "schema" in line), "")
        schemas.add(meta["schema"] if meta else int("".join(filter(str.isdigit, line))))
    assert schemas == set(range(1, migrations.CURRENT[kind] + 1))


def test_a_record_walks_through_every_schema_between() -> None:
    chain = {1: lambda record: {"b": record["a"]}, 2: lambda record: {**record, "b": record["b"] + 1}}
    found = migrations.to_current("run.yaml", {"schema": 1, "a": 5}, {"run.yaml": 3}, {"run.yaml": chain})
    assert found == {"schema": 3, "b": 6}
    assert migrations.to_current("run.yaml", {"schema": 3, "b": 6}, {"run.yaml": 3}, {"run.yaml": chain}) == {"schema": 3, "b": 6}


def test_a_missing_link_is_our_bug() -> None:
    with pytest.raises(AssertionError, match=r"no migration of run\.yaml from schema 1 to 2"):
        migrations.to_current("run.yaml", {"schema": 1}, {"run.yaml": 2}, {"run.yaml": {}})


@pytest.mark.parametrize("kind", sorted(migrations.CURRENT))
def test_a_newer_schema_is_refused_with_both_versions_and_the_fix(kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        migrations.to_current(kind, {"schema": 7})
    text = str(caught.value)
    assert "schema is 7" in text and __version__ in text and "Go on with the code that wrote it" in text, text


@pytest.mark.parametrize("record", [None, [], "x", {}, {"schema": "1"}, {"schema": True}, {"schema": 0}, {"schema": None}])
def test_a_record_that_no_version_wrote_is_refused(record: Any) -> None:
    with pytest.raises(ConfigError, match="schema is" if isinstance(record, dict) else "not a mapping of keys, but a"):
        migrations.to_current("result.json", record)


def test_an_older_checkpoint_is_read_with_new_names_and_scalars(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(record: dict[str, Any]) -> dict[str, Any]:
        record["scalars"]["step"] = record["scalars"].pop("steps")
        return {**record, "renamed": {"net/a": "model/a"}}

    monkeypatch.setattr(migrations.to_current, "__defaults__", ({"checkpoint": 2}, {"checkpoint": {1: first}}))
    old = payload({"schema": 1, "header": {"generation": 1, "step": 4}, "scalars": {"steps": 4}})
    record = read_record(old)
    assert record["scalars"] == {"step": 4} and record["renamed"] == {"net/a": "model/a"}


def test_keys_that_a_later_version_added_are_passed_over() -> None:
    entry = json.loads(metadata(Header(generation=2, step=9, best=True), {"step": 9})[checkpoint_files.METADATA_KEY])
    entry["header"]["colour"] = "red"
    assert read_metadata(payload({**entry, "more": 1})) == (Header(generation=2, step=9, best=True), {"step": 9})


@pytest.mark.parametrize(
    "entry",
    [
        [],
        {},
        {"schema": 1},
        {"schema": 1, "header": {}, "scalars": {}},
        {"schema": 1, "header": [], "scalars": {}},
        {"schema": 1, "header": {"generation": "1", "step": 2}, "scalars": {}},
        {"schema": 1, "header": {"generation": 1, "step": 2}, "scalars": []},
    ],
)
def test_what_is_no_checkpoint_of_ours_is_a_clear_error(entry: object) -> None:
    with pytest.raises(ForeignFileError, match="not a checkpoint of this project"):
        read_record(payload(entry))


@pytest.mark.parametrize("junk", [b"", b"\0" * 8, b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}", payload({"schema": 2})[:-3]])
def test_junk_is_a_clear_error(junk: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_record(junk)
