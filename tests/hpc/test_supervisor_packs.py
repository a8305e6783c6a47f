"""Concurrent packs against the stand-in rank: slots, isolation, retries after siblings, one stop for all, who is blamed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_supervisor import PROGRAM, _endings, _sweep, _when

from hpc import attempt_runner, code_snapshot, hold, pack_runner, supervisor, task
from hpc.memory_kills import MemoryKills, count_kills
from hpc.paths import Plan, PlannedFolder, Submission, Submissions, SweepFolder
from hpc.ranks import Description
from hpc.requeue import Verdict
from hpc.slots import Slot, slots
from seresnet import attempts, claims
from seresnet.run_folder import RunFolder, RunRecord
from seresnet.signals import StopFlag

pytestmark = pytest.mark.usefixtures("no_slurm")


def _pack(tmp_path: Path, *acts: str, at_a_time: int, site: dict[str, object] | None = None) -> SweepFolder:
    sweep = _sweep(tmp_path, *acts)
    entry = Submission(id="0001", created=0.0, code="0001", mode="slurm", tasks=("0001/0",), at_a_time=at_a_time, site=site or {})
    Submissions(submissions=(entry,)).write(sweep)
    sweep.code("0001").mkdir(parents=True)
    (sweep.code("0001") / code_snapshot.MARK).write_text(f'{{"digest": "{code_snapshot.code_digest()}"}}')
    return sweep


def _run(sweep: SweepFolder, stop: StopFlag | None = None) -> int:
    return int(supervisor.run_task(sweep, "0001/0", stop=stop or StopFlag(), rank_command=PROGRAM))


def _end(sweep: SweepFolder, run: str, generation: int = 1) -> claims.End:
    end = claims.read_end(RunFolder(path=sweep.path / run), generation)
    assert end is not None, f"{run} has no end record of attempt {generation}"
    return end


def _environment(sweep: SweepFolder, run: str) -> dict[str, str]:
    lines = (sweep.path / run / "environment-0").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


# --- slots ---


def test_gpus_are_slices_of_what_slurm_gave_and_cpus_are_divided() -> None:
    given = {"CUDA_VISIBLE_DEVICES": "GPU-5e1f,MIG-77aa"}
    found = slots(4, given, (2, 3, 8, 9, 10))
    assert [slot.env["CUDA_VISIBLE_DEVICES"] for slot in found] == ["GPU-5e1f", "MIG-77aa", "GPU-5e1f", "MIG-77aa"]
    assert [slot.cpus for slot in found] == [(2,), (3,), (8,), (9, 10)]


def test_fewer_cpus_than_slots_are_shared_by_all() -> None:
    assert [slot.cpus for slot in slots(3, {}, (0, 1))] == [None] * 3
    assert slots(1, {"CUDA_VISIBLE_DEVICES": "0,1"}, (0, 1)) == (Slot(),)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot bind processes to CPUs")
def test_runs_side_by_side_get_a_gpu_and_cpus_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,GPU-a")
    sweep = _pack(tmp_path, "await run1/cpus-0 finish", "await run0/cpus-0 finish", at_a_time=2)
    assert _run(sweep) == 0
    assert [_environment(sweep, run)["CUDA_VISIBLE_DEVICES"] for run in ("run0", "run1")] == ["GPU-b", "GPU-a"]
    cpus = [(sweep.path / run / "cpus-0").read_text().split() for run in ("run0", "run1")]
    if len(os.sched_getaffinity(0)) > 1:
        assert cpus[0] and cpus[1] and not set(cpus[0]) & set(cpus[1]), cpus


def test_more_threads_than_cpus_are_said_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc.attempt_runner.own_cpus", lambda: (0,))
    sweep = _pack(tmp_path, "finish", "finish", at_a_time=2)
    assert _run(sweep) == 0
    assert "2 runs at a time x train.threads=1 share 1 CPUs of the task" in (sweep.path / "run0/log.txt").read_text()


def test_no_more_runs_at_a_time_than_asked_for(tmp_path: Path) -> None:
    # The third waits for a file that only a run beside it could make: it must come when the others are over.
    sweep = _pack(tmp_path, "await run1/cpus-0 finish", "await run0/cpus-0 finish", "finish", at_a_time=2)
    assert _run(sweep) == 0
    ended = min((sweep.path / run / "attempts/000001.end.json").stat().st_mtime for run in ("run0", "run1"))
    assert (sweep.path / "run2/attempts/000001.json").stat().st_mtime >= ended - 0.2


def test_a_run_of_two_ranks_is_refused_in_a_concurrent_pack_and_its_siblings_run(tmp_path: Path) -> None:
    sweep = _pack(tmp_path, "finish", "finish", at_a_time=2)
    folder = RunFolder(path=sweep.path / "run0")
    record = RunRecord.read(folder)
    record.config["train"]["ranks"] = 2
    record.write(folder)
    assert (_run(sweep), _endings(sweep, "run0"), _endings(sweep, "run1")) == (78, ["user_error"], ["finished"])
    assert "which wants 1 rank each" in str(_end(sweep, "run0").reason)


# --- isolation ---


@pytest.mark.parametrize(("act", "ending"), [("exit 1", "crashed"), ("kill", "killed"), ("exit 76", "hung"), ("exit 80", "out_of_memory")])
def test_a_run_that_fails_leaves_its_siblings_alone_and_comes_again_after_them(tmp_path: Path, act: str, ending: str) -> None:
    sweep = _pack(
        tmp_path, f"{act}; finish", "await run0/attempts/000001.end.json finish", "await run0/attempts/000001.end.json finish", at_a_time=3
    )
    assert _run(sweep) == 0
    assert [_endings(sweep, run) for run in ("run0", "run1", "run2")] == [[ending, "finished"], ["finished"], ["finished"]]
    siblings = max((sweep.path / run / "attempts/000001.end.json").stat().st_mtime for run in ("run1", "run2"))
    assert (sweep.path / "run0/attempts/000002.json").stat().st_mtime >= siblings


@pytest.mark.skipif(sys.platform != "linux", reason="stops a process with SIGSTOP")
def test_a_frozen_run_is_killed_by_the_backup_and_its_sibling_finishes(tmp_path: Path) -> None:
    sweep = _pack(tmp_path, "freeze; finish", "await run0/attempts/000001.end.json finish", at_a_time=2)
    before = time.monotonic()
    assert _run(sweep) == 0
    assert (_endings(sweep, "run0"), _endings(sweep, "run1")) == (["hung", "finished"], ["finished"])
    assert time.monotonic() - before < 20
    assert "nor did its own watchdog" in str(_end(sweep, "run0").reason)


def test_three_failures_use_up_the_budget_of_one_run_only(tmp_path: Path) -> None:
    sweep = _pack(tmp_path, "kill; exit 1; exit 76; finish", "finish", "save kill; kill; finish", at_a_time=3)
    assert _run(sweep) == 76
    assert _endings(sweep, "run0") == ["killed", "crashed", "hung"]
    assert (_endings(sweep, "run1"), _endings(sweep, "run2")) == (["finished"], ["killed", "killed", "finished"])
    assert [_end(sweep, "run0", generation).facts["budget"] for generation in (1, 2, 3)] == ["failures"] * 3
    assert [_end(sweep, "run2", generation).facts["budget"] for generation in (1, 2, 3)] == [None, "failures", None]


def test_ranks_that_cannot_be_started_are_a_crash_of_that_run_alone(tmp_path: Path) -> None:
    sweep = _pack(tmp_path, "finish", "finish", at_a_time=2)
    (sweep.path / "run0/log.txt").mkdir()  # its output has no place to go
    assert _run(sweep) == 1
    assert (_endings(sweep, "run0"), _endings(sweep, "run1")) == (["crashed"] * 3, ["finished"])


def test_a_run_that_cannot_even_be_looked_at_is_given_up_and_its_sibling_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why_stop = attempt_runner.why_stop

    def raising(told: task.Task, folder: RunFolder, record: RunRecord) -> str | None:
        if record.run_id == "run0":
            raise ValueError("a fault of ours")
        return why_stop(told, folder, record)

    monkeypatch.setattr(attempt_runner, "why_stop", raising)
    sweep = _pack(tmp_path, "finish", "finish", at_a_time=2)
    assert _run(sweep) == 1
    assert _endings(sweep, "run0") == [] and _endings(sweep, "run1") == ["finished"]


def test_a_disk_that_fails_at_an_end_takes_no_sibling_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(told: object, ended: Description, *more: object) -> dict[str, object]:
        if ended.ending == "crashed":
            raise OSError(116, "Stale file handle")
        return {}

    monkeypatch.setattr(attempt_runner, "end_facts", failing)
    sweep = _pack(tmp_path, "exit 1; finish", "finish", at_a_time=2)
    assert _run(sweep) == 0
    assert [_endings(sweep, run)[-1] for run in ("run0", "run1")] == ["finished"] * 2


def test_failures_that_cannot_be_written_down_use_up_the_budget_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **facts: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(claims, "write_end", refused)
    monkeypatch.setattr(attempts, "write_inferred_end", refused)
    sweep = _pack(tmp_path, "exit 1; exit 1; exit 1; finish", at_a_time=1)
    assert _run(sweep) == 1
    assert len(claims.read_claims(RunFolder(path=sweep.path / "run0"))) == 3


def test_a_claim_that_takes_its_time_delays_no_sibling(tmp_path: Path) -> None:
    sweep = _pack(tmp_path, "finish", "finish", at_a_time=2)
    folder = RunFolder(path=sweep.path / "run0")
    claim = claims.acquire(folder, claims.Owner(host="elsewhere", pid=1))
    heart = claims.Heart(folder, claim.generation, lambda: None, interval_s=8.0).start()
    stop = StopFlag()
    _when(sweep.path / "run1/attempts/000001.end.json", lambda: setattr(stop, "signal_name", "SIGTERM"))
    before = time.monotonic()
    try:
        assert (_run(sweep, stop), _endings(sweep, "run1")) == (75, ["finished"])
        assert time.monotonic() - before < 7, "the stop waited for a beat that was being watched"
    finally:
        heart.stop()


# --- stops ---


def test_a_stop_reaches_all_at_once_and_takes_one_look_at_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def judge(job: task.Job) -> Verdict:
        looks.append(time.monotonic())
        return Verdict(ending="preempted", requeue=True, reason="JobState=RUNNING with a PreemptTime")

    monkeypatch.setattr(task.Job, "judge", judge)
    sweep, stop = _pack(tmp_path, "serve", "serve", "serve", "finish", at_a_time=3), StopFlag()
    stop.install()
    _when_all([sweep.path / f"run{index}/serving-1-0" for index in range(3)], lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert _run(sweep, stop) == 75
    assert [_endings(sweep, f"run{index}") for index in range(4)] == [["preempted"]] * 3 + [[]]
    assert len(looks) == 2, "one look for all end records, and one right before the requeue"
    assert _end(sweep, "run0").facts["requeue"] is True and _end(sweep, "run0").facts["budget"] is None


def test_deaf_siblings_are_killed_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc.ranks.STOP_LIMIT_S", 1.0)
    sweep, stop = _pack(tmp_path, "deaf", "deaf", "serve", at_a_time=3), StopFlag()
    times: list[float] = []

    def tell() -> None:
        times.append(time.monotonic())
        stop.signal_name = "SIGTERM"

    _when_all([sweep.path / f"run{index}/serving-1-0" for index in range(3)], tell)
    assert (_run(sweep, stop), [_endings(sweep, f"run{index}") for index in range(3)]) == (75, [["stopped"]] * 3)
    assert time.monotonic() - times[0] < 4, "one after the other would not fit into a grace"


# --- blame ---


def test_under_mps_siblings_of_a_gpu_fault_are_interrupted_and_not_blamed(tmp_path: Path) -> None:
    waits = "await run0/attempts/000001.end.json fault; finish"
    sweep = _pack(tmp_path, "fault; finish", waits, waits, at_a_time=3, site={"mps_comment": "gpu_mps=yes"})
    assert _run(sweep) == 0
    assert _endings(sweep, "run0") == ["crashed", "finished"]
    assert _endings(sweep, "run1") == _endings(sweep, "run2") == ["interrupted", "finished"]
    assert "by a sibling's GPU fault" in str(_end(sweep, "run1").reason)


def test_without_mps_every_run_answers_for_its_own_gpu_fault(tmp_path: Path) -> None:
    sweep = _pack(tmp_path, "fault; finish", "await run0/attempts/000001.end.json fault; finish", at_a_time=2)
    assert (_run(sweep), _endings(sweep, "run0"), _endings(sweep, "run1")) == (0, ["crashed", "finished"], ["crashed", "finished"])


def test_a_counted_kill_of_the_kernel_is_out_of_memory_and_any_other_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([0, 0, 1, 1, 1, 1])
    monkeypatch.setattr(pack_runner, "MemoryKills", lambda: MemoryKills(lambda: next(kills, 1)))
    sweep = _sweep(tmp_path, "kill; kill; finish")
    assert (_run(sweep), _endings(sweep)) == (0, ["out_of_memory", "killed", "finished"])
    assert "counts a kill (oom_kill)" in str(_end(sweep, "run0").reason)
    assert "its memory cgroup counts no kill" in str(_end(sweep, "run0", 2).reason)


@pytest.mark.parametrize(
    ("line", "file", "text"),
    [
        ("0::/job_7/task_0", "job_7/task_0/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ("9:name=systemd:/\n4:memory:/slurm/job_7", "memory/slurm/job_7/memory.oom_control", "under_oom 0\noom_kill 2\n"),
    ],
)
def test_kills_are_read_from_either_version_of_cgroups(tmp_path: Path, line: str, file: str, text: str) -> None:
    (tmp_path / "cgroup").write_text(line + "\n")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert count_kills(tmp_path / "cgroup", tmp_path) == 2
    assert count_kills(tmp_path / "nothing", tmp_path) is None


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A memory cgroup of 150 MB, where this machine lets us make one."""
    group = Path("/sys/fs/cgroup/memory") / f"hpc-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("150M")
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield group
    group.rmdir()


