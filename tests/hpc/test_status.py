"""Status: the state of each run from its files and one look at the queue, the words of the table, and the exit code."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Literal

import pytest
from fake_sweep import FakeSweep
from launch_bench import Bench
from rich.console import Console

from hpc import hold, slurm, status, trials
from hpc.paths import Submission, Submissions
from hpc.progress_view import LineLog, duration, progress_of
from hpc.states import Queue, RunState, decide, run_states
from seresnet import attempts
from seresnet.attempts import Claim, Owner
from seresnet.claims import this_process


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    monkeypatch.chdir(tmp_path)
    return FakeSweep(tmp_path / "runs")


def claim(sweep: FakeSweep, arm: str, seed: int, owner: Owner, ending: str | None = None, reason: str | None = None) -> None:
    folder = sweep.of(arm, seed)
    generation = attempts.newest_generation(folder) + 1
    attempts.publish_claim(folder, Claim(generation=generation, owner=owner, base=None))
    if ending:
        attempts.write_end(folder, generation, ending, reason=reason)


def submit(sweep: FakeSweep) -> None:
    entry = Submission(id="0001", created=0, code="0001", mode="slurm", tasks=tuple(sweep.plan.tasks), job_id="7", state="submitted")
    Submissions().with_entry(entry).write(sweep.folder)


def listed(**states: str) -> dict[str, slurm.ListedJob]:
    """listed(j7_1="PENDING"): the queue with job 7_1 of submission 0001 in it."""
    name = "demo-0a1b2c3d-0001"
    return {key[1:]: slurm.ListedJob(job_id=key[1:], name=name, state=state, reason="Priority") for key, state in states.items()}


def finish_all(sweep: FakeSweep) -> None:
    for arm, seed in sweep.ids:
        sweep.train(arm, seed, range(1, 7))
        sweep.finish(arm, seed)


Listed = Literal["pending", "running"] | None


@pytest.mark.parametrize(
    ("has_result", "tries", "ending", "is_beating", "queue", "state"),
    [
        (True, 1, "crashed", False, None, "finished"),
        (False, 2, None, True, "running", "running"),
        (False, 0, None, False, "pending", "queued"),
        (False, 0, None, False, "running", "waiting"),
        (False, 1, "crashed", False, "running", "waiting"),
        (False, 1, "preempted", False, "pending", "preempted"),
        (False, 1, "timed_out", False, "pending", "preempted"),
        (False, 1, "preempted", False, None, "stopped"),
        (False, 1, "cancelled", False, None, "cancelled"),
        (False, 1, "cancelled_by_site", False, None, "cancelled"),
        (False, 1, "cancelled", False, "pending", "queued"),
        (False, 1, "a word of a later version", False, None, "failed"),
        (False, 1, "diverged", False, None, "failed"),
        (False, 1, "finished", False, None, "stopped"),
        (False, 1, None, False, None, "lost"),
        (False, 0, None, False, None, "new"),
    ],
)
def test_the_facts_of_a_run_give_one_word(
    has_result: bool, tries: int, ending: str | None, is_beating: bool, queue: Listed, state: str
) -> None:
    assert decide(has_result=has_result, attempts=tries, ending=ending, is_beating=is_beating, listed=queue) == state


def test_all_finished_is_exit_0_and_asks_no_scheduler(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(sweep)
    finish_all(sweep)
    monkeypatch.setattr(slurm, "listed_jobs", lambda: pytest.fail("the scheduler was asked"))
    assert status.main([str(sweep.folder.path)]) == 0


def test_a_sweep_that_the_user_cancelled_is_exit_3_and_names_the_command(
    sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(sweep)
    finish_all(sweep)
    sweep.of("se", 1).result.unlink()
    sweep.attempt("se", 1, "cancelled", "by the user (scancel)", generation=2)
    monkeypatch.setattr(slurm, "listed_jobs", lambda: {})
    assert status.main([str(sweep.folder.path)]) == 3
    out = capsys.readouterr().out
    assert "se-seed1: cancelled: by the user (scancel)" in out
    assert "    python -m hpc.launch --sweep YOUR_SWEEP.yaml --retry cancelled" in out.splitlines()


def test_a_run_that_its_user_cancelled_before_it_began_is_cancelled_and_not_new(sweep: FakeSweep) -> None:
    task = next(iter(sweep.plan.tasks))
    hold.cancel(sweep.folder, {task: sweep.plan.tasks[task]})
    assert [state.state for state in states_of(sweep).values()] == ["cancelled", "new", "new", "new"]
    assert [state.state for state in states_of(sweep, {task: "pending"}).values()] == ["cancelled", "new", "new", "new"]


def test_new_runs_whose_tasks_ended_name_the_log_and_a_failed_smoke_test_is_named_instead(
    sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(sweep)
    monkeypatch.setattr(slurm, "listed_jobs", lambda: listed(j7_1="PENDING"))
    monkeypatch.setattr(trials, "failures", lambda folder: ["se (se-s0): crashed: oh"])
    sweep.folder.logs.mkdir()
    (sweep.folder.logs / "7_0_0_log.out").write_text("No module named submitit")
    status.main([str(sweep.folder.path)])
    out = capsys.readouterr().out
    assert "3 tasks ended before they began a run; the first says why: " in out and "logs/7_0_0_log.out" in out, out
    sweep.folder.trials.mkdir()
    status.main([str(sweep.folder.path)])
    out = capsys.readouterr().out
    assert "the last smoke test failed: se (se-s0): crashed: oh" in out and "ended before" not in out, out
    claim(sweep, "se", 1, Owner(host="n2", pid=1), "stopped")
    status.main([str(sweep.folder.path)])
    assert "smoke test" not in capsys.readouterr().out, "it has started meanwhile"


def test_running_and_queued_runs_are_exit_3(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    submit(sweep)
    sweep.train("baseline", 0, range(1, 4))
    claim(sweep, "baseline", 0, this_process())
    monkeypatch.setattr(slurm, "listed_jobs", lambda: listed(j7_0="RUNNING", j7_1="PENDING", j7_2="PENDING", j7_3="PENDING"))
    assert status.main([str(sweep.folder.path)]) == 3
    out = capsys.readouterr().out
    assert "4 runs: 1 running, 3 queued" in out
    assert "3/6" in out


def test_a_failed_run_is_exit_1_with_class_reason_and_log(
    sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(sweep)
    claim(sweep, "se", 1, Owner(host="n2", pid=1), "user_error", "data.path: /nowhere does not exist\nin two lines")
    monkeypatch.setattr(slurm, "listed_jobs", lambda: {})
    assert status.main([str(sweep.folder.path)]) == 1
    out = capsys.readouterr().out
    assert "failed: user_error: data.path: /nowhere does not exist in two lines" in out
    assert str(sweep.of("se", 1).log.relative_to(Path.cwd() / "runs")) in out


def test_a_dead_process_of_this_machine_is_lost_at_once(sweep: FakeSweep) -> None:
    gone = replace(this_process(), pid=2**22 + 1)  # above Linux's highest pid
    claim(sweep, "se", 0, gone)
    sweep.of("se", 0).beat(1).write_text("1")
    assert states_of(sweep)["se", 0].state == "lost"
    claim(sweep, "se", 1, this_process())
    assert states_of(sweep)["se", 1].state == "running"


def states_of(sweep: FakeSweep, tasks: Mapping[str, Literal["pending", "running"]] | None = None) -> dict[tuple[str, int], RunState]:
    found = {state.run_id: state for state in run_states(sweep.folder, sweep.plan, Queue(tasks=tasks or {}))}
    return {key: found[run_id] for key, run_id in sweep.ids.items()}


def test_json_says_what_the_table_says(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    submit(sweep)
    monkeypatch.setattr(slurm, "listed_jobs", lambda: listed(j7_1="PENDING"))
    sweep.train("se", 0, range(1, 3))
    sweep.attempt("se", 0, "crashed", "a reason", hours=2)
    status.main([str(sweep.folder.path), "--json"])
    document = json.loads(capsys.readouterr().out)
    runs = {run["run_id"]: run for run in document["runs"]}
    found = runs[sweep.ids["se", 0]]
    assert {key: found[key] for key in ("state", "ending", "reason", "epoch", "epochs", "attempts", "node", "epoch_s", "gpu_hours")} == {
        "state": "failed",
        "ending": "crashed",
        "reason": "a reason",
        "epoch": 2,
        "epochs": 6,
        "attempts": 1,
        "node": "node1",
        "epoch_s": 4.5,
        "gpu_hours": 0.0,
    }
    assert (found["images_per_s"], found["matmul_share_pct"]) == (1200.0, None), "the last epoch's, of a journal that tells no share"
    assert found["cpu_hours"] == document["cpu_hours"] == pytest.approx(1, abs=0.01)
    assert runs[sweep.ids["baseline", 1]]["pending_reason"] == "Priority"
    assert (sweep.folder.path / found["log"]).parent.is_dir()
    assert (document["schema"], document["states"], len(runs)) == (2, {"new": 2, "queued": 1, "failed": 1}, 4)


def test_help_names_every_key_of_the_json(sweep: FakeSweep, capsys: pytest.CaptureFixture[str]) -> None:
    status.main([str(sweep.folder.path), "--json"])
    document = json.loads(capsys.readouterr().out)
    with pytest.raises(SystemExit):
        status.main(["--help"])
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert {*document, *document["runs"][0]} - {"schema"} <= words


def test_a_silent_scheduler_is_said_and_its_runs_count_as_queued(
    sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(sweep)
    monkeypatch.setattr(slurm, "listed_jobs", lambda: None)
    assert status.main([str(sweep.folder.path)]) == 3
    assert "squeue does not answer" in capsys.readouterr().out


def test_a_folder_without_a_plan_names_the_sweeps_nearby(sweep: FakeSweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["runs/dmo"]) == 2
    assert "no plan.json here" in (error := capsys.readouterr().err)
    assert "Sweeps: runs/demo." in error


def test_another_users_folder_is_one_line(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Mode 700 does not stop root, so stat says what it says to others."""

    def stat(path: Path, **more: bool) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        code = status.main(["runs/demo"])
    assert (code, capsys.readouterr().err) == (2, "runs/demo/plan.json: Permission denied\n")


