"""`python -m hpc.move` takes nothing away from anybody: who still works in a sweep is found and named."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import Books
from fake_sweep import FakeSweep
from launch_bench import Bench
from moving import refusal

from hpc import locks, move, slurm, sweep_users
from hpc.launch_session import planning
from hpc.paths import Plan, Submission, Submissions
from hpc.slurm import ListedJob
from seresnet import attempts, claims
from seresnet.attempts import Claim, Owner
from seresnet.errors import SubmissionError, ToolkitError
from seresnet.run_folder import RunFolder


@pytest.fixture
def away(tmp_path: Path) -> Path:
    (tmp_path / "away").mkdir()
    return tmp_path / "away"


# --- who is at work ---


def sent(sweep: FakeSweep, mode: Any = "slurm", **changes: Any) -> None:
    told: dict[str, Any] = {"job_id": "101", "state": "submitted", **changes}
    entry = Submission(id="0001", created=0, code="0001", mode=mode, tasks=tuple(sweep.plan.tasks), **told)
    Submissions().with_entry(entry).write(sweep.folder)


def listed(monkeypatch: pytest.MonkeyPatch, jobs: dict[str, ListedJob] | None, cluster: str | None = "here") -> None:
    monkeypatch.setattr(slurm, "listed_jobs", lambda: jobs)
    monkeypatch.setattr("hpc.queues.this_cluster", lambda: cluster)


def test_listed_jobs_are_named(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = FakeSweep(tmp_path)
    sent(sweep)
    jobs = {
        f"{job}": ListedJob(job_id=job, name=name, state=state, reason="None")
        for job, name, state in (
            ("101_0", "demo-0a1b2c3d-0001", "RUNNING"),
            ("102_0", "demo-0a1b2c3d-smoke-0001", "PENDING"),
            ("103_0", "demo-ffffffff-0001", "RUNNING"),
        )
    }
    listed(monkeypatch, jobs)
    text = refusal(sweep, away / "demo")
    assert "job 101_0 (demo-0a1b2c3d-0001) is RUNNING" in text and "job 102_0" in text and "103" not in text
    listed(monkeypatch, {})
    assert move.move(sweep.folder.path, away / "demo")


def test_a_real_client_is_asked_by_the_sweeps_own_name(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.launch()
    books, name = Books(tmp_path, monkeypatch), bench.sent[0]["job_name"]
    monkeypatch.setattr(slurm, "listed_jobs", REAL_LISTED)
    (books.path / "jobs").write_text(f"101_0|{name}\n")
    with pytest.raises(SubmissionError, match=rf"job 101_0 \({name}\) is PENDING"):
        move.move(bench.sweep.path, tmp_path / "new")
    (books.path / "jobs").unlink()
    assert move.move(bench.sweep.path, tmp_path / "new")


REAL_LISTED = slurm.listed_jobs


def test_silence_of_the_scheduler_is_no_proof_unless_all_is_finished(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = FakeSweep(tmp_path)
    sent(sweep)
    listed(monkeypatch, None)
    assert "submission 0001, job 101: squeue does not answer" in refusal(sweep, away / "demo")
    sweep.finish_all()
    assert move.move(sweep.folder.path, away / "demo")


def test_another_clusters_queue_is_no_proof(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = FakeSweep(tmp_path)
    sent(sweep, cluster="there")
    listed(monkeypatch, {})
    assert "Type this on a login node of there" in refusal(sweep, away / "demo")


def test_a_submission_that_was_forgotten_counts(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = FakeSweep(tmp_path)
    listed(monkeypatch, None)
    assert "submission 0001: squeue does not answer" in refusal(sweep, away / "demo")


def test_launchers_and_mirrors_at_work_are_named(tmp_path: Path, away: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    sweep.folder.logs.mkdir()
    mirror = sweep.of("se", 0).path / "wandb/mirror.lock"
    mirror.parent.mkdir()
    with locks.holding(sweep.folder.launch_lock):
        assert "a launcher is at work here" in refusal(sweep, away / "demo")
    with locks.holding(sweep.folder.local_lock("0001")), locks.holding(mirror):
        text = refusal(sweep, away / "demo")
    assert "a launcher trains submission 0001" in text and "hpc.mirror publishes it right now" in text


def own(folder: RunFolder, owner: Owner) -> None:
    attempts.publish_claim(folder, Claim(generation=claims.newest_generation(folder) + 1, owner=owner, base=None))


def test_a_live_process_is_named_and_a_dead_one_is_not_waited_for(tmp_path: Path, away: Path) -> None:
    sweep = FakeSweep(tmp_path)
    sent(sweep, mode="local", job_id=None)
    here = claims.this_process()
    own(sweep.of("se", 0), here)
    assert f"process {os.getpid()} on" in refusal(sweep, away / "demo")
    own(sweep.of("se", 0), Owner(**{**vars(here), "process_started": "1"}))
    begun = time.monotonic()
    assert move.move(sweep.folder.path, away / "demo") and time.monotonic() - begun < 30


def test_elsewhere_only_a_beat_that_stands_still_lets_go(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    folder, said = sweep.of("se", 0), list[str]()
    own(folder, Owner(host="elsewhere", pid=1))
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(0.02):
            folder.beat(1).write_text(str(count := count + 1))

    sent(sweep, mode="local", job_id=None)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        found = sweep_users.users(sweep.folder, Plan.read(sweep.folder), say=said.append, watch_s=20)
    finally:
        stop.set()
        thread.join()
    assert "process 1 on elsewhere" in found[0] and "its beat moves" in found[0]
    assert sweep_users.users(sweep.folder, Plan.read(sweep.folder), say=said.append, watch_s=0.1) == [] and "watching for" in said[-1]


def test_a_launcher_that_waited_for_the_lock_does_not_bring_the_old_folder_back(tmp_path: Path, away: Path) -> None:
    sweep, faults = FakeSweep(tmp_path).finish_all(), list[str]()

    def wait() -> None:
        try:
            with planning(sweep.folder):
                faults.append("it planned")
        except ToolkitError as error:
            faults.append(str(error))

    with locks.holding(sweep.folder.launch_lock):
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        os.rename(sweep.folder.path, away / "demo")
    thread.join()
    assert "moved or removed by somebody else just now" in faults[0] and not sweep.folder.path.exists()
