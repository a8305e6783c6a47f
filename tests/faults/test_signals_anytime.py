"""One rank alone is told to stop, once or twice, at any moment from its start on: all end alike, soon, with nothing lost."""

import itertools
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ranks as ring
import traces

from seresnet import attempts
from seresnet.exits import Exit
from seresnet.run_folder import RunFolder, is_finished
from seresnet.signals import STOP_SIGNALS

WIDTH = 2
#: Far beyond what a stop takes, and below the minute after which a supervisor calls ranks hung whose sibling has left.
HANG_S = 45.0


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What came of signals to one rank."""

    story: str
    phase: str  # "before the first step", "training", "too late"
    end_s: float  # until all ranks had ended
    steps: int = 0  # begun after the signal
    durable_s: float = 0.0  # until the stop's checkpoint was committed, less the time of two steps


def signal_a_run(folder: Path, digits_dir: Path, size: int, draw: random.Random, shots: int) -> Generator[None, None, list[Shot]]:
    """One run, stopped again and again until it is finished; its end is that of an undisturbed one."""
    folder.mkdir()
    # With saves at every step, and with none but the stop's own.
    config = ring.tiny_config(folder, digits_dir, size, checkpoint_every_s=draw.choice([0.01, 3600]))
    run_dir, expected = folder / "run", ring.undisturbed(digits_dir, size)
    seen: list[Shot] = []
    for attempt in itertools.count():
        if len(seen) >= shots or is_finished(RunFolder(path=run_dir), 5):
            break
        how = {"supervised": True, "hook": "traces:steps", "environ": {"TRACE_ATTEMPT": f"{attempt:03}"}}
        processes = ring.start(config, run_dir, size, **how)
        victim, wait_s = draw.randrange(size), draw.uniform(0, expected.left_s(run_dir))
        yield from waiting(wait_s, processes)
        number, printed, lived = draw.choice(STOP_SIGNALS), len(ring.output(run_dir)), processes[victim].is_alive()
        ring.send(processes[victim : victim + 1], number)
        sent, story = time.time(), f"{number.name} to rank {victim} of {size} after {wait_s:.2f} s"
        if draw.random() < 0.5:
            second, later_s = draw.choice(STOP_SIGNALS), draw.uniform(0, 0.3)
            yield from waiting(later_s, processes)
            ring.send(processes[victim : victim + 1], second)
            story += f", {second.name} {later_s:.2f} s later"
        codes = yield from ring.attend(processes, limit_s=HANG_S)
        story += f" -> {codes} {run_dir}"
        assert codes in ([75] * size, [0] * size), f"{story}\n{ring.output(run_dir)[printed:][-6000:]}"
        if not lived:  # nobody was told: no shot
            continue
        seen.append(judge(run_dir, codes[0] or 0, sent, time.time() - sent, victim, size, story))
    yield from ring.finishing(config, run_dir, size, supervised=True)
    ring.assert_same(run_dir, expected, f"{[shot.story for shot in seen]}")
    return seen


def waiting(seconds: float, processes: list[ring.Rank]) -> Generator[None, None, None]:
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(process.is_alive() for process in processes):
        yield


def judge(run_dir: Path, code: int, sent: float, end_s: float, victim: int, size: int, story: str) -> Shot:
    """All ranks ended with this code: whether they say the same, and when what they had was durable."""
    folder = RunFolder(path=run_dir)
    generation = attempts.newest_generation(folder)
    said = [str(attempts.read_rank_exit(folder, generation, rank).get("reason")) for rank in range(size)]
    if code == Exit.FINISHED:
        assert is_finished(folder, 5), f"{story}: every rank said finished, and there is no result"
        return Shot(story=story, phase="too late", end_s=end_s)
    if any(reason.endswith("before the first step") for reason in said):
        return Shot(story=story, phase="before the first step", end_s=end_s)
    stopped = {int(step) for reason in said for step in re.findall(r" at step (\d+)$", reason)}
    assert len(stopped) == 1 and all(" at step " in reason for reason in said), f"{story}: {said}"
    (step,) = stopped
    assert ring.newest_step(run_dir) == step, f"{story}: stopped at step {step}, durable is {ring.newest_step(run_dir)}"
    lines = [line for line in traces.read(run_dir)[-1] if line["rank"] == victim]
    begun = [line for line in lines if line["time"] > sent]
    committed = max(path.stat().st_mtime for path in run_dir.glob(f"ckpt/*-s{step:09}-*"))
    longest = longest_step(lines)
    late_s = max(0.0, committed - sent - 2 * longest)
    assert len(begun) <= 2, f"{story}: {len(begun)} steps were begun after the signal, {[line['step'] for line in begun]}"
    assert late_s <= max(2.0, 20 * longest), f"{story}: durable {late_s:.2f} s after two steps of {longest:.2f} s"
    return Shot(story=story, phase="training", end_s=end_s, steps=len(begun), durable_s=late_s)


def longest_step(lines: list[dict[str, Any]]) -> float:
    times = [line["time"] for line in lines]
    return max((after - before for before, after in itertools.pairwise(times)), default=0.1)


def shoot(digits_dir: Path, tmp_path: Path, size: int, shots: int, seed: int) -> list[Shot]:
    """Runs until so many ranks were told."""
    seen: list[Shot] = []
    ring.undisturbed(digits_dir, size)
    for turn in range(10 + shots):  # a signal that comes too late to meet anybody does not count
        missing = shots - len(seen)
        shares = [-(-missing // WIDTH)] * WIDTH if missing >= WIDTH else [missing]
        legs = [
            signal_a_run(tmp_path / f"{turn}-{leg}", digits_dir, size, random.Random(f"{seed} {size} {turn} {leg}"), min(share, 8))
            for leg, share in enumerate(shares)
        ]
        seen += [shot for found in ring.together(legs, WIDTH) for shot in found]
        if len(seen) >= shots:
            break
    return seen


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_signal_to_one_rank_at_any_time_stops_all_alike(size: int, digits_dir: Path, tmp_path: Path, amount, report, request) -> None:
    shots = amount(1, 5, 67)
    seen = shoot(digits_dir, tmp_path, size, shots, request.config.getoption("--seed"))
    assert len(seen) >= shots, f"only {len(seen)} of {shots} signals met a living rank"
    phases = ", ".join(f"{phase} {count}" for phase, count in sorted(Counter(shot.phase for shot in seen).items()))
    slowest = f"at most {max(shot.steps for shot in seen)} steps + {max(shot.durable_s for shot in seen):.1f} s to durable"
    ends = f"all ended within {max((shot.end_s for shot in seen if shot.phase != 'too late'), default=0.0):.1f} s"
    report(f"signals to one random rank at a random time, {size} ranks", f"{len(seen)} shots", f"{phases}; {slowest}; {ends}")


def test_a_rank_that_waits_for_the_others_leaves_when_it_or_they_are_told_to(digits_dir: Path, tmp_path: Path) -> None:
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, 2), tmp_path / "run"
    for late, told in ((0, 0), (0, 1), (1, 0), (1, 1)):
        how = {"supervised": True, "hook": "traces:late", "environ": {"TRACE_LATE": str(late)}}
        processes = ring.start(config, run_dir, 2, **how)
        ring.wait_until(lambda: len(list(tmp_path.glob("meet-*"))) > 0)
        time.sleep(0.5)  # the other one is in its rendezvous by now, in C++, where no handler of Python's runs
        ring.send(processes[told : told + 1], signal.SIGTERM)
        codes = ring.join_all(processes, limit_s=HANG_S)
        assert codes == [75, 75], f"rank {late} late, rank {told} told: {codes}\n{ring.output(run_dir)[-4000:]}"
        for path in tmp_path.glob("meet-*"):
            path.unlink()


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_that_were_started_by_exec(digits_dir: Path, tmp_path: Path, amount, report, request) -> None:
    draw, shots = random.Random(f"{request.config.getoption('--seed')} exec"), amount(1, 2, 8)
    config, run_dir, endings = ring.tiny_config(tmp_path, digits_dir, 2), tmp_path / "run", Counter[int]()
    while endings.total() < shots:
        processes, wait_s = ring.start(config, run_dir, 2, execute=True), draw.uniform(0, 6)
        victim, number = draw.randrange(2), draw.choice(STOP_SIGNALS)
        ring.together([waiting(wait_s, processes)])
        ring.send(processes[victim : victim + 1], number)
        codes = ring.join_all(processes, limit_s=HANG_S)
        story = f"{number.name} to rank {victim} after {wait_s:.2f} s"
        assert codes in ([75, 75], [0, 0]), f"{story}: {codes}\n{ring.output(run_dir)[-4000:]}"
        endings[codes[0]] += 1
    report("signals to one random rank at a random time, 2 ranks started by exec", f"{shots} shots", f"codes {dict(endings)}")
