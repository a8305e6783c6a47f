"""The supervisor against a small real program (rank_program.py) that keeps to the contract: endings, retries, stops, records."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc import code_snapshot, ranks, supervisor, task
from hpc.paths import Plan, PlannedFolder, Submission, Submissions, SweepFolder, WandbSettings
from hpc.requeue import JobFacts
from hpc.single import sweep_of_one
from seresnet import checkpoint_files, claims
from seresnet.config import RunConfig, to_dict
from seresnet.errors import CheckpointError, ConfigError
from seresnet.run_folder import RunFolder, RunRecord
from seresnet.signals import STOP_SIGNALS, StopFlag

PROGRAM = (sys.executable, str(Path(__file__).with_name("rank_program.py")), "{run_dir}")

pytestmark = pytest.mark.usefixtures("no_slurm")


def _sweep(tmp_path: Path, *acts: str, ranks: int = 1, epochs: int = 1) -> SweepFolder:
    """A sweep with one task, a run for each string; the acts of a run's attempts are separated by semicolons."""
    sweep = SweepFolder(tmp_path / "sweep")
    names = [f"run{index}" for index in range(len(acts))]
    config = to_dict(RunConfig())
    config["train"] |= {"ranks": ranks, "epochs": epochs}
    sweep.path.mkdir()
    Plan(
        sweep="sweep", salt="0", arms={"a": tuple(names)}, tasks={"0001/0": tuple(names)}, wandb=WandbSettings(mode="disabled"),
        runs={name: PlannedFolder(slug=name, folder=name, arms=("a",)) for name in names},
    ).write(sweep)  # fmt: skip
    for name, act in zip(names, acts, strict=True):
        folder = RunFolder(path=sweep.path / name)
        folder.create()
        (folder.path / "acts.txt").write_text(act)
        RunRecord(run_id=name, slug=name, config=config).write(folder)
    return sweep


def _run(sweep: SweepFolder, stop: StopFlag | None = None, **more: object) -> int:
    return int(supervisor.run_task(sweep, "0001/0", stop=stop or StopFlag(), rank_command=PROGRAM, **more))  # type: ignore[arg-type]


def test_a_task_never_leaves_with_a_code_that_says_it_was_killed_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The batch script would requeue it (hpc/requeue.sh); a rank that was killed has 137.
    monkeypatch.setattr(supervisor, "run_task", lambda *args, **more: 137)
    assert supervisor.main_task(SweepFolder(tmp_path), "0001/0", StopFlag()) == 1


def _endings(sweep: SweepFolder, run: str = "run0") -> list[str]:
    folder = RunFolder(path=sweep.path / run)
    ends = [claims.read_end(folder, claim.generation) for claim in claims.read_claims(folder)]
    return [end.ending if end else "none" for end in ends]


def _when(path: Path, act: Callable[[], object]) -> None:
    """Call act in a thread once the file is there."""

    def wait() -> None:
        while not path.exists() or not path.read_text():
            time.sleep(0.01)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_a_finished_run_is_recorded_and_not_started_again(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "finish")
    assert (_run(sweep), _endings(sweep)) == (0, ["finished"])
    assert (_run(sweep), _endings(sweep)) == (0, ["finished"])


def test_a_result_of_fewer_epochs_is_carried_on(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "finish; finish")
    _run(sweep)
    folder = RunFolder(path=sweep.path / "run0")
    record = RunRecord.read(folder)
    record.config["train"]["epochs"] = 2
    record.write(folder)
    assert (_run(sweep), _endings(sweep)) == (0, ["finished", "finished"])


def test_a_killed_run_is_tried_again_after_its_siblings(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "kill; finish", "finish")
    assert _run(sweep) == 0
    assert _endings(sweep, "run0") == ["killed", "finished"]
    times = [(sweep.path / name).stat().st_mtime for name in ("run1/attempts/000001.end.json", "run0/attempts/000002.json")]
    assert times == sorted(times)


def test_three_failures_in_a_row_without_a_new_step_stop_the_run_and_no_other(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "kill; exit 1; exit 76; finish", "finish")
    assert _run(sweep) == 76
    assert _endings(sweep, "run0") == ["killed", "crashed", "hung"]
    assert _endings(sweep, "run1") == ["finished"]


def test_a_new_durable_step_refills_the_budget(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "kill; kill; save kill; kill; kill; finish")
    assert (_run(sweep), len(_endings(sweep))) == (0, 6)


