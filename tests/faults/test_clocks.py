"""Clocks that jump by an hour, and pids that mean something else: no live owner loses its run, and a dead one still does."""

import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import namespaces
import pytest

from seresnet import claims
from seresnet.claims import Heart, acquire, this_process
from seresnet.errors import OwnedElsewhereError
from seresnet.run_folder import RunFolder

# Forked, not spawned: 50 watches have 100 processes, and each does only what one thread can.
PROCESSES = multiprocessing.get_context("fork")
BEAT_S, PATIENT_S, OBSERVE_S, LIMIT_S = 0.2, 60.0, 1.0, 120.0
HOUR_S = 3600.0
AT_ONCE = 10


@dataclass(frozen=True, kw_only=True)
class Case:
    """One owner and one observer: how wrong their clocks are, and which of them lives in a PID namespace of its own, as its pid 1."""

    owner_clock_s: float
    observer_clock_s: float
    jump_s: float  # of the observer's clock, in the middle of its watch
    mtime_s: float  # how far the beat's time stamp is off
    owner_inside: bool
    observer_inside: bool
    alive: bool


def draw(chance: random.Random, number: int) -> Case:
    hours = (-HOUR_S, 0.0, HOUR_S)
    # Every eighth case has the same places, so that a few cases already are of all kinds.
    owner_inside, observer_inside, alive = list(itertools.product((False, True), (True, False), (True, False)))[number % 8]
    clocks = {name: chance.choice(hours) for name in ("owner_clock_s", "observer_clock_s", "jump_s", "mtime_s")}
    return Case(owner_inside=owner_inside, observer_inside=observer_inside, alive=alive, **clocks)


def set_clock(offset_s: float, jump_s: float = 0.0) -> None:
    """Put this process's wall clock wrong; at its 20th reading or sleep it jumps, and at every 20th after it jumps back and forth."""
    now, sleep, looks = time.time, time.sleep, itertools.count()
    state = {"jump": 0.0}

    def look() -> None:
        if next(looks) % 20 == 19:
            state["jump"] = jump_s - state["jump"]

    def wrong() -> float:
        look()
        return now() + offset_s + state["jump"]

    def sleeping(seconds: float) -> None:
        look()
        sleep(seconds)

    time.time, time.sleep = wrong, sleeping


def own(path: str, case: Case, pipe: Connection, is_real: bool) -> None:
    """Claim the run, and live."""
    set_clock(case.owner_clock_s)
    folder, beat = RunFolder(path=Path(path)), Heart._beat

    def beat_with_wrong_stamp(heart: Heart) -> None:
        beat(heart)
        stamp = time.time() + case.mtime_s
        os.utime(folder.beat(1), (stamp, stamp))

    Heart._beat = beat_with_wrong_stamp  # type: ignore[method-assign]
    claim = acquire(folder, this_process({}))
    Heart(folder, claim.generation, lambda: os._exit(77), interval_s=BEAT_S).start()
    pipe.send((claim.generation, is_real))
    time.sleep(LIMIT_S)


def observe(path: str, case: Case, pipe: Connection, is_real: bool) -> None:
    """Try to claim the run."""
    set_clock(case.observer_clock_s, case.jump_s)
    folder = RunFolder(path=Path(path))
    try:
        claim = acquire(folder, this_process({}), observe_s=PATIENT_S if case.alive else OBSERVE_S, poll_s=0.02)
    except OwnedElsewhereError as error:
        pipe.send((str(error), is_real))
        return
    end = claims.read_end(folder, claim.generation - 1)
    pipe.send((f"claimed generation {claim.generation}: {end and end.facts.get('proof')}", is_real))


def start(what: Callable[..., None], path: Path, case: Case, inside: bool) -> tuple[Any, Connection]:
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_run, args=(what, str(path), case, theirs, inside), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _run(what: Callable[..., None], path: str, case: Case, pipe: Connection, inside: bool) -> None:
    if inside:
        namespaces.call_inside(lambda is_real: what(path, case, pipe, is_real))
    what(path, case, pipe, True)


def answer_of(pipe: Connection, case: Case) -> Any:
    assert pipe.poll(LIMIT_S), f"no answer: {case}"
    return pipe.recv()


def watch(cases: list[Case], place: Path) -> list[tuple[Case, str, bool]]:
    """What the observer of each case came to, and whether all its namespaces were real ones."""
    folders = [RunFolder(path=place / str(number)) for number in range(len(cases))]
    for folder in folders:
        folder.create()
    owners = [start(own, folder.path, case, case.owner_inside) for folder, case in zip(folders, cases, strict=True)]
    reals = [answer_of(pipe, case) for (_, pipe), case in zip(owners, cases, strict=True)]
    for (process, _), case in zip(owners, cases, strict=True):
        if not case.alive:
            process.kill()
            process.join(LIMIT_S)
    observers = [start(observe, folder.path, case, case.observer_inside) for folder, case in zip(folders, cases, strict=True)]
    answers = [answer_of(pipe, case) for (_, pipe), case in zip(observers, cases, strict=True)]
    for process, _ in (*owners, *observers):
        process.kill()
        process.join(LIMIT_S)
    return [(case, text, real and also) for case, (_, real), (text, also) in zip(cases, reals, answers, strict=True)]


def expected(case: Case) -> str:
    if case.alive:
        return "its beat moved while we watched"
    # Only who shares its namespace may go by the pid.
    return (
        "claimed generation 2: its process" if not (case.owner_inside or case.observer_inside) else "claimed generation 2: its beat stood"
    )


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="this system has no PID namespaces")
def test_no_live_owner_is_taken_over_whatever_clocks_and_pids_say(amount, report, request, tmp_path: Path) -> None:
    count = amount(8, 50, 50)
    chance = random.Random(request.config.getoption("--seed"))
    cases, seen = [draw(chance, number) for number in range(count)], []
    for first in range(0, count, AT_ONCE):
        seen += watch(cases[first : first + AT_ONCE], tmp_path / str(first))
    wrong = [f"{case}: {text}" for case, text, _ in seen if expected(case) not in text]
    assert not wrong, "\n".join(wrong)
    live, inside = sum(case.alive for case in cases), [real for case, _, real in seen if case.owner_inside or case.observer_inside]
    text = f"0 of {live} live owners taken over, {count - live} of {count - live} dead ones; {sum(inside)} of {len(inside)} namespaces real"
    report("clock jumps of an hour; pids in another namespace", f"{count} watches", text)
