"""Launching: what is written before anything is sent, two launchers at once, and the command itself."""

import errno
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from launch_bench import SWEEP, Bench, attempt
from rich.console import Console

from hpc import collect, launch_write, launcher, local, locks
from hpc.launch import main
from hpc.launcher import Request, launch
from hpc.paths import Plan, Submissions
from hpc.plan_view import make_console
from seresnet.config_file import config_from_dict
from seresnet.errors import ConfigError, DataError
from seresnet.run_folder import RunRecord

# --- what is written ---


def test_run_yaml_holds_the_config_with_absolute_data_paths(bench: Bench, tmp_path: Path) -> None:
    bench.launch("data.dir=here")
    record = RunRecord.read(bench.run("se-s1"))
    assert record.config["data"]["dir"] == str(tmp_path / "here")
    config = config_from_dict(record.config, "run.yaml")
    assert (config.model.attention, config.train.seed) == ("se", 1)


def test_a_pinned_section_and_marks_survive_a_relaunch(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    folder = bench.run("se-s1")
    replace(RunRecord.read(folder), pinned={"data_digest": "d", "train.amp": "off"}, marks=("a mark",)).write(folder)
    bench.launch("train.checkpoint_every_s=5")
    record = RunRecord.read(folder)
    assert (record.pinned, record.marks) == ({"data_digest": "d", "train.amp": "off"}, ("a mark",))
    assert record.config["train"]["checkpoint_every_s"] == 5


def test_a_relaunch_adds_no_key_that_the_runs_own_code_does_not_know(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    folder = bench.run("se-s1")
    record = RunRecord.read(folder)
    old = {section: dict(keys) for section, keys in record.config.items()}
    del old["augment"]["noise_std"]
    replace(record, config=old).write(folder)
    bench.launch("train.checkpoint_every_s=5")
    found = RunRecord.read(folder).config
    assert found["train"]["checkpoint_every_s"] == 5
    assert "noise_std" not in found["augment"], "code/0001 may be older than the key, and would refuse it"


def test_a_torn_run_yaml_is_written_again_if_its_run_never_started(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    whole = bench.run("se-s1").run_yaml.read_bytes()
    for torn in (b"", b"{", whole[:60]):
        bench.run("se-s1").run_yaml.write_bytes(torn)
        bench.listed = {}
        bench.launch()
        assert bench.run("se-s1").run_yaml.read_bytes() == whole


def test_a_torn_run_yaml_of_a_started_run_is_refused_until_it_is_moved_away(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    folder = bench.run("se-s1")
    attempt(folder, "stopped")
    folder.run_yaml.write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"se-s1-\w+/run\.yaml: cannot be read(.|\n)*Move run\.yaml away"):
        bench.launch()
    folder.run_yaml.unlink()
    bench.launch()
    assert ("se-s1",) in bench.tasks_sent()


def test_a_changed_numeric_key_of_a_started_run_is_refused_before_sbatch(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    folder = bench.run("se-s1")
    replace(RunRecord.read(folder), pinned={"train.amp": "off"}).write(folder)
    with pytest.raises(ConfigError, match=r"run se-s1 .*train\.amp: it started with off, now bf16 is asked for\. Say train\.amp=off"):
        bench.launch("train.amp=bf16")
    assert len(bench.sent) == 1


def test_an_edited_sweep_keeps_old_runs_and_the_old_file(bench: Bench) -> None:
    bench.launch()
    before = Plan.read(bench.sweep)
    bench.file.write_text(SWEEP.replace("  se: {model.attention: se}\n", ""))
    _, text = bench.launch()
    after = Plan.read(bench.sweep)
    assert "2 earlier runs no longer asked for" in text
    assert list(after.arms) == ["baseline"]
    assert after.runs.keys() == before.runs.keys(), "tasks of earlier submissions still name these runs"
    assert (after.salt, after.tasks) == (before.salt, before.tasks)
    assert "se: {model.attention: se}" in (bench.sweep.path / "sweep.0001.yaml").read_text()


def test_a_relaunch_of_the_same_code_reuses_the_snapshot(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    bench.launch()
    assert [entry.code for entry in Submissions.read(bench.sweep).submissions] == ["0001", "0001"]


def test_dry_run_writes_nothing_and_prints_the_script(bench: Bench, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, text = bench.launch(dry_run=True)
    assert (code, bench.sent) == (0, [])
    assert sorted(tmp_path.rglob("*")) == before
    assert "#SBATCH --array=0-3" in text
    assert "task 0001/3: se-s1" in text


def test_a_dry_run_names_the_job_that_a_launch_sends(bench: Bench) -> None:
    _, text = bench.launch(dry_run=True)
    assert "#SBATCH --job-name=demo-XXXXXXXX-0001" in text
    assert "XXXXXXXX: drawn at the first launch" in text
    bench.launch()
    bench.listed = {}
    _, text = bench.launch(dry_run=True)
    bench.launch()
    assert f"#SBATCH --job-name={bench.sent[-1]['job_name']}\n" in text


def test_one_run_is_one_task_of_one_rank(bench: Bench) -> None:
    _, text = bench.launch("seeds=1")
    assert "sent 2 runs as job 101, 2 tasks of 1 rank\n" in text


def test_missing_data_is_refused_with_the_command_before_sbatch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CONFIG_HOME", "nowhere")
    monkeypatch.chdir(bench.file.parent)
    with pytest.raises(DataError, match=r"python -m seresnet\.prepare cifar10 --data-dir .*elsewhere"):
        bench.launch("data.name=cifar10", "data.dir=elsewhere", site="local")
    assert not Path("runs").exists()


# --- two launchers ---


def test_of_two_launchers_at_once_one_sends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)
    first_look = launcher.ensure_prepared
    monkeypatch.setattr(launcher, "ensure_prepared", lambda runs: (together.wait(30), first_look(runs)))
    threads = [threading.Thread(target=bench.launch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(entry["tasks"]) for entry in bench.sent] == [4]


def test_tasks_of_a_local_launcher_that_lives_are_not_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str]] = []

    def run_local(*args: Any) -> bool:
        seen.append(bench.launch(site="local", local=True) if not seen else (0, ""))
        return False

    monkeypatch.setattr(local, "run_local", run_local)
    bench.launch(site="local", local=True)
    assert len(seen) == 1, "the second launcher ran tasks that the first one has"
    assert "nothing to send: 4 of 4 runs are on their way" in seen[0][1]
    assert Submissions.read(bench.sweep).submissions[0].state == "done"


def test_a_lock_is_free_again_when_its_process_is_killed(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    code = f"import time, pathlib, hpc.locks as l\nwith l.holding(pathlib.Path({path!r})):\n print(1, flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline()
    assert locks.is_held(tmp_path / "x")
    holder.kill()
    holder.communicate()
    assert not locks.is_held(tmp_path / "x")


# --- the command ---


def test_a_typo_is_file_line_key_and_nearest_key_exit_2_and_no_sbatch(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.file.write_text(SWEEP.replace("warmup_epochs", "warmup_epoch"))
    assert main(["--sweep", str(bench.file), "site=slurm"]) == 2
    error = capsys.readouterr().err
    assert f"{bench.file}:5: " in error
    assert "warmup_epoch" in error and "warmup_epochs?" in error
    assert "Traceback" not in error
    assert not bench.sent and not Path("runs").exists()


@pytest.mark.parametrize("words", [["demo.yaml"], ["--sweep", "demo.yaml", "demo.yaml", "--local"], ["typo.yml"]])
def test_a_sweep_file_without_its_option_is_told_the_option(bench: Bench, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 2
    name = words[-1] if len(words) == 1 else "demo.yaml"
    told = f"python -m hpc.launch: {name}: a sweep's file is given by --sweep: python -m hpc.launch --sweep {name}\n"
    assert capsys.readouterr().err == told


def test_explain_prints_the_value_and_the_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sweep", str(bench.file), "--explain", "model.width"]) == 0
    assert f"{bench.file}:3" in capsys.readouterr().out


def test_overrides_may_stand_between_options(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sweep", str(bench.file), "site=slurm", "--dry-run", "seeds=3", "--runs-dir", "other"]) == 0
    assert "6 runs in 2 arms: 6 to send" in capsys.readouterr().out


def test_a_runs_dir_that_cannot_be_written_is_one_line_and_exit_2(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    for runs_dir in (bench.file, Path("/proc/runs") if Path("/proc").is_dir() else bench.file / "below"):
        assert main(["--sweep", str(bench.file), "site=slurm", "--runs-dir", str(runs_dir)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(str(runs_dir)) and error.count("\n") == 1
    assert not bench.sent


def test_a_full_disk_is_one_line_with_the_folder(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*args: Any, **more: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launch_write, "snapshot_code", full)
    assert main(["--sweep", str(bench.file), "site=slurm"]) == 2
    assert capsys.readouterr().err.startswith("runs/demo: No space left on device.")
    assert not bench.sent


def test_collect_into_a_place_that_cannot_be_is_one_line_and_exit_2(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.launch()
    capsys.readouterr()
    assert collect.main([str(bench.sweep.path), "--no-figures", "--output", str(bench.file / "below")]) == 2
    assert capsys.readouterr().err == f"{bench.file / 'below'}: Not a directory\n"


def test_interrupted_before_anything_runs_is_one_word_and_exit_130(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(runs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "ensure_prepared", interrupt)
    assert main(["--sweep", str(bench.file), "site=local"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(("columns", "width"), [("abc", 160), ("", 160), ("0", 160), ("-5", 160), ("70", 70)])
def test_a_width_that_is_none_is_ignored(monkeypatch: pytest.MonkeyPatch, columns: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert make_console(StringIO()).width == width


@pytest.mark.parametrize("width", [80, 200])
def test_the_plan_fits_the_terminal(bench: Bench, width: int) -> None:
    text = StringIO()
    launch(
        Request(sweep_file=bench.file, overrides=("site=local",), dry_run=True),
        Console(file=text, width=width, force_terminal=True, color_system=None),
    )
    table = [line for line in text.getvalue().splitlines() if "baseline" in line and "2 new" in line]
    assert len(table) == 1, "a row of the table was folded"
    assert len(table[0]) <= width


@pytest.mark.slow
def test_a_sweep_trains_stops_and_goes_on_here(tmp_path: Path) -> None:
    """The whole way with real training: one result is removed, that run alone comes back with the same digest."""
    (tmp_path / "demo.yaml").write_text(SWEEP + "site: local\nwandb: {mode: disabled}\n")
    command = [sys.executable, "-m", "hpc.launch", "--sweep", "demo.yaml", "seeds=1", "data.train_images=200", "data.test_images=100"]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "XDG_CONFIG_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    (se,) = (tmp_path / "runs" / "demo").glob("se-s0-*")
    digest = json.loads((se / "result.json").read_text())["state_digest"]
    (se / "result.json").unlink()
    second = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 to send as 1 task" in second.stdout
    assert json.loads((se / "result.json").read_text())["state_digest"] == digest
    third = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, check=False)
    assert "nothing left: all 2 runs are finished" in third.stdout