def test_time_left_is_the_median_epoch_times_what_is_left(sweep: FakeSweep) -> None:
    sweep.train("se", 0, range(1, 4))
    claim(sweep, "se", 0, this_process())
    row = progress_of(states_of(sweep)["se", 0])
    assert row.epoch_s is not None and row.eta_s == pytest.approx(3 * row.epoch_s)


def test_a_log_gets_a_line_for_each_change_and_none_without(sweep: FakeSweep) -> None:
    text = StringIO()
    log = LineLog(Console(file=text, width=160))
    tasks: dict[str, Literal["pending", "running"]] = dict.fromkeys(sweep.plan.tasks, "pending")
    for _ in range(3):
        log.update([progress_of(state) for state in states_of(sweep, tasks).values()])
    assert text.getvalue() == ""
    claim(sweep, "se", 0, this_process())
    for _ in range(3):
        log.update([progress_of(state) for state in states_of(sweep, tasks).values()])
    assert [line.split(" ", 1)[1] for line in text.getvalue().splitlines()] == ["se-seed0: running"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (11100, "3 h 05 min"), (200000, "2 d 7 h")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_command_that_goes_on_names_the_file_that_was_launched(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.launch()
    bench.listed = {}
    assert status.main([str(bench.sweep.path)]) == 3
    assert "    python -m hpc.launch --sweep demo.yaml site=slurm" in capsys.readouterr().out.splitlines()
