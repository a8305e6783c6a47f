"""A run's claims under attack: junk in the files, errors of the disk, observers that sleep, skipped numbers, zombies that write."""

import errno
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from seresnet import attempts, claims, process_identity
from seresnet.attempts import Claim, Owner
from seresnet.claims import Heart, acquire, this_process
from seresnet.durable import Files, write_durably
from seresnet.errors import OwnedElsewhereError
from seresnet.run_folder import RunFolder

JUNK = (None, True, -1, 0, 2**70, 1e300, "x", "", [], {}, [1], {"x": 1})
OTHER = os.getppid()  # a process that lives, and is not this one


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    return folder


@pytest.fixture
def beating(folder: RunFolder) -> Iterator[None]:
    """Generation 1 shows life all the time."""
    heart = Heart(folder, 1, lambda: None, interval_s=0.001).start()
    yield
    heart.stop()


def me(**changes: object) -> Owner:
    return replace(this_process({}), **changes)


def alive(**changes: object) -> Owner:
    """An owner of which nothing but its beat can say whether it lives."""
    return me(host="elsewhere", pid=OTHER, process_started=None, **changes)


def put_claim(folder: RunFolder, owner: Owner, generation: int = 1) -> None:
    assert attempts.publish_claim(folder, Claim(generation=generation, owner=owner, base=None))


def assert_refused(folder: RunFolder, owner: Owner | None = None, match: str = "", **how: object) -> None:
    before = claims.newest_generation(folder)
    with pytest.raises(OwnedElsewhereError, match=match):
        acquire(folder, owner or me(), **{"observe_s": 30, "poll_s": 0.005, **how})
    assert claims.newest_generation(folder) == before, "refused, and claimed all the same"


class Disk(Files):
    """The real disk, but for one call of which something else happens first."""

    def __init__(self, call: str, first: Callable[..., None]) -> None:
        self._call, self._first = call, first

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if name.startswith("_") or name != self._call:
            return found

        def call(*args: object) -> object:
            self._first(*args)
            return found(*args)

        return call


# --- junk ---


@pytest.mark.parametrize("key", [key for key in asdict(me()) if key != "process_started"])
def test_a_live_owner_keeps_its_run_whatever_stands_in_its_claim(folder: RunFolder, beating: None, key: str) -> None:
    for junk in JUNK:
        owner = {**asdict(me(pid=OTHER, process_started=None)), key: junk}
        folder.claim(1).write_text(json.dumps({"schema": 1, "generation": 1, "base": None, "owner": owner}))
        assert_refused(folder, match="its beat moved")


