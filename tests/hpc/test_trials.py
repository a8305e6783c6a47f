"""Trials with a stand-in for training: which runs are tried, what is printed, recorded and sent, and what is left alone."""

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc import slurm, trials
from hpc.code_snapshot import snapshot_code
from hpc.paths import SweepFolder
from hpc.shapes import TaskShape
from hpc.site import Site
from hpc.sweep import PlannedRun, expand, read_sweep
from hpc.trial_task import run_trials
from hpc.trials import TrialTask
from seresnet.errors import ConfigError
from seresnet.signals import StopFlag

COMMAND = (sys.executable, str(Path(__file__).with_name("trial_program.py")), "{run_dir}")
SWEEP = """\
name: demo
base.data.name: digits
base.train: {device: cpu, amp: off, global_batch_size: 64}
arms:
  baseline: {}
  se: {model.attention: se, optim.lr: 0.2}
  fast: {model.attention: se, optim.lr: 0.3}
  wide: {train.ranks: 4, train.nodes: 2, train.micro_batch_size: 16}
seeds: 2
"""


@pytest.fixture
def runs(tmp_path: Path) -> tuple[PlannedRun, ...]:
    file = tmp_path / "demo.yaml"
    file.write_text(SWEEP)
    return expand(read_sweep(file, ()))


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path / "runs" / "demo")
    folder.trials.mkdir(parents=True)
    (folder.trials / "acts.txt").touch()
    return folder


def prepared(sweep: SweepFolder, runs: tuple[PlannedRun, ...], acts: str = "") -> TrialTask:
    (sweep.trials / "acts.txt").write_text(acts)
    return trials.prepare(sweep, trials.choose(runs, "smoke"), Site(name="x"), code=snapshot_code(sweep.codes))


def test_a_smoke_test_tries_a_run_of_every_arm_and_a_calibration_one_of_every_shape(runs: tuple[PlannedRun, ...]) -> None:
    assert [run.slug for run in trials.choose(runs, "smoke")] == ["baseline-s0", "se-s0", "fast-s0", "wide-s0"]
    assert [run.slug for run in trials.choose(runs, "calibrate")] == ["baseline-s0", "se-s0", "wide-s0"]


def test_a_record_reads_as_it_was_written_and_another_is_refused_by_name(sweep: SweepFolder, runs: tuple[PlannedRun, ...]) -> None:
    told = trials.prepare(sweep, runs[:2], Site(name="x"), code="0001")
    assert (told.name, TrialTask.read(sweep, told.name)) == ("trial/smoke-0001", told)
    assert trials.prepare(sweep, runs[:1], Site(name="x"), code="0001").name == "trial/smoke-0002"
    assert trials.prepare(sweep, runs[:1], Site(name="x"), code="0001", kind="calibrate").name == "trial/calibrate-0001"
    with pytest.raises(ConfigError, match=r"smoke-0009\.json: no record of a trial"):
        TrialTask.read(sweep, "trial/smoke-0009")


def test_of_a_run_over_several_nodes_one_nodes_share_is_tried_and_said(sweep: SweepFolder, runs: tuple[PlannedRun, ...]) -> None:
    told = prepared(sweep, runs)
    assert told.runs[-1].note == "on 1 of 2 nodes, with 2 of 4 ranks"
    assert (told.runs[-1].ranks, told.runs[-1].config["train"]["nodes"]) == (2, 1)
    assert told.shape == TaskShape(ranks=2, gpus=0, nodes=1, at_a_time=1)


