"""Who may own a run: every proof and every refusal. Real processes that race are in test_claims_race.py."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from seresnet import attempts, claims
from seresnet.attempts import Claim, Owner
from seresnet.claims import Heart, acquire, this_process
from seresnet.durable import Files
from seresnet.errors import CheckpointError, OwnedElsewhereError
from seresnet.run_folder import RunFolder

LIMIT_S = 30
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    return folder


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("watched the beat although there was a proof")

    monkeypatch.setattr(claims.time, "sleep", sleep)


def me(**changes: object) -> Owner:
    return replace(this_process({}), **changes)


def job(**changes: object) -> Owner:
    """This process inside job 7 of cluster c, on a node of its own."""
    return me(**{"cluster": "c", "raw_job_id": "7", "host": "n1", **changes})


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def put_claim(folder: RunFolder, owner: Owner, generation: int = 1, base: str | None = None) -> None:
    assert attempts.publish_claim(folder, Claim(generation=generation, owner=owner, base=base))


@pytest.fixture
def beating(folder: RunFolder) -> Iterator[None]:
    """Generation 1 shows life all the time."""
    heart = Heart(folder, 1, lambda: None, interval_s=0.01).start()
    yield
    heart.stop()


def test_the_first_claim_is_generation_1_and_names_its_owner(folder: RunFolder) -> None:
    claim = acquire(folder, this_process({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}))
    value = json.loads(folder.claim(1).read_text())
    assert (claim.generation, claim.base, value["base"]) == (1, None, None)
    assert (value["owner"]["pid"], value["owner"]["raw_job_id"], value["owner"]["array_job_id"]) == (os.getpid(), "9", "8_3")
    assert claims.read_claims(folder) == [claim] and claims.read_owner(folder, 1) == claim.owner
    assert sorted(path.name for path in folder.attempts.iterdir()) == ["000001.json"]


def test_an_ended_claim_is_free_and_keeps_its_end(folder: RunFolder, no_waiting: None) -> None:
    put_claim(folder, me())
    claims.write_end(folder, 1, "preempted", reason="PreemptTime", step=12)
    assert acquire(folder, me()).generation == 2
    end = claims.read_end(folder, 1)
    assert end is not None and (end.ending, end.reason, end.inferred, end.facts["step"]) == ("preempted", "PreemptTime", False, 12)


@pytest.mark.parametrize(
    ("last", "now", "ending"),
    [
        (job(), job(restart_count=1), "node_failed"),
        (job(host="n9"), job(restart_count=1), "node_failed"),
        (job(), job(task_try=1), "killed"),
        (me(), me(task_try=1), "killed"),
        (me(pid=dead_pid()), me(), "killed"),
    ],
)
def test_what_proves_at_once_that_an_owner_is_gone(folder: RunFolder, no_waiting: None, last: Owner, now: Owner, ending: str) -> None:
    put_claim(folder, last)
    assert acquire(folder, now).generation == 2
    end = claims.read_end(folder, 1)
    assert end is not None and (end.ending, end.inferred) == (ending, True)


@pytest.mark.parametrize(
    ("last", "now"),
    [
        (job(restart_count=2), job(restart_count=1)),
        (job(), job()),
        (job(restart_count=1, pid=os.getppid(), process_started=None), job(task_try=3)),
        (job(cluster="other"), job(restart_count=1)),
        (job(raw_job_id="8"), job(restart_count=1)),
        (job(raw_job_id=None), job(raw_job_id=None, restart_count=1)),
        (me(pid=os.getppid(), process_started=None), me()),
        (me(pid=dead_pid(), host="elsewhere"), me()),
        (me(pid=dead_pid(), boot_id="another"), me()),
        (me(pid=dead_pid(), pid_namespace="another"), me()),
        (me(pid=dead_pid(), pid_namespace=None), me(pid_namespace=None)),
        (me(pid=dead_pid(), boot_id=None), me(boot_id=None)),
    ],
)
def test_what_proves_nothing_while_the_beat_moves(folder: RunFolder, beating: None, last: Owner, now: Owner) -> None:
    put_claim(folder, last)
    with pytest.raises(OwnedElsewhereError, match="its beat moved"):
        acquire(folder, now, poll_s=0.02)
    assert claims.newest_generation(folder) == 1 and claims.read_end(folder, 1) is None


@needs_proc
def test_a_pid_that_another_process_has_now_is_a_dead_owner(folder: RunFolder, no_waiting: None) -> None:
    put_claim(folder, me(pid=os.getppid(), process_started="1"))
    assert acquire(folder, me()).generation == 2


@needs_proc
def test_a_corpse_that_nobody_waited_for_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    state = claims.process_state(process.pid)
    assert state is not None and not claims.is_dead(process.pid, state[1])
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert claims.is_dead(process.pid, state[1])
    process.wait()
    assert claims.is_dead(process.pid, state[1])


def test_the_scheduler_frees_only_what_it_answered_not_to_list(folder: RunFolder, beating: None) -> None:
    last = job(host="n9")
    put_claim(folder, last)
    asked = []
    for word in (True, None):
        with pytest.raises(OwnedElsewhereError):
            acquire(folder, job(raw_job_id="8"), lambda owner, word=word: asked.append(owner) or word, poll_s=0.02)
    assert acquire(folder, job(raw_job_id="8"), lambda owner: False).generation == 2
    assert asked == [last, last]


def test_a_refusal_says_who_where_and_since_when(folder: RunFolder, beating: None) -> None:
    put_claim(folder, job(pid=4711, array_job_id="6_1", started=0.0))
    with pytest.raises(OwnedElsewhereError) as caught:
        acquire(folder, me(), poll_s=0.02)
    for fact in ("generation 1", "process 4711 on n1", "job 6_1 of cluster c", "1970-01-01 00:00:00 UTC", str(folder.path)):
        assert fact in str(caught.value)


def test_a_beat_that_stood_still_frees_the_run_but_not_earlier(folder: RunFolder) -> None:
    put_claim(folder, job(host="n9"))
    Heart(folder, 1, lambda: None).start().stop()
    before = time.monotonic()
    assert acquire(folder, me(), observe_s=0.4, poll_s=0.05).generation == 2
    assert time.monotonic() - before >= 0.4
    end = claims.read_end(folder, 1)
    assert end is not None and end.ending == "unknown" and "stood still" in end.facts["proof"]


def test_an_end_that_is_written_while_we_watch_frees_the_run(folder: RunFolder) -> None:
    put_claim(folder, job(host="n9"))
    threading.Timer(0.2, claims.write_end, (folder, 1, "preempted")).start()
    assert acquire(folder, me(), observe_s=LIMIT_S, poll_s=0.02).generation == 2


def test_time_in_which_the_observer_itself_stood_still_does_not_count(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    put_claim(folder, job(host="n9"))
    looks: list[float] = []
    monkeypatch.setattr(claims.time, "sleep", looks.append)
    monkeypatch.setattr(claims.time, "monotonic", lambda: 3600.0 * len(looks))
    acquire(folder, me(), observe_s=90, poll_s=1)
    assert len(looks) >= 45, "an hour of sleep passed for watching"


def test_a_beat_that_cannot_be_read_proves_nothing(folder: RunFolder) -> None:
    put_claim(folder, job(host="n9"))
    folder.beat(1).mkdir()
    with pytest.raises(OSError, match="directory"):
        acquire(folder, me(), observe_s=0.1, poll_s=0.02)
    assert claims.newest_generation(folder) == 1


def test_a_torn_claim_is_freed_by_its_standing_beat_only(folder: RunFolder) -> None:
    folder.claim(1).write_text('{"owner": {"host"')
    heart = Heart(folder, 1, lambda: None, interval_s=0.01).start()
    with pytest.raises(OwnedElsewhereError, match="cannot be read"):
        acquire(folder, me(), poll_s=0.02)
    heart.stop()
    assert acquire(folder, me(), observe_s=0.1, poll_s=0.02).generation == 2


def test_the_old_result_of_a_run_that_is_carried_on_does_not_free_it(folder: RunFolder, beating: None) -> None:
    put_claim(folder, job(host="n9"))
    folder.result.write_text("{}")
    with pytest.raises(OwnedElsewhereError):
        acquire(folder, me(), poll_s=0.02)


class FailingLink(Files):
    """link() as other file systems have it."""

    def __init__(self, number: int, links_all_the_same: bool = False) -> None:
        self.number, self.links_all_the_same = number, links_all_the_same

    def link(self, source: Path, target: Path) -> None:
        if self.links_all_the_same:
            super().link(source, target)
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO, errno.ETIMEDOUT])
def test_a_link_whose_answer_was_lost_is_a_claim(folder: RunFolder, number: int) -> None:
    assert acquire(folder, me(), files=FailingLink(number, links_all_the_same=True)).generation == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_without_hard_links_a_claim_is_an_exclusive_file(folder: RunFolder, number: int) -> None:
    files = FailingLink(number)
    claim = Claim(generation=1, owner=me(), base=None)
    assert attempts.publish_claim(folder, claim, files)
    assert not attempts.publish_claim(folder, replace(claim, owner=job()), files)
    assert claims.read_claims(folder) == [claim] and len(list(folder.attempts.iterdir())) == 1


def test_a_link_that_failed_is_no_claim(folder: RunFolder) -> None:
    with pytest.raises(OSError, match=r"Input/output|I/O"):
        acquire(folder, me(), files=FailingLink(errno.EIO))
    assert list(folder.attempts.iterdir()) == []


def test_a_lost_race_is_a_refusal_and_the_winner_stays(folder: RunFolder) -> None:
    def lose(_: RunFolder) -> str | None:
        put_claim(folder, job(pid=4711))
        return None

    with pytest.raises(OwnedElsewhereError, match="process 4711"):
        acquire(folder, me(), base=lose)
    owner = claims.read_owner(folder, 1)
    assert owner is not None and owner.pid == 4711


def test_a_claim_made_while_we_looked_for_proof_is_not_jumped_over(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    put_claim(folder, me(pid=dead_pid()))
    put_claim(folder, me(pid=dead_pid()), generation=2)
    monkeypatch.setattr(claims, "newest_claim", lambda *_: claims.read_claim(folder, 1))  # what we saw before somebody took 2
    with pytest.raises(OwnedElsewhereError):
        acquire(folder, me())
    assert claims.newest_generation(folder) == 2


def test_a_run_whose_checkpoints_are_all_damaged_is_not_claimed(folder: RunFolder) -> None:
    (folder.checkpoints / f"g0001-s000000001-{'0' * 16}.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError):
        acquire(folder, me())
    assert claims.newest_generation(folder) == 0


@pytest.mark.parametrize("name", [f"ckpt/g0007-s000000001-{'0' * 16}.safetensors", "metrics/g0007.jsonl"])
def test_a_claim_is_above_every_number_in_use(folder: RunFolder, name: str) -> None:
    (folder.path / name).write_bytes(b"from before somebody moved attempts away")
    assert acquire(folder, me(), base=lambda _: None).generation == 8


def test_what_rank_0_said_before_it_exited_counts_more_than_the_proof(folder: RunFolder, no_waiting: None) -> None:
    put_claim(folder, me(pid=dead_pid()))
    folder.rank_exit(1, 0).write_text(json.dumps({"ending": "diverged", "reason": "loss", "step": 7, "code": 79}))
    acquire(folder, me())
    end = claims.read_end(folder, 1)
    assert end is not None and (end.ending, end.reason, end.facts["step"], end.inferred) == ("diverged", "loss", 7, True)


def test_the_owners_own_word_replaces_an_inferred_end_and_never_the_other_way(folder: RunFolder) -> None:
    for write, ending in ((attempts.write_inferred_end, "unknown"), (claims.write_end, "fenced"), (attempts.write_inferred_end, "killed")):
        write(folder, 1, ending)
    end = claims.read_end(folder, 1)
    assert end is not None and (end.ending, end.inferred) == ("fenced", False)


def test_temps_of_claims_that_lost_are_cleared_away(folder: RunFolder) -> None:
    put_claim(folder, me(pid=dead_pid()))
    lost, racing, end = (folder.attempts / name for name in (".000001.json.ab.tmp", ".000009.json.ab.tmp", ".000001.end.json.ab.tmp"))
    for path in (lost, racing, end):
        path.write_text("")
    acquire(folder, me())
    assert [path.exists() for path in (lost, racing, end)] == [False, True, True]


def test_a_heart_carries_on_the_count_of_its_generation(folder: RunFolder) -> None:
    counts = []
    for _ in range(3):
        Heart(folder, 1, lambda: None).start().stop()
        counts.append(int(folder.beat(1).read_text()))
    assert counts == [1, 2, 3]


def test_a_heart_reports_a_newer_owner_once_and_stops_beating(folder: RunFolder) -> None:
    calls: list[int] = []
    fenced = threading.Event()
    heart = Heart(folder, 1, lambda: (calls.append(1), fenced.set()), interval_s=0.01).start()
    put_claim(folder, me(), generation=2)
    assert fenced.wait(LIMIT_S)
    beat = folder.beat(1).read_bytes()
    time.sleep(0.1)
    heart.stop()
    assert calls == [1] and folder.beat(1).read_bytes() == beat


def test_a_heart_survives_errors_of_the_disk(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    heart = Heart(folder, 1, lambda: None, interval_s=0.01).start()
    with monkeypatch.context() as patch:
        patch.setattr(claims.os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        time.sleep(0.05)
    count = int(folder.beat(1).read_text())
    deadline = time.monotonic() + LIMIT_S
    while int(folder.beat(1).read_text()) <= count:
        assert time.monotonic() < deadline, "no more beats after an error"
        time.sleep(0.01)
    heart.stop()


def test_is_alive_is_a_young_beat_without_an_end(folder: RunFolder) -> None:
    assert not claims.is_alive(folder, 1)
    Heart(folder, 1, lambda: None).start().stop()
    assert claims.is_alive(folder, 1)
    os.utime(folder.beat(1), (time.time() - 100, time.time() - 100))
    assert not claims.is_alive(folder, 1)
    os.utime(folder.beat(1), (time.time() + 3600, time.time() + 3600))
    assert not claims.is_alive(folder, 1), "a clock that is ahead keeps nobody alive"
    os.utime(folder.beat(1))
    claims.write_end(folder, 1, "finished")
    assert not claims.is_alive(folder, 1)