@pytest.mark.parametrize(("code", "ending"), [(78, "user_error"), (79, "diverged")])
def test_what_a_retry_cannot_mend_is_not_retried(tmp_path: Path, code: int, ending: str) -> None:
    sweep = _sweep(tmp_path, f"exit {code}; finish", "finish")
    assert (_run(sweep), _endings(sweep), _endings(sweep, "run1")) == (code, [ending], ["finished"])


def test_a_relaunch_starts_with_a_new_budget(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "exit 78; finish")
    assert (_run(sweep), _run(sweep), _endings(sweep)) == (78, 0, ["user_error", "finished"])


def test_out_of_memory_is_retried(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "exit 80; finish")
    assert (_run(sweep), _endings(sweep)) == (0, ["out_of_memory", "finished"])


def test_exit_0_without_a_result_is_a_crash(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "exit 0; finish")
    assert (_run(sweep), _endings(sweep)) == (0, ["crashed", "finished"])


def test_a_dead_rank_takes_its_run_down_within_seconds(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "rank1:kill; finish", ranks=2)
    before = time.monotonic()
    assert (_run(sweep), _endings(sweep)) == (0, ["killed", "finished"])
    assert time.monotonic() - before < ranks.BEREAVED_LIMIT_S + 5
    end = claims.read_end(RunFolder(path=sweep.path / "run0"), 1)
    assert end is not None and "rank 1 was ended by SIGKILL" in str(end.reason)


def test_a_stop_is_forwarded_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    sweep, stop = _sweep(tmp_path, "serve; finish", "finish"), StopFlag()
    stop.install()
    _when(sweep.path / "run0/serving-1-0", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert (_run(sweep, stop), _endings(sweep), _endings(sweep, "run1")) == (75, ["stopped"], [])
    assert (_run(sweep), _endings(sweep)) == (0, ["stopped", "finished"])


def test_many_stop_signals_count_as_one(tmp_path: Path) -> None:
    sweep, stop = _sweep(tmp_path, "serve"), StopFlag()
    stop.install()
    _when(sweep.path / "run0/serving-1-0", lambda: [os.kill(os.getpid(), number) for number in (*STOP_SIGNALS, *STOP_SIGNALS)])
    assert (_run(sweep, stop), _endings(sweep)) == (75, ["stopped"])


def test_a_rank_that_does_not_stop_is_killed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "STOP_LIMIT_S", 0.5)
    sweep, stop = _sweep(tmp_path, "deaf"), StopFlag()
    _when(sweep.path / "run0/serving-1-0", lambda: setattr(stop, "signal_name", "SIGTERM"))
    before = time.monotonic()
    assert (_run(sweep, stop), _endings(sweep)) == (75, ["stopped"])
    assert time.monotonic() - before < 5
    _assert_gone(int((sweep.path / "run0/serving-1-0").read_text()))


def test_a_stop_before_the_start_starts_nothing(tmp_path: Path) -> None:
    sweep, stop = _sweep(tmp_path, "finish"), StopFlag()
    stop.signal_name = "SIGTERM"
    assert (_run(sweep, stop), _endings(sweep)) == (75, [])


def test_the_end_of_the_time_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = task.Job(job_id=None, end_time=time.time() + task.STOP_BEFORE_END_S + 0.7)
    monkeypatch.setattr(task, "look_at_job", lambda *args: job)
    sweep = _sweep(tmp_path, "serve")
    assert (_run(sweep), _endings(sweep)) == (75, ["stopped"])


def test_a_moved_end_of_the_time_is_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 3600
    monkeypatch.setattr(task.slurm, "job_facts", lambda job_id: JobFacts(job_id=job_id, state="RUNNING", end_time=later))
    job = task.Job(job_id="1", end_time=time.time())
    assert not job.is_over() and job.end_time == later


def test_ranks_get_their_place_and_start_with_stop_signals_blocked(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "finish", ranks=2)
    assert _run(sweep) == 0
    for rank in (0, 1):
        seen = dict(line.split("=", 1) for line in (sweep.path / f"run0/environment-{rank}").read_text().splitlines() if "=" in line)
        wanted = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "SERESNET_GENERATION": "1"}
        assert wanted.items() <= seen.items()
        assert seen["SERESNET_INIT_METHOD"].startswith("file:///")
        assert (sweep.path / f"run0/blocked-{rank}").read_text() == "SIGINT SIGTERM SIGUSR1 SIGUSR2"


def test_a_run_with_a_live_owner_is_skipped_and_fails_the_task(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "finish", "finish")
    folder = RunFolder(path=sweep.path / "run0")
    claim = claims.acquire(folder, claims.Owner(host="elsewhere", pid=1))
    heart = claims.Heart(folder, claim.generation, lambda: None, interval_s=0.1).start()
    try:
        assert (_run(sweep), _endings(sweep, "run1")) == (77, ["finished"])
    finally:
        heart.stop()
    assert not folder.result.exists()


