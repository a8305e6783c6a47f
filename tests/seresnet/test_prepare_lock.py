"""One process builds and the others wait; a builder that was killed or stands still does not block the next."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from seresnet import build_lock
from seresnet.build_lock import sole_builder

HOLDER = """
import sys, time
from pathlib import Path
from seresnet.build_lock import sole_builder
target = Path(sys.argv[1])
with sole_builder(target, target.exists, beat_s=0.05) as temp:
    print(temp, flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that builds tmp_path/x and never ends; .temp is its folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True) as process:
        process.temp = Path(process.stdout.readline().strip())
        yield process
        process.kill()


def build(target, stale_s=60.0):
    """True if this call built it."""
    with sole_builder(target, target.exists, stale_s=stale_s, beat_s=0.05) as temp:
        if temp is None:
            return False
        (temp / "draft").write_text("built")
        time.sleep(0.2)
        os.replace(temp / "draft", target)
        return True


def build_in_threads(target, count, **options):
    """How many of so many builders at once did the work."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(build(target, **options))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count, "a builder failed"
    return sum(results)


@pytest.mark.parametrize("has_flock", [True, False])
def test_one_of_many_builds_and_nothing_but_the_file_is_left(tmp_path, monkeypatch, has_flock):
    if not has_flock:
        monkeypatch.setattr(build_lock, "fcntl", None)
    assert build_in_threads(tmp_path / "x", 6) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_file_system_that_refuses_flock_is_locked_by_existence(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(build_lock.fcntl, "flock", refuse)
    assert build_in_threads(tmp_path / "x", 3) == 1


def test_live_builder_is_waited_for(tmp_path, holder):
    waiter = threading.Thread(target=build, args=(tmp_path / "x",), kwargs={"stale_s": 0.6})
    waiter.start()
    waiter.join(1.5)
    assert waiter.is_alive() and not (tmp_path / "x").exists(), "a second builder did not wait"
    (tmp_path / "x").touch()
    waiter.join(5)
    assert not waiter.is_alive()


def test_builder_killed_with_9_frees_its_lock_at_once(tmp_path, holder):
    holder.kill()
    holder.wait()
    started = time.monotonic()
    assert build(tmp_path / "x")
    assert time.monotonic() - started < 5


def test_builder_that_stands_still_is_passed_by_one_of_those_who_wait(tmp_path, holder):
    holder.send_signal(signal.SIGSTOP)
    # 3 s: on a machine that compiles beside the tests a live builder has stood still for 0.6 s.
    assert build_in_threads(tmp_path / "x", 3, stale_s=3.0) == 1
    assert (tmp_path / "x").read_text() == "built"


def test_claim_of_a_dead_builder_is_passed_where_there_is_no_flock(tmp_path, monkeypatch):
    monkeypatch.setattr(build_lock, "fcntl", None)
    (tmp_path / ".x.claim").write_text("node7:123")
    assert build(tmp_path / "x", stale_s=0.3)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_failed_build_leaves_no_lock_and_no_folder(tmp_path):
    with pytest.raises(ValueError, match="boom"), sole_builder(tmp_path / "x", lambda: False):
        raise ValueError("boom")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_builder_are_removed_once_they_are_old(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert holder.temp.exists()
    os.utime(holder.temp, (time.time() - build_lock.LEFTOVER_S - 60,) * 2)
    (tmp_path / ".building-young").mkdir()
    assert build(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".building-young", "x"]