def test_every_arm_passes_and_leaves_only_its_report(
    sweep: SweepFolder, runs: tuple[PlannedRun, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    told = prepared(sweep, runs)
    assert run_trials(sweep, told.name, stop=StopFlag(), rank_command=COMMAND) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "baseline (baseline-s0): passed: 12.3 ms a step, 2,600 images/s, 1.2 GB"
    assert lines[3].startswith("wide (wide-s0): passed (on 1 of 2 nodes, with 2 of 4 ranks): ")
    assert not list(sweep.trials.glob("*/ckpt/*")) and len(list(sweep.trials.glob("*/trial.json"))) == 4
    assert {path.name for path in sweep.path.iterdir()} == {"code", "trials"}, "a trial wrote beside trials/"


def test_a_failed_arm_is_named_with_its_reason_and_log_and_the_others_are_tried(
    sweep: SweepFolder, runs: tuple[PlannedRun, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    told = prepared(sweep, runs, "baseline-s0 refuse\nse-s0 forget\nfast-s0 mute\n")
    assert run_trials(sweep, told.name, stop=StopFlag(), rank_command=COMMAND) == 78
    text = capsys.readouterr().out
    log = told.runs[0].folder(sweep).log
    assert f"baseline (baseline-s0): FAILED: user_error: data.path: /nowhere does not exist\n    log: {log}\n" in text, text
    assert "se (se-s0): FAILED: user_error: when it was started again: data.path" in text, text
    assert (
        "FAILED: crashed: when it was started again: its ranks exited 0 and left no trial.json" in text and "wide (wide-s0): passed" in text
    ), text
    assert [entry["passed"] for entry in trials.read_outcomes(sweep, told.name).values()] == [False, False, False, True]


def test_a_task_that_is_started_again_tries_what_has_not_passed(
    sweep: SweepFolder, runs: tuple[PlannedRun, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    told = prepared(sweep, runs[:4], "se-s0 refuse\n")
    assert run_trials(sweep, told.name, stop=StopFlag(), rank_command=COMMAND) == 78
    (sweep.trials / "acts.txt").write_text("")
    capsys.readouterr()
    assert run_trials(sweep, told.name, stop=StopFlag(), rank_command=COMMAND) == 0
    assert capsys.readouterr().out.count("passed") == 1


def test_a_stop_request_ends_the_trial_with_75_and_no_verdict(sweep: SweepFolder, runs: tuple[PlannedRun, ...]) -> None:
    told, stop = prepared(sweep, runs[:1], "baseline-s0 serve\n"), StopFlag()

    def ask() -> None:
        while not (sweep.trials / "serving").exists():
            time.sleep(0.02)
        stop.signal_name = "SIGTERM"

    threading.Thread(target=ask, daemon=True).start()
    assert run_trials(sweep, told.name, stop=stop, rank_command=COMMAND) == 75
    assert trials.read_outcomes(sweep, told.name) == {}


def test_a_trial_is_sent_as_one_short_task_of_the_widest_shape(
    sweep: SweepFolder, runs: tuple[PlannedRun, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}

    def submit(worker: Any, tasks: list[str], **facts: Any) -> str:
        sent.update(facts, worker=worker, tasks=tasks)
        return "17"

    monkeypatch.setattr(slurm, "submit_array", submit)
    told = prepared(sweep, runs)
    site = Site(name="x", walltime_min=2000, array_parallelism=3)
    assert trials.submit_smoke(sweep, told, site, job_name="demo-smoke") == "17"
    assert (sent["tasks"], sent["shape"].ranks, sent["job_name"]) == (["trial/smoke-0001"], 2, "demo-smoke")
    assert sent["site"] == replace(site, walltime_min=30, array_parallelism=None)
    assert sent["code_dir"] == sweep.code(told.code).absolute()


def test_the_worker_hands_a_trial_to_the_task_of_trials(tmp_path: Path) -> None:
    code = "from hpc import trial_task\ntrial_task.main_task = lambda sweep, task, stop: 42 if task == 'trial/smoke-0001' else 1\n"
    code += "from hpc.worker import Worker\nWorker('s')('trial/smoke-0001')\n"
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", code])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_outcomes_hold_what_estimates_read(sweep: SweepFolder, runs: tuple[PlannedRun, ...]) -> None:
    told = prepared(sweep, runs[:1])
    assert run_trials(sweep, told.name, stop=StopFlag(), rank_command=COMMAND) == 0
    (outcome,) = json.loads(trials.outcomes_path(sweep, told.name).read_text()).values()
    assert outcome["shape"] == told.runs[0].shape and outcome["report"]["step_s"] == 0.0123


def test_of_the_newest_smoke_test_the_arms_that_failed_are_named(sweep: SweepFolder, runs: tuple[PlannedRun, ...]) -> None:
    assert trials.failures(sweep) == [] and not trials.has_passed(sweep)
    for passed in (False, True):
        told = trials.prepare(sweep, runs[:1], Site(name="x"), code="0001")
        assert trials.failures(sweep) == [] and not trials.has_passed(sweep), "it is not over"
        outcome = {runs[0].run_id: {"passed": passed, "reason": "crashed: oh", "shape": "", "report": None}}
        trials.outcomes_path(sweep, told.name).write_text(json.dumps(outcome))
        assert trials.has_passed(sweep) == passed
        log = told.runs[0].folder(sweep).log
        assert trials.failures(sweep) == ([] if passed else [f"baseline (baseline-s0): crashed: oh\n    log: {log}"])
