"""The watchdog in processes of its own, because it ends them; and the supervisor's backup against a clock of the test."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpc.progress_watch import ProgressWatch
from seresnet.watchdog import FLIGHT_RECORDS, LEAST_S, SAVE_FACTOR, START_FACTOR, STEPS, Watchdog, dump_flight_record, read_progress

PROGRAM = """
import os, sys, time
from pathlib import Path
from seresnet.watchdog import Watchdog, dump_stacks

def bark(idle_s):
    dump_stacks(Path(sys.argv[1]))
    os._exit(76)

dog = Watchdog(0).start(bark)
def stuck_here():
    time.sleep(20)
"""


def _ends(tmp_path: Path, body: str, timeout_s: float = 20.0) -> tuple[int, str]:
    """Exit code and stacks of a program with a watchdog of 0.3 s (4.5 s before the first step)."""
    stacks = tmp_path / "stacks.txt"
    env = {**os.environ, "SERESNET_WATCHDOG_S": "0.3", "SERESNET_PROGRESS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM + body, str(stacks)], env=env, timeout=timeout_s, capture_output=True, check=False)
    return done.returncode, stacks.read_text() if stacks.exists() else ""


def test_a_stuck_step_ends_the_process_and_leaves_the_stacks_of_all_threads(tmp_path: Path) -> None:
    code, stacks = _ends(tmp_path, "dog.step(); time.sleep(0.01); dog.step(); stuck_here()")
    assert code == 76 and "in stuck_here" in stacks, (code, stacks)


def test_a_start_may_take_longer_than_a_step(tmp_path: Path) -> None:
    assert _ends(tmp_path, "time.sleep(1.5); dog.step(); os._exit(0)") == (0, "")


@pytest.mark.parametrize("alive", ["dog.beat()", "dog.step()"])
def test_whoever_beats_lives(tmp_path: Path, alive: str) -> None:
    body = f"dog.step(); time.sleep(0.01); dog.step()\nfor _ in range(12):\n    time.sleep(0.1); {alive}\nos._exit(0)"
    assert _ends(tmp_path, body)[0] == 0


def test_a_slow_save_is_waited_for(tmp_path: Path) -> None:
    body = "dog.step(); time.sleep(0.01); dog.step()\nwith dog.saving():\n    time.sleep(1.0)\nos._exit(0)"
    assert _ends(tmp_path, body)[0] == 0
    assert _ends(tmp_path, body.replace("1.0", "9.0"))[0] == 76


@pytest.mark.skipif(sys.platform != "linux", reason="stops a process with SIGSTOP")
def test_a_suspended_process_does_not_wake_up_hung(tmp_path: Path) -> None:
    body = "dog.step(); time.sleep(0.01); dog.step()\nos.kill(os.getpid(), 19)\ndog.beat(); os._exit(0)"
    env = {**os.environ, "SERESNET_WATCHDOG_S": "0.3"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM + body, str(tmp_path / "stacks")], env=env)
    while "T (stopped)" not in Path(f"/proc/{process.pid}/status").read_text():
        time.sleep(0.02)
    time.sleep(1.5)
    process.send_signal(18)  # SIGCONT
    assert process.wait(10) == 0


def test_limits_are_those_of_the_design() -> None:
    dog = Watchdog(0, {})
    assert dog.limit_s == START_FACTOR * LEAST_S == 1800
    dog._steps.extend([1.0, 30.0, 40.0])
    assert dog.limit_s == STEPS * 30.0
    dog._steps.extend([0.1] * 5)
    assert dog.limit_s == LEAST_S
    with dog.saving():
        assert dog.limit_s == SAVE_FACTOR * LEAST_S
    waits_for_rank_0 = Watchdog(1, {})
    waits_for_rank_0._steps.append(0.1)
    assert waits_for_rank_0.limit_s == SAVE_FACTOR * LEAST_S
    assert Watchdog(0, {"SERESNET_WATCHDOG_S": "0"}).start(lambda idle_s: os._exit(1)).least_s == 0


# --- the backup ---


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _look_for(watch: ProgressWatch, clock: Clock, seconds: float, step_s: float = 1.0) -> str | None:
    until = clock.now + seconds
    while clock.now < until:
        clock.now += step_s
        if found := watch.look():
            return found
    return None


def test_the_backup_waits_for_twice_the_limit_that_the_rank_wrote(tmp_path: Path) -> None:
    clock = Clock()
    watch = ProgressWatch(tmp_path, clock)
    assert _look_for(watch, clock, 5000) is None, "a program that never wrote of its progress is never called hung"
    (tmp_path / "progress-1").write_text("7 100.0\n")
    assert _look_for(watch, clock, 199) is None
    (tmp_path / "progress-1").write_text("8 100.0\n")
    assert _look_for(watch, clock, 199) is None
    assert str(_look_for(watch, clock, 9)).startswith("rank 1 said nothing for 201 s")


def test_time_in_which_the_supervisor_itself_was_stopped_does_not_count(tmp_path: Path) -> None:
    clock = Clock()
    watch = ProgressWatch(tmp_path, clock)
    (tmp_path / "progress-0").write_text("7 100.0\n")
    assert _look_for(watch, clock, 90) is None
    clock.now += 3600
    assert _look_for(watch, clock, 90) is None


def test_half_a_word_is_no_progress(tmp_path: Path) -> None:
    (tmp_path / "progress-0").write_text("12")
    assert read_progress(tmp_path / "progress-0") is None
    assert read_progress(tmp_path / "nothing") is None


def test_the_rank_that_is_waited_for_writes_its_stacks_too(tmp_path: Path) -> None:
    body = f"dog.step(); time.sleep(0.01); dog.step()\nPath({str(tmp_path)!r}, 'hung').touch()\nstuck_here()"
    started = time.monotonic()
    code, stacks = _ends(tmp_path, f"dog.least_s = 30.0; {body}")
    assert code == 76 and "in stuck_here" in stacks and time.monotonic() - started < 15, (code, stacks)


def test_who_hangs_or_is_found_hanging_marks_it_for_the_others(tmp_path: Path) -> None:
    _ends(tmp_path, "dog.step(); time.sleep(0.01); dog.step(); stuck_here()")
    assert (tmp_path / "hung").exists()
    (tmp_path / "hung").unlink()
    clock = Clock()
    watch = ProgressWatch(tmp_path, clock)
    (tmp_path / "progress-0").write_text("7 100.0\n")
    assert _look_for(watch, clock, 199) is None and not (tmp_path / "hung").exists()
    assert _look_for(watch, clock, 9) is not None and (tmp_path / "hung").exists()


# --- NCCL's flight record: a stand-in, for lack of a GPU in the tests ---


def _with_nccl(monkeypatch: pytest.MonkeyPatch, dump: object, *, is_cuda: bool = True) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: is_cuda)))
    monkeypatch.setitem(sys.modules, "torch._C._distributed_c10d", SimpleNamespace(_dump_nccl_trace_json=dump))


def test_the_flight_record_is_written_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_nccl(monkeypatch, lambda: b'{"entries": []}')
    dump_flight_record(tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text()) == {"entries": []}


def test_a_flight_record_that_hangs_fails_or_says_nothing_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bytes:
        raise RuntimeError("no NCCL")

    for dump, is_cuda in ((lambda: time.sleep(5), True), (fail, True), (lambda: b"{}", False)):
        _with_nccl(monkeypatch, dump, is_cuda=is_cuda)
        started = time.monotonic()
        dump_flight_record(tmp_path / "record.json", limit_s=0.2)
        assert time.monotonic() - started < 3 and not (tmp_path / "record.json").exists()


def test_nccl_is_told_to_record_before_it_starts(tmp_path: Path) -> None:
    body = "print(os.environ['TORCH_FR_BUFFER_SIZE'], flush=True); os._exit(0)"
    env = {key: value for key, value in os.environ.items() if key != "TORCH_FR_BUFFER_SIZE"}
    for own, wanted in (({}, FLIGHT_RECORDS), ({"TORCH_FR_BUFFER_SIZE": "7"}, "7")):
        done = subprocess.run([sys.executable, "-c", PROGRAM + body, "x"], env={**env, **own}, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == wanted, done
