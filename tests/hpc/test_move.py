"""`python -m hpc.move`: an idle sweep goes as a whole, killed anywhere it goes on, and nothing is taken away from anybody."""

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import Books
from fake_sweep import FakeSweep
from launch_bench import Bench

from hpc import locks, move, slurm, sweep_users, tree_copy
from hpc.launch_session import planning
from hpc.paths import Plan, Submission, Submissions, SweepFolder
from hpc.slurm import ListedJob
from seresnet import attempts, claims
from seresnet.attempts import Claim, Owner
from seresnet.errors import ConfigError, SubmissionError, ToolkitError
from seresnet.run_folder import RunFolder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Names and bytes; without what a lock holds, and without plan.json, whose `source` goes with the place."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock" and path.name != "plan.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(params=["same file system", "another file system"])
def sweep(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    """A finished sweep; for the second leg rename says what it says between file systems."""
    if request.param == "another file system":
        refuse_renames_of(tmp_path / "demo", monkeypatch)
    return FakeSweep(tmp_path).finish_all()


def refuse_renames_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if Path(source) == folder and Path(target).parent != folder.parent:
            raise OSError(18, "Invalid cross-device link", str(source))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)


@pytest.fixture
def away(tmp_path: Path) -> Path:
    (tmp_path / "away").mkdir()
    return tmp_path / "away"


