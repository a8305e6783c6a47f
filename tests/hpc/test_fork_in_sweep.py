"""A fork's folder inside a sweep's folder, in the place of a run or beside them: each command names it, none takes it for the sweep's."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sweep import FakeSweep
from launch_bench import Bench
from moving import snapshot

from hpc import collect, status_look, supervisor
from hpc.status_view import render
from seresnet.errors import ConfigError
from seresnet.run_folder import Parent, RunFolder, RunRecord, TrainResult
from seresnet.signals import StopFlag

ROOT = Path(__file__).parents[2]

PARENT = Parent(run_id="abcdefabcdef", slug="old", step=12, checkpoint="g0001-s000000012-x.safetensors", state_digest="f" * 64)
OTHER = "0123456789ab"
SAID = "a fork of run abcdefabcdef (old) at step 12"


def make_fork(folder: RunFolder) -> RunFolder:
    """What python -m seresnet.train --fork leaves there, with the result of a finished run if there is one."""
    replace(RunRecord.read(folder), run_id=OTHER, parent=PARENT).write(folder)
    if result := TrainResult.read(folder):
        folder.result.unlink()
        replace(result, run_id=OTHER, parent=PARENT).write(folder)
    return folder


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SERESNET_", "WANDB_"))]:
        monkeypatch.delenv(name)
    return FakeSweep(tmp_path)


@pytest.mark.parametrize("width", [80, 200])
def test_status_says_whose_result_it_is(sweep: FakeSweep, width: int) -> None:
    sweep.finish_all()
    make_fork(sweep.of("se", 0))
    text = render(status_look.take(sweep.folder), width, is_ascii=True).plain
    assert "3 finished, 1 failed" in text and f"is of run {OTHER}, {SAID}; the plan says {sweep.ids['se', 0]}" in text, text


def test_status_names_one_beside_the_runs(sweep: FakeSweep) -> None:
    sweep.finish_all()
    shutil.copytree(sweep.of("se", 0).path, sweep.folder.path / "my-fork")
    make_fork(RunFolder(path=sweep.folder.path / "my-fork"))
    text = render(status_look.take(sweep.folder), 200, is_ascii=True).plain
    assert "4 finished" in text and f"my-fork: a run that is not in plan.json; it is {SAID}" in text, text


def test_collect_leaves_its_numbers_out_and_names_one_beside_the_runs_too(sweep: FakeSweep) -> None:
    sweep.finish_all()
    shutil.copytree(make_fork(sweep.of("se", 0)).path, sweep.folder.path / "my-fork")
    collect.collect([sweep.folder.path], with_figures=False)
    table = (sweep.folder.path / "table.md").read_text()
    assert table.startswith("PARTIAL: 3 of 4 runs") and f"my-fork: a run that is not in plan.json; it is {SAID}" in table, table
    assert f"run.yaml: belongs to run '{OTHER}'" in table, table


def test_the_mirror_publishes_nothing_of_it(sweep: FakeSweep) -> None:
    sweep.finish_all()
    fork = make_fork(sweep.of("se", 0))
    # A process of its own, as always: it moves its temporary files and its signal handlers, and never gives them back.
    command = [sys.executable, "-m", "hpc.mirror", str(sweep.folder.path), "--runs", sweep.ids["se", 0]]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "WANDB_MODE": "offline"}, capture_output=True, text=True, timeout=60)
    assert f"the folder holds run {OTHER} ({SAID})" in done.stdout + done.stderr and not (fork.path / "wandb").exists()


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_task_trains_it_not_on_and_does_not_count_it_as_its_run(
    sweep: FakeSweep, is_finished: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if is_finished:
        sweep.finish_all()
    before = snapshot(make_fork(sweep.of("se", 0)).path)
    task = next(task for task, run_ids in sweep.plan.tasks.items() if sweep.ids["se", 0] in run_ids)
    assert supervisor.run_task(sweep.folder, task, stop=StopFlag(), rank_command=("false",), mirror_command=("true",)) == 78
    assert f"the folder holds run {OTHER} ({SAID})" in caplog.text
    assert snapshot(sweep.of("se", 0).path) == before, "something was written into the fork"


def test_a_launch_names_it_and_sends_nothing(bench: Bench) -> None:
    bench.launch()
    make_fork(bench.run("se-s0"))
    bench.listed = {}
    with pytest.raises(ConfigError, match=rf"the folder holds run {OTHER} \(a fork of run abcdefabcdef"):
        bench.launch()
    assert len(bench.sent) == 1
