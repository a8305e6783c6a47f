"""Random damage to run folders and to the cache of collect: no crash, no other run changed, the same answer with and without cache."""

import random
import shutil
import time
from pathlib import Path

import pytest
from fake_sweep import FakeSweep

from hpc import collect, collect_cache
from hpc.gather import Gathered, RunRow, gather
from hpc.history import COLUMNS
from seresnet.durable import write_new

TRIALS = 200


def described(row: RunRow) -> tuple[object, ...]:
    """All that a row says, histories bit by bit."""
    facts = {key: value for key, value in vars(row).items() if key != "history"}
    columns = [row.history.column(key).tobytes() for key in COLUMNS]
    return repr(facts), len(row.history), row.history.last_epoch, row.history.seconds_per_epoch, columns, row.device_hours


def answer(gathered: Gathered) -> tuple[object, ...]:
    return gathered.arms, [described(row) for row in gathered.rows], gathered.skipped


@pytest.fixture
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may be kept when they are 12 ms old, not 2 s; the clock of ext4 ticks every 4 ms at most."""
    monkeypatch.setattr(collect_cache, "_RACY_NS", 12_000_000)


def spoil(folder: Path, draw: random.Random) -> str:
    """Delete, truncate, duplicate, flip, overwrite, or replace by a folder: one file."""
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = path.read_bytes()
    place = draw.randrange(len(content) + 1)
    kind = draw.choice(["delete", "truncate", "duplicate", "double", "flip", "noise", "folder"])
    if kind == "duplicate":
        shutil.copy2(path, path.with_name(f"{draw.choice(['0', '9', 'x'])}{path.name}"))
    elif kind == "flip":  # in place, so that only times can tell
        with open(path, "r+b") as file:
            file.seek(min(place, len(content) - 1) if content else 0)
            file.write(bytes([content[min(place, len(content) - 1)] ^ 1 << draw.randrange(8)]) if content else b"x")
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind != "delete":
            spoiled = {"truncate": content[:place], "double": content * 2, "noise": content[:place] + draw.randbytes(4) + content[place:]}
            write_new(path, spoiled[kind])
    return f"{kind} {path.name}"


def test_random_damage_never_crashes_never_changes_another_run_and_never_comes_from_the_cache(tmp_path: Path, quick_clock: None) -> None:
    sweep = FakeSweep(tmp_path, epochs=3).finish_all()
    keys, cache = list(sweep.ids), sweep.folder.collect_cache
    clean = [described(row) for row in gather([sweep.folder.path], use_cache=False).rows]
    kinds, warm = set(), 0
    for trial in range(TRIALS):
        draw = random.Random(trial)
        victim = draw.randrange(len(keys))
        folder, backup = sweep.of(*keys[victim]).path, tmp_path / "backup"
        shutil.copytree(folder, backup)
        if trial % 5 == 0:
            shutil.rmtree(cache, ignore_errors=True)
        time.sleep(0.03)
        gather([sweep.folder.path])
        warm += cache.exists()
        what = spoil(folder, draw) + (f", {spoil(cache, draw)}" if trial % 3 == 0 and cache.exists() else "")
        kinds.add(what.partition(" ")[0])
        found = collect.collect([sweep.folder.path], with_figures=False)[0].gathered
        assert answer(found) == answer(gather([sweep.folder.path], use_cache=False)), f"trial {trial}: {what}"
        others = [described(row) for row in found.rows]
        assert others[:victim] + others[victim + 1 :] == clean[:victim] + clean[victim + 1 :], f"trial {trial}: {what}"
        shutil.rmtree(folder)
        backup.rename(folder)
    assert len(kinds) == 7 and warm == TRIALS
