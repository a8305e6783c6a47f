"""Real processes that race for a claim, die holding it, and are stopped and continued."""

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from seresnet import claims
from seresnet.claims import Heart, acquire, this_process
from seresnet.durable import DISK, Files
from seresnet.errors import OwnedElsewhereError
from seresnet.run_folder import RunFolder

# Forked and not spawned: a start costs 10 ms instead of a second. The children only do what one thread can.
PROCESSES = multiprocessing.get_context("fork")
LIMIT_S = 30


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    return folder


class NoLinks(Files):
    """A file system without hard links: a claim is an exclusive file, which others may see half written."""

    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def _race(path: str, barrier: object, rounds: int, files: Files, pipe: Connection) -> None:
    folder, won = RunFolder(path=Path(path)), []
    for _ in range(rounds):
        barrier.wait(LIMIT_S)
        heart = None
        try:
            claim = acquire(folder, this_process({}), observe_s=LIMIT_S, poll_s=0.01, files=files)
            heart = Heart(folder, claim.generation, lambda: None, interval_s=0.01).start()
            won.append(claim.generation)
        except OwnedElsewhereError:
            pass
        barrier.wait(LIMIT_S)
        if heart is not None:
            heart.stop()
            claims.write_end(folder, won[-1], "finished")
    pipe.send(won)


def _own(path: str, pipe: Connection) -> None:
    folder = RunFolder(path=Path(path))
    claim = acquire(folder, this_process({}))
    Heart(folder, claim.generation, lambda: os._exit(77), interval_s=0.05).start()
    pipe.send(claim.generation)
    time.sleep(LIMIT_S)


@pytest.fixture
def owner_process(folder: RunFolder) -> Iterator[multiprocessing.process.BaseProcess]:
    """A live owner of generation 1 whose heart beats every 50 ms."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_own, args=(str(folder.path), theirs), daemon=True)
    process.start()
    assert ours.poll(LIMIT_S) and ours.recv() == 1
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("files", [DISK, NoLinks()], ids=["links", "no links"])
@pytest.mark.parametrize("racers", [2, 4])
def test_processes_that_race_for_a_claim_have_one_winner_a_generation(folder: RunFolder, racers: int, files: Files) -> None:
    rounds = 20
    barrier, pipes, processes = PROCESSES.Barrier(racers), [], []
    for _ in range(racers):
        ours, theirs = PROCESSES.Pipe()
        processes.append(PROCESSES.Process(target=_race, args=(str(folder.path), barrier, rounds, files, theirs), daemon=True))
        processes[-1].start()
        pipes.append(ours)
    assert all(pipe.poll(2 * LIMIT_S) for pipe in pipes)
    won = [generation for pipe in pipes for generation in pipe.recv()]
    assert sorted(won) == list(range(1, rounds + 1))
    for process in processes:
        process.join(LIMIT_S)


def test_a_killed_owner_on_this_host_is_succeeded_at_once(folder: RunFolder, owner_process: multiprocessing.process.BaseProcess) -> None:
    owner_process.kill()
    owner_process.join()
    before = time.monotonic()
    assert acquire(folder, this_process({}), observe_s=3600).generation == 2
    assert time.monotonic() - before < 10
    end = claims.read_end(folder, 1)
    assert end is not None and end.ending == "killed"


def test_a_live_owner_is_refused_without_waiting_for_the_limit(
    folder: RunFolder, owner_process: multiprocessing.process.BaseProcess
) -> None:
    with pytest.raises(OwnedElsewhereError, match=f"process {owner_process.pid} on"):
        acquire(folder, this_process({}), observe_s=3600, poll_s=0.05)


def test_a_stopped_owner_is_succeeded_after_the_limit_and_fenced_when_it_wakes_up(
    folder: RunFolder, owner_process: multiprocessing.process.BaseProcess
) -> None:
    assert owner_process.pid is not None
    os.kill(owner_process.pid, signal.SIGSTOP)
    time.sleep(0.1)
    before = time.monotonic()
    assert acquire(folder, this_process({}), observe_s=1.0, poll_s=0.05).generation == 2
    assert time.monotonic() - before >= 1.0, "its process is alive: only the beat's full limit is a proof"
    os.kill(owner_process.pid, signal.SIGCONT)
    owner_process.join(LIMIT_S)
    assert owner_process.exitcode == 77
