"""Whatever the number of ranks, and however often it changes, a run's samples, draws and mixes are those of one rank alone (tier T2)."""

import random
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import ranks as ring
import traces

from seresnet import journal
from seresnet.run_folder import RunFolder, RunRecord, TrainResult

SIZES = (1, 2, 4)
STEPS = 30

Log = dict[tuple[int, int], dict[str, Any]]


def switched(folder: Path, digits_dir: Path, draw: random.Random) -> Generator[None, None, tuple[Path, list[str]]]:
    """A run of three attempts, each with another number of ranks, stopped or killed at two random steps; and its story."""
    folder.mkdir()
    config, run_dir = ring.tiny_config(folder, digits_dir, 4), folder / "run"
    story = []
    steps = sorted(draw.sample(range(1, STEPS - 2), 2))
    for attempt, (size, step) in enumerate(zip(draw.sample(SIZES, 3), [*steps, None], strict=True), 1):
        plan = f"{draw.choice(['TERM', 'KILL'])} before {step} {draw.randrange(size)}" if step is not None else "KILL never 0 0"
        processes = ring.start(config, run_dir, size, hook="traces:samples", environ={"TRACE_ATTEMPT": str(attempt), "TRACE_DO": plan})
        codes = yield from ring.attend(processes)
        story.append(f"{size} ranks: {plan} -> {codes}")
        assert -9 in codes or codes == [75 if step else 0] * size, f"{story}\n{ring.output(run_dir)[-3000:]}"
    return run_dir, story


def log_of(run_dir: Path) -> Log:
    """What each micro-batch of each step was, by the attempt whose step counts."""
    lines = traces.surviving(traces.read(run_dir), "micro_of")
    assert lines, f"{run_dir}: nothing was traced"
    log: Log = {}
    for line in lines:
        key = (line.pop("micro_of"), line.pop("micro"))
        assert key not in log, f"{key} was trained twice"
        del line["rank"]
        log[key] = line
    return log


@pytest.fixture(scope="module")
def alone(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Log, list[float]]:
    """The log of one rank alone, and its losses."""
    folder = tmp_path_factory.mktemp("alone")
    config = ring.tiny_config(folder, digits_dir, 4)
    ring.finish(config, folder / "run", 1, hook="traces:samples", environ={"TRACE_ATTEMPT": "1"})
    log = log_of(folder / "run")
    assert sorted(log) == [(step, micro) for step in range(STEPS) for micro in range(4)]
    assert {key: line["moved"] for key, line in log.items()} == {(s, m): [m == 0] for s, m in log}, (
        "not only micro-batch 0 moved statistics"
    )
    return log, losses_of(folder / "run")


def losses_of(run_dir: Path) -> list[float]:
    return [record.train_loss for record in journal.read(RunFolder(path=run_dir)) if record.train_loss is not None]


def test_the_log_of_any_number_of_ranks_is_that_of_one(
    alone: tuple[Log, list[float]], digits_dir: Path, tmp_path: Path, amount, report, request
) -> None:
    runs, seed = amount(1, 4, 20), request.config.getoption("--seed")
    legs = [switched(tmp_path / str(number), digits_dir, random.Random(f"{seed} {number}")) for number in range(runs)]
    for run_dir, story in ring.together(legs, width=2):
        found = log_of(run_dir)
        differing = [key for key in sorted(alone[0].keys() | found.keys()) if alone[0].get(key) != found.get(key)]
        assert not differing, f"{story}: (step, micro-batch) {differing[:5]}: {found.get(differing[0])} != {alone[0].get(differing[0])}"
        assert losses_of(run_dir) == pytest.approx(alone[1], rel=1e-3), story
        check_marks(run_dir, story)
    report("world size 1-2-4 switched at random steps", f"{runs} runs", "logs of samples, draws, mixes and statistics equal; marked T2")


def check_marks(run_dir: Path, story: list[str]) -> None:
    folder = RunFolder(path=run_dir)
    result, record = TrainResult.read(folder), RunRecord.read(folder)
    assert result is not None and result.tier == "T2", story
    assert sum(mark.startswith("world_size: ") for mark in record.marks) == 2, f"{story}: {record.marks}"
