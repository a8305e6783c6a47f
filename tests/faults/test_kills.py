"""SIGKILL at any moment of an attempt, while it starts, trains, evaluates, saves or ends: not one bit of the run changes."""

import random
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
import ranks as ring

from seresnet.run_folder import RunFolder, is_finished

#: Runs side by side.
WIDTH = 2


def kill_a_run(
    folder: Path, digits_dir: Path, size: int, draw: random.Random, kills: int, execute: bool
) -> Generator[None, None, list[str]]:
    """One run, started again after each kill until it is finished; what it was at when it was hit, for at most so many kills."""
    folder.mkdir()
    config, run_dir, expected = ring.tiny_config(folder, digits_dir, size), folder / "run", ring.undisturbed(digits_dir, size)
    hits: list[str] = []
    while len(hits) < kills and not is_finished(RunFolder(path=run_dir), 5):
        printed = len(ring.output(run_dir))
        processes = ring.start(config, run_dir, size, execute=execute)
        yield from moment(run_dir, processes, expected, draw, execute)
        victims = draw.choice([[draw.choice(processes)], processes])
        at = activity(ring.output(run_dir)[printed:])
        for victim in victims:
            victim.kill()
        yield from ring.attend(processes, patience_s=draw.choice([0.0, 1.0]))
        hits += [at] if any(victim.exitcode == -9 for victim in victims) else []
    yield from ring.finishing(config, run_dir, size, execute=execute)
    ring.assert_same(run_dir, expected, f"{size} ranks killed {hits}, {run_dir}")
    return hits


def moment(
    run_dir: Path, processes: list[ring.Rank], expected: ring.Undisturbed, draw: random.Random, execute: bool
) -> Generator[None, None, None]:
    """Wait until some moment of the attempt; one in four is near its end, where time alone seldom hits."""
    imports_s = 4.0 if execute else 0.0
    until, step = time.monotonic() + draw.uniform(0, imports_s + expected.left_s(run_dir)), 0
    if draw.random() < 0.25:
        until, step = 0.0, expected.result.step - draw.randrange(6)
    while (time.monotonic() < until or ring.newest_step(run_dir) < step) and any(process.is_alive() for process in processes):
        yield
    late = time.monotonic() + (draw.uniform(0, 0.2) if step else 0)
    while time.monotonic() < late:
        yield


def activity(printed: str) -> str:
    """What an attempt is at, from what it has printed so far."""
    if "epoch=5/5" in printed:
        return "ending"
    return "training" if "started run" in printed or "resumed run" in printed else "starting"


def kill_runs(digits_dir: Path, tmp_path: Path, size: int, kills: int, seed: int, *, execute: bool = False) -> list[str]:
    """Runs until so many kills have hit a rank that lived."""
    hits: list[str] = []
    ring.undisturbed(digits_dir, size)
    for turn in range(10 + kills):  # a kill that comes too late does not count
        missing = kills - len(hits)
        shares = [missing] if missing < 2 * WIDTH else [-(-missing // WIDTH)] * WIDTH
        legs = [
            kill_a_run(tmp_path / f"{turn}-{leg}", digits_dir, size, random.Random(f"{seed} {size} {turn} {leg}"), min(share, 8), execute)
            for leg, share in enumerate(shares)
        ]
        hits += [hit for found in ring.together(legs, WIDTH) for hit in found]
        if len(hits) >= kills:
            break
    return hits


@pytest.mark.parametrize("size", [1, 2, 4])
def test_sigkill_at_random_times_changes_no_bit(size: int, digits_dir: Path, tmp_path: Path, amount, report, request) -> None:
    kills = amount(1, 4, 96)
    hits = kill_runs(digits_dir, tmp_path, size, kills, request.config.getoption("--seed"))
    assert len(hits) >= kills, hits
    report(f"SIGKILL at random times, {size} ranks", f"{len(hits)} kills", f"every digest equal; hit while {told(hits)}")


@pytest.mark.slow
def test_sigkill_of_ranks_that_were_started_by_exec_changes_no_bit(digits_dir: Path, tmp_path: Path, amount, report, request) -> None:
    kills = amount(1, 2, 12)
    hits = kill_runs(digits_dir, tmp_path, 2, kills, request.config.getoption("--seed"), execute=True)
    assert len(hits) >= kills, hits
    report("SIGKILL at random times, 2 ranks started by exec", f"{len(hits)} kills", f"every digest equal; hit while {told(hits)}")


def told(hits: list[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(Counter(hits).items()))