def test_a_finished_sweep_goes_whole_and_leaves_nothing(sweep: FakeSweep, away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = sweep.of("se", 0).path / "latest"
    link.symlink_to(sweep.of("se", 0).metrics)
    before, times = snapshot(sweep.folder.path), sweep.of("se", 0).claim(1).stat().st_mtime_ns
    assert move.main([str(sweep.folder.path), str(away / "other")]) == 0
    assert snapshot(away / "other") == before
    assert [path.name for path in sweep.folder.path.parent.iterdir() if "demo" in path.name] == []
    assert [path.name for path in away.iterdir()] == ["other"] and not (away / "other/.moved.json").exists()
    moved = RunFolder(path=away / "other" / sweep.of("se", 0).path.name)
    assert moved.claim(1).stat().st_mtime_ns == times, "batch words are judged by age"
    assert f"--runs-dir {away / 'other'}" in capsys.readouterr().out


def test_links_into_the_sweep_do_not_name_the_old_place(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()
    (sweep.of("se", 0).path / "latest").symlink_to(sweep.of("se", 0).metrics)
    move.move(sweep.folder.path, away / "demo")
    link = away / "demo" / sweep.of("se", 0).path.name / "latest"
    assert (str(link.readlink()), link.is_dir()) == ("metrics", True)


def test_real_file_systems(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    target = Path(tempfile.mkdtemp(dir=shm))
    try:
        sweep = FakeSweep(tmp_path).finish_all()
        before = snapshot(sweep.folder.path)
        move.move(sweep.folder.path, target / "demo")
        assert snapshot(target / "demo") == before and not sweep.folder.path.exists()
    finally:
        shutil.rmtree(target)


# --- names ---


@pytest.mark.parametrize(
    ("target", "said"),
    [("taken", "exists. Give a name that is free"), ("none/demo", "mkdir -p"), ("demo/inside", "lies in"), ("demo", "exists")],
)
def test_bad_targets_are_refused(tmp_path: Path, target: str, said: str) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    (tmp_path / "taken").mkdir()
    with pytest.raises(SubmissionError, match=said):
        move.move(sweep.folder.path, tmp_path / target)
    assert sweep.folder.plan.exists()


def test_what_is_no_sweep_or_a_link_to_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    (tmp_path / "link").symlink_to(sweep.folder.path)
    assert move.main([str(tmp_path / "link"), str(tmp_path / "new")]) == 2
    assert "is a link" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="Is this the folder of a sweep"):
        move.move(tmp_path / "nothing", tmp_path / "new")


# --- who is at work ---


def refusal(sweep: FakeSweep, target: Path, **told: Any) -> str:
    with pytest.raises(SubmissionError) as caught:
        move.move(sweep.folder.path, target)
    assert sweep.folder.plan.exists() and not target.exists()
    return str(caught.value)


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
    assert "Move it from a login node of there" in refusal(sweep, away / "demo")


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


# --- crashes and bad disks ---

pytest_fork = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has loaded much")


def steps() -> Iterator[tuple[Any, str]]:
    yield from ((os, "rename"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (shutil, "copystat"))


def killed_at(event: int, source: Path, target: Path) -> bool:
    """Move in a child that kills itself before its event-th step; False if it came to its end before."""
    child = os.fork()
    if not child:
        seen = 0

        def counted(real: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal seen
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for module, name in steps():
            setattr(module, name, counted(getattr(module, name)))
        try:
            move.move(source, target)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the move failed by itself"
    return os.WIFSIGNALED(status)


@pytest_fork
def test_killed_at_any_step_one_place_is_whole_and_the_same_command_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = FakeSweep(tmp_path / "pattern", seeds=1, epochs=1).finish_all()
    (first.folder.path / "trials").mkdir()
    before = snapshot(first.folder.path)
    event, reached, stride = 1, 0, 8
    while True:
        work = tmp_path / f"at-{event}"
        source, target = work / "demo", work / "away" / "demo"
        target.parent.mkdir(parents=True)
        shutil.copytree(first.folder.path, source)
        with monkeypatch.context() as patch:
            refuse_renames_of(source, patch)
            was_killed = killed_at(event, source, target)
            places = [place for place in (source, target) if place.exists() and snapshot_without_mark(place) == before]
            assert places, f"killed at step {event}: no place is whole"
            assert not source.exists() or source in places, f"killed at step {event}: half of the old one"
            assert not target.exists() or target in places, f"killed at step {event}: half of the new one"
            if was_killed and not (target.exists() and not source.exists() and not (target / ".moved.json").exists()):
                move.move(source, target)
        assert snapshot(target) == before and [path.name for path in work.iterdir()] == ["away"], f"killed at step {event}"
        assert [path.name for path in target.parent.iterdir()] == ["demo"], f"killed at step {event}"
        shutil.rmtree(work)
        if not was_killed:
            break
        reached, event = event, event + stride
    assert reached > 60, "steps were not counted"


def snapshot_without_mark(place: Path) -> dict[str, bytes]:
    return {name: text for name, text in snapshot(place).items() if name != ".moved.json"}


def test_a_file_that_reads_back_differently_stops_the_move(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()
    real = shutil.copystat

    def garble(source: Path, target: Path) -> None:
        real(source, target)
        if target.name == "result.json":
            target.write_bytes(target.read_bytes()[:-1] + b"x")

    before = snapshot(sweep.folder.path)
    monkeypatch.setattr(shutil, "copystat", garble)
    assert "bad disk" in refusal(sweep, away / "demo")
    assert snapshot(sweep.folder.path) == before and [*away.iterdir()] == [], "a draft was left"


def test_a_full_disk_is_one_line_and_leaves_no_draft(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()

    def full(path: Path, new: Path) -> None:
        raise OSError(28, "No space left on device", str(new))

    with monkeypatch.context() as patch:
        patch.setattr(tree_copy, "_copy_file", full)
        assert f"No space left on device. The sweep is whole in {sweep.folder.path}" in refusal(sweep, away / "demo")
    assert [*away.iterdir()] == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: os.terminal_size((1, 1)) and type("U", (), {"free": 10})())
    assert "GB free" in refusal(sweep, away / "demo")


def test_a_source_that_is_written_meanwhile_is_not_removed(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()
    real = tree_copy._copy_file

    def and_write(path: Path, new: Path) -> None:
        real(path, new)
        (sweep.folder.path / "late.txt").write_text("x")

    monkeypatch.setattr(tree_copy, "_copy_file", and_write)
    assert "was changed while it was copied" in refusal(sweep, away / "demo")


def test_after_a_crash_an_old_place_that_was_used_is_not_removed(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()
    with monkeypatch.context() as patch:
        patch.setattr(move, "_remove", lambda places: None)
        move.move(sweep.folder.path, away / "demo")
    (sweep.folder.path / "new.json").write_text("{}")
    with pytest.raises(SubmissionError, match="was used after it had been copied"):
        move.move(sweep.folder.path, away / "demo")
    (sweep.folder.path / "new.json").unlink()
    assert move.move(sweep.folder.path, away / "demo") and not sweep.folder.path.exists()


# --- launching where it is now ---


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("name", ["demo", "other"])
def test_a_relaunch_at_the_new_place_sends_what_is_missing_and_nothing_at_the_old_one(
    bench: Bench, tmp_path: Path, by_hand: bool, name: str
) -> None:
    bench.launch()
    bench.listed = {}
    target = tmp_path / "deep" / "er" / name
    target.parent.mkdir(parents=True)
    if by_hand:
        shutil.move(bench.sweep.path, target)
    else:
        move.move(bench.sweep.path, target)
    code, text = bench.launch(runs_dir=target.parent if name == "demo" else target)
    assert (code, len(bench.sent)) == (0, 2), text
    assert bench.sent[1]["folder"] == target / "logs" and Plan.read(SweepFolder(target)).sweep == "demo"
    assert not bench.sweep.path.exists()


def test_an_edited_file_needs_renamed_after_a_move_by_hand(bench: Bench, tmp_path: Path) -> None:
    bench.launch()
    (tmp_path / "far/away").mkdir(parents=True)
    shutil.move(bench.sweep.path, tmp_path / "far/away/demo")
    bench.file.write_text(bench.file.read_text() + "# edited\n")
    with pytest.raises(ConfigError, match="or its folder, was moved"):
        bench.launch(runs_dir=tmp_path / "far/away")


def test_a_relaunch_leaves_alone_what_jobs_of_the_old_place_may_have(bench: Bench, tmp_path: Path) -> None:
    bench.launch()
    shutil.move(bench.sweep.path, tmp_path / "demo")
    _, text = bench.launch(runs_dir=tmp_path)
    assert len(bench.sent) == 1 and "4 of 4 runs are on their way" in text, text
    bench.listed = None
    with_silence = bench.launch(runs_dir=tmp_path)[1]
    assert len(bench.sent) == 1, with_silence


def test_status_names_the_folder_that_a_launch_would_not_find(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hpc import status

    bench.launch("site.runs_dir=runs")
    bench.listed = {}
    move.move(bench.sweep.path, tmp_path / "other")
    status.main([str(tmp_path / "other")])
    assert "--runs-dir other" in capsys.readouterr().out


def test_the_record_holds_no_absolute_path(sweep: FakeSweep, away: Path) -> None:
    move.move(sweep.folder.path, away / "demo")
    assert str(sweep.folder.path) not in json.dumps(json.loads((away / "demo/plan.json").read_text()))