def test_a_live_owner_keeps_its_run_whatever_became_of_its_claims_bytes(
    folder: RunFolder, beating: None, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(request.config.getoption("--seed"))
    put_claim(folder, me(pid=OTHER, process_started=None))
    whole = folder.claim(1).read_bytes()
    structure = [place for place, byte in enumerate(whole) if byte in b'{}":,\n']
    for _ in range(60):
        torn = bytearray(whole[: chance.choice([len(whole), chance.randrange(len(whole))])])
        # Of the structure only: a digit of the pid changed for another is a claim of another process, and that one may be dead.
        for place in chance.sample(structure, 3):
            torn[place : place + 1] = bytes([chance.randrange(256)]) if place < len(torn) else b""
        folder.claim(1).write_bytes(torn)
        assert claims.read_owner(folder, 1) is None or claims.read_owner(folder, 1).pid == OTHER
        assert_refused(folder, match="its beat moved")


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe", b"-", b"9" * 5000, b"1e9", b"\x00" * 21])
def test_a_beat_that_is_junk_shows_life_when_it_changes_and_none_when_it_stands(folder: RunFolder, junk: bytes) -> None:
    put_claim(folder, alive())
    folder.beat(1).write_bytes(junk)
    timer = threading.Timer(0.05, lambda: Heart(folder, 1, lambda: None).start().stop())
    timer.start()
    assert_refused(folder, match="its beat moved")
    timer.join()
    assert folder.beat(1).read_bytes()[:21] == b"%020d\n" % 1, "a heart begins at 1 where there was no count"
    folder.beat(1).write_bytes(junk)
    assert acquire(folder, me(), observe_s=0.05, poll_s=0.01).generation == 2


def test_a_first_beat_while_we_watch_is_life(folder: RunFolder) -> None:
    put_claim(folder, alive())
    timer = threading.Timer(0.05, lambda: Heart(folder, 1, lambda: None).start().stop())
    timer.start()
    assert_refused(folder, match="its beat moved")
    timer.join()


def test_a_restart_count_that_is_no_number_is_the_first_start() -> None:
    assert [this_process({"SLURM_RESTART_COUNT": text}).restart_count for text in ("", "-1", "x", "³", "2")] == [0, 0, 0, 0, 2]


# --- proofs that are none ---


@pytest.mark.parametrize("restarts", [(0, 0), (1, 0), (1, 1)])
def test_two_processes_of_one_job_count_their_tries_each_for_itself(folder: RunFolder, beating: None, restarts: tuple[int, int]) -> None:
    last, now = restarts
    job = {"cluster": "c", "raw_job_id": "7"}
    put_claim(folder, me(pid=OTHER, process_started=None, restart_count=last, **job))
    assert_refused(folder, me(restart_count=now, task_try=5, **job), match="its beat moved")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_proc_of_another_pid_namespace_says_nothing_about_our_pids(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_identity.process_state(OTHER) is not None
    monkeypatch.setattr(process_identity.os, "getpid", lambda: 1)  # what we are called inside a container
    assert process_identity.process_state(OTHER) is None
    assert not process_identity.is_dead(OTHER, "begun at another time")


@pytest.mark.parametrize("call", ["read", "names"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("nth", range(1, 12, 3))
def test_an_error_of_reading_is_no_proof(folder: RunFolder, beating: None, call: str, number: int, nth: int) -> None:
    put_claim(folder, alive())
    calls: list[object] = []

    def fail(*args: object) -> None:
        calls.append(args)
        if len(calls) >= nth:
            raise OSError(number, os.strerror(number))

    with pytest.raises((OSError, OwnedElsewhereError)):
        acquire(folder, me(), observe_s=0.05, poll_s=0.01, files=Disk(call, fail))
    assert claims.newest_generation(folder) == 1


# --- an observer that is late ---


def test_an_owner_that_wakes_up_before_we_claim_keeps_its_run(folder: RunFolder) -> None:
    put_claim(folder, alive())

    def choose(_: RunFolder) -> None:  # reading the checkpoints took a while, or we were stopped in it
        Heart(folder, 1, lambda: None).start().stop()

    assert_refused(folder, match="moved again", observe_s=0.05, base=choose)


def test_a_run_that_was_finished_while_we_watched_is_not_claimed_again(folder: RunFolder) -> None:
    put_claim(folder, alive())
    threading.Timer(0.05, claims.write_end, (folder, 1, "finished")).start()
    assert_refused(folder, match="finished the run", finished=lambda _: True)
    assert acquire(folder, me(), finished=lambda _: False).generation == 2


@pytest.mark.parametrize("taken", [2, 3, 7])
def test_a_number_below_a_newer_claim_is_no_claim(folder: RunFolder, taken: int) -> None:
    put_claim(folder, alive())
    claims.write_end(folder, 1, "preempted")
    begun = []

    def claim_first(*_: object) -> None:
        if not begun:
            begun.append(True)
            put_claim(folder, alive(), generation=taken)

    with pytest.raises(OwnedElsewhereError):
        acquire(folder, me(), files=Disk("link", claim_first))
    assert claims.newest_generation(folder) == taken


# --- what a zombie must not write ---


def test_what_is_guarded_keeps_its_old_content_and_leaves_no_temp_file(folder: RunFolder) -> None:
    folder.run_yaml.write_text("of the newer owner")
    put_claim(folder, me(), generation=2)
    with pytest.raises(OwnedElsewhereError, match="generation 2 owns the run now, generation 1 writes no more"):
        write_durably(folder.run_yaml, b"of the zombie", guard=lambda: claims.refuse_if_fenced(folder, 1))
    assert (folder.run_yaml.read_text(), list(folder.path.glob(".*"))) == ("of the newer owner", [])
    write_durably(folder.run_yaml, b"of its owner", guard=lambda: claims.refuse_if_fenced(folder, 2))
    assert folder.run_yaml.read_text() == "of its owner"


def test_an_owner_that_cannot_look_goes_on(folder: RunFolder) -> None:
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    put_claim(folder, me(), generation=2)
    claims.refuse_if_fenced(folder, 1, Disk("names", stale))
    with pytest.raises(OwnedElsewhereError):  # as soon as it can look
        claims.refuse_if_fenced(folder, 1)