def test_a_newer_owner_ends_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = _sweep(tmp_path, "serve")
    folder = RunFolder(path=sweep.path / "run0")
    heart = claims.Heart
    monkeypatch.setattr(claims, "Heart", lambda folder, generation, fenced: heart(folder, generation, fenced, interval_s=0.1))
    newer = claims.this_process(task_try=99)
    _when(folder.path / "serving-1-0", lambda: str(claims.acquire(folder, newer)))
    assert _run(sweep) == 77


def test_an_unreadable_run_is_a_user_error_and_its_siblings_run(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "finish", "finish")
    (sweep.path / "run0/run.yaml").write_text("nonsense")
    assert (_run(sweep), _endings(sweep), _endings(sweep, "run1")) == (78, ["user_error"], ["finished"])
    end = claims.read_end(RunFolder(path=sweep.path / "run0"), 1)
    assert end is not None and "run.yaml" in str(end.reason)


def test_a_run_yaml_without_its_config_is_a_user_error_too(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "finish", "finish")
    RunRecord(run_id="run0", slug="run0", config={}).write(RunFolder(path=sweep.path / "run0"))
    assert (_run(sweep), _endings(sweep), _endings(sweep, "run1")) == (78, ["user_error"], ["finished"])


def test_untrusted_checkpoints_are_recorded_and_never_started_over(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "save exit 78")
    folder = RunFolder(path=sweep.path / "run0")
    assert _run(sweep) == 78
    (saved,) = folder.checkpoints.glob("*.safetensors")
    good = saved.read_bytes()
    saved.write_bytes(good[:-1] + b"?")
    assert (_run(sweep), _run(sweep), _endings(sweep)) == (78, 78, ["user_error"] * 3)
    end = claims.read_end(folder, 3)
    assert end is not None and "no checkpoint can be trusted" in str(end.reason)
    with pytest.raises(CheckpointError):
        checkpoint_files.newest_trusted(folder)
    saved.write_bytes(good)  # restored from a backup: it goes on from there
    assert str(checkpoint_files.newest_trusted(folder)) == saved.name