def test_a_run_that_the_kernel_kills_for_memory_leaves_its_sibling_alone(tmp_path: Path, memory_group: Path) -> None:
    sweep = _pack(tmp_path, "eat 400; finish", "await run0/attempts/000001.end.json finish", at_a_time=2)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom hpc import supervisor\nfrom hpc.paths import SweepFolder\n"
        "from seresnet.signals import StopFlag\nPath(sys.argv[2], 'cgroup.procs').write_text(str(os.getpid()))\n"
        "code = supervisor.run_task(SweepFolder(Path(sys.argv[1])), '0001/0', stop=StopFlag(), rank_command=sys.argv[3:])\n"
        "Path('/sys/fs/cgroup/memory/cgroup.procs').write_text(str(os.getpid()))\nos._exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sweep.path), str(memory_group), *PROGRAM], timeout=60, check=False)
    assert (done.returncode, _endings(sweep, "run0"), _endings(sweep, "run1")) == (0, ["out_of_memory", "finished"], ["finished"])
    assert "its memory cgroup counts a kill (oom_kill)" in str(_end(sweep, "run0").reason)


# --- what is left alone ---


def test_a_held_sweep_starts_nothing_and_the_task_does_not_fail(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "finish")
    hold.hold(sweep, "user", "wait for the disk")
    assert (_run(sweep), _endings(sweep)) == (0, [])
    hold.release(sweep)
    assert (_run(sweep), _endings(sweep)) == (0, ["finished"])


def test_the_third_run_that_fails_alike_holds_the_rest_of_its_pack(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, *["exit 78"] * 3, "finish")
    assert (_run(sweep), _endings(sweep, "run2"), _endings(sweep, "run3")) == (78, ["user_error"], [])
    assert "failed alike before their first epoch" in (sweep.path / "run2/log.txt").read_text()


def test_dropped_and_cancelled_runs_are_left_alone_and_fail_nothing(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "finish", "finish", "finish")
    plan = Plan.read(sweep)
    runs = {**plan.runs, "run0": PlannedFolder(slug="run0", folder="run0", arms=(), dropped=True)}
    Plan(sweep="sweep", salt="0", arms=plan.arms, tasks=plan.tasks, runs=runs, wandb=plan.wandb).write(sweep)
    hold.cancel(sweep, {"0001/0": ["run1"]})
    assert (_run(sweep), [_endings(sweep, f"run{index}") for index in range(3)]) == (0, [[], [], ["finished"]])


def _when_all(paths: list[Path], act: Callable[[], object]) -> None:
    def wait() -> None:
        while not all(path.exists() and path.read_text() for path in paths):
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()