def test_a_run_that_cannot_be_claimed_says_why_in_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = _sweep(tmp_path, "finish")
    monkeypatch.setattr(claims, "acquire", lambda *args, **more: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert _run(sweep) == 1
    assert "could not be claimed: OSError: [Errno 28] No space left" in (sweep.path / "run0/log.txt").read_text()


def test_an_unknown_task_is_refused_with_those_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = _sweep(tmp_path, "finish")
    assert supervisor.main(["--sweep", str(sweep.path), "--task", "0009/9"]) == 78
    assert "no task 0009/9. Tasks: 0001/0." in capsys.readouterr().err


# --- the code and the environment of a task ---


def _submitted(tmp_path: Path, digest: str) -> SweepFolder:
    sweep = _sweep(tmp_path, "finish")
    entry = Submission(id="0001", created=0.0, code="0001", mode="slurm", tasks=("0001/0",))
    Submissions(submissions=(entry,)).write(sweep)
    sweep.code("0001").mkdir(parents=True)
    (sweep.code("0001") / code_snapshot.MARK).write_text(f'{{"digest": "{digest}"}}')
    return sweep


def test_a_task_runs_in_its_snapshot_and_in_no_other_code(tmp_path: Path) -> None:
    sweep = _submitted(tmp_path, code_snapshot.code_digest())
    assert _run(sweep) == 0
    (sweep.path / "run0/result.json").unlink()
    (sweep.code("0001") / code_snapshot.MARK).write_text('{"digest": "0123456789abcdef"}')
    with pytest.raises(ConfigError, match="sent with code 0123456789abcdef, but"):
        _run(sweep)


def test_a_task_whose_snapshot_is_gone_is_refused(tmp_path: Path) -> None:
    sweep = _submitted(tmp_path, "0")
    (sweep.code("0001") / code_snapshot.MARK).unlink()
    sweep.code("0001").rmdir()
    with pytest.raises(ConfigError, match=r"code/0001/CODE\.json: no code snapshot for submission 0001"):
        _run(sweep)


def test_children_find_the_code_by_their_folder() -> None:
    assert "PYTHONSAFEPATH" not in task.task_environment({"PYTHONSAFEPATH": "1", "HOME": "/h"}, {})


def test_folders_of_the_site_are_expanded_on_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    site = {"data_dir": "~/data", "cache_dir": "${SCRATCH}/cache/$USER"}
    env = task.task_environment({"SCRATCH": "/scratch", "USER": "me"}, site)
    assert (env["HPC_DATA_DIR"], env["TORCH_HOME"]) == ("/home/me/data", "/scratch/cache/me/torch")


def test_an_unset_variable_is_named_and_makes_no_folder() -> None:
    with pytest.raises(ConfigError, match=r"site\.cache_dir: \$SCRATCH/cache needs \$SCRATCH, which is not set on "):
        task.task_environment({}, {"cache_dir": "$SCRATCH/cache"})


def test_caches_of_a_job_are_on_the_node_unless_the_site_says_where(tmp_path: Path) -> None:
    env = task.task_environment({"SLURM_JOB_ID": "1", "SLURM_TMPDIR": str(tmp_path), "HOME": "/h", "TORCH_HOME": "/mine"}, {})
    assert env["XDG_CACHE_HOME"] == str(tmp_path / f"hpc-cache-{os.getuid()}") and env["TORCH_HOME"] == "/mine"
    assert Path(env["XDG_CACHE_HOME"]).stat().st_mode & 0o777 == 0o700
    assert "XDG_CACHE_HOME" not in task.task_environment({"HOME": "/h"}, {})


# --- one run without a launcher ---


def test_a_restarted_job_goes_on_with_the_run_that_it_began(tmp_path: Path) -> None:
    path, runs = tmp_path / "one.yaml", tmp_path / "runs"
    path.write_text("train: {device: cpu, epochs: 20}\n")
    job = {"SLURM_JOB_ID": "5", "SLURM_CLUSTER_NAME": "c"}
    restarted = {**job, "SLURM_RESTART_COUNT": "1"}
    sweep, begun = sweep_of_one(path, [], runs, job)
    folder = sweep.run_folder(Plan.read(sweep).tasks[begun][0])
    second = sweep_of_one(path, ["train.seed=1"], runs, job)  # a script may train several, one after another

    path.write_text("train: {device: cpu, epochs: 30, lr: typo}\n")
    before = folder.run_yaml.read_bytes()
    assert sweep_of_one(path, [], runs, restarted) == (sweep, begun)
    assert sweep_of_one(path, ["train.seed=1"], runs, restarted) == second != (sweep, begun)
    assert folder.run_yaml.read_bytes() == before
    with pytest.raises(ConfigError, match="typo"):
        sweep_of_one(path, [], runs, {**restarted, "SLURM_JOB_ID": "6"})
    with pytest.raises(ConfigError, match="typo"):
        sweep_of_one(path, [], runs, job)


def test_end_records_say_what_people_ask(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "save exit 78")
    _run(sweep)
    end = claims.read_end(RunFolder(path=sweep.path / "run0"), 1)
    assert end is not None
    assert (end.ending, end.reason) == ("user_error", "the program says as told")
    assert (end.facts["step_before"], end.facts["durable_step"], end.facts["code"], end.facts["task"]) == (-1, 10, 78, "0001/0")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child's life to its parent's")
def test_ranks_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    sweep = _sweep(tmp_path, "serve", ranks=2)
    code = (
        "import sys\nfrom pathlib import Path\nfrom hpc import supervisor\nfrom hpc.paths import SweepFolder\n"
        "from seresnet.signals import StopFlag\n"
        "supervisor.run_task(SweepFolder(Path(sys.argv[1])), '0001/0', stop=StopFlag(), rank_command=sys.argv[2:])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(sweep.path), *PROGRAM])
    try:
        _wait(lambda: all((sweep.path / f"run0/serving-1-{rank}").exists() for rank in (0, 1)))
    finally:
        parent.kill()
        parent.wait()
    for rank in (0, 1):
        _assert_gone(int((sweep.path / f"run0/serving-1-{rank}").read_text()))


@pytest.mark.parametrize("program", ["import sys; sys.exit(3)", "import time; time.sleep(600)"])
def test_nothing_the_mirror_does_changes_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr("hpc.mirror_child.END_LIMIT_S", 0.5)
    sweep = _sweep(tmp_path, "finish")
    plan = Plan.read(sweep)
    Plan(sweep="sweep", salt="0", arms=plan.arms, tasks=plan.tasks, runs=plan.runs, wandb=WandbSettings(mode="offline")).write(sweep)
    before = time.monotonic()
    assert _run(sweep, mirror_command=(sys.executable, "-c", program)) == 0
    assert time.monotonic() - before < 8


def _wait(ready: Callable[[], bool], timeout_s: float = 20.0) -> None:
    limit = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < limit, "not within 20 s"
        time.sleep(0.02)


def _assert_gone(pid: int) -> None:
    _wait(lambda: claims.is_dead(pid, None), 5.0)
