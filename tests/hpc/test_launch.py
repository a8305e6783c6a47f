"""Launching: what is sent, what is written before, and what a second launch does. SLURM and training are stood in for by records.

Reading a sweep, a supervisor's work and a real cluster have tests of their own; one slow test here goes the whole way.
"""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hpc import collect, launcher, local, locks, slurm
from hpc.launch import main
from hpc.launcher import Request, launch
from hpc.paths import Plan, Submissions, SweepFolder
from hpc.plan_view import make_console
from seresnet import attempts
from seresnet.attempts import Claim, Owner
from seresnet.config_file import config_from_dict
from seresnet.errors import ConfigError, DataError, SubmissionError
from seresnet.run_folder import RunFolder, RunRecord, TrainResult

SWEEP = """\
name: demo
base:
  model: {width: 4, blocks: [1, 1, 1]}
  data: {name: digits}
  optim: {warmup_epochs: 0}
  train: {epochs: 2, global_batch_size: 128, device: cpu, amp: off, channels_last: false}
arms:
  baseline: {}
  se: {model.attention: se}
seeds: 2
"""


class Bench:
    """A working directory with a sweep, a stand-in for SLURM that keeps books, and launches that return what they printed."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file, self.sweep = root / "demo.yaml", SweepFolder(Path("runs/demo"))
        self.file.write_text(SWEEP)
        self.sent: list[dict[str, Any]] = []
        self.listed: dict[str, slurm.ListedJob] | None = {}
        self.refusal: str | None = None
        self.records_at_sbatch: list[Submissions] = []
        monkeypatch.setattr(slurm, "submit_array", self._submit)
        monkeypatch.setattr(slurm, "listed_jobs", lambda: self.listed)
        monkeypatch.setattr(launcher, "require_sbatch", lambda site: None)
        monkeypatch.setattr(launcher, "ensure_prepared", lambda runs: None)

    def _submit(self, worker: Any, tasks: Sequence[str], **facts: Any) -> str:
        self.records_at_sbatch.append(Submissions.read(self.sweep))
        if self.refusal:
            raise slurm.SbatchRefusedError(self.refusal)
        self.sent.append({"worker": worker, "tasks": list(tasks), **facts})
        job_id = str(100 + len(self.sent))
        for index in range(len(tasks)):
            self.list_job(f"{job_id}_{index}", "PENDING", facts["job_name"])
        return job_id

    def list_job(self, job_id: str, state: str, name: str | None = None) -> None:
        """A job in the queue, by default under the name that its array was sent with."""
        assert self.listed is not None
        name = self.sent[int(job_id.partition("_")[0]) - 101]["job_name"] if name is None else name
        self.listed[job_id] = slurm.ListedJob(job_id=job_id, name=name or self.sent[-1]["job_name"], state=state, reason="None")

    def launch(self, *overrides: str, site: str | None = "slurm", **request: Any) -> tuple[int, str]:
        text = StringIO()
        chosen = (f"site={site}",) if site else ()
        code = launch(Request(sweep_file=self.file, overrides=(*overrides, *chosen), **request), Console(file=text, width=160))
        return code, text.getvalue()

    def tasks_sent(self) -> list[tuple[str, ...]]:
        """Slugs of each task of the last array."""
        plan = Plan.read(self.sweep)
        return [tuple(plan.runs[run_id].slug for run_id in plan.tasks[task]) for task in self.sent[-1]["tasks"]]

    def run(self, slug: str) -> RunFolder:
        plan = Plan.read(self.sweep)
        return self.sweep.run_folder(plan.find(slug), plan)

    def slugs(self) -> list[str]:
        return [entry.slug for entry in Plan.read(self.sweep).runs.values()]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HPC_DATA_DIR", str(tmp_path / "data"))
    return Bench(tmp_path, monkeypatch)


def finish(folder: RunFolder, epochs: int = 2) -> None:
    """A result, as training writes it."""
    value = {
        **dict.fromkeys(("run_id", "slug", "state_digest", "data_digest", "data_name", "tier", "device", "amp", "code_digest"), "x"),
        **dict.fromkeys(
            ("step", "parameters", "best_on_test_epoch", "attempts", "world_size", "train_images", "val_images", "test_images"), 1
        ),
        **dict.fromkeys(("last_test_top1_pct", "best_on_test_top1_pct", "seconds"), 1.0),
        **dict.fromkeys(("train_loss", "last_val_top1_pct", "last_test_loss", "val_chosen_epoch", "val_chosen_val_top1_pct"), None),
        **{"val_chosen_test_top1_pct": None, "classes": [], "confusion": [], "epochs": epochs, "commit": None},
    }
    TrainResult(**value).write(folder)


def attempt(folder: RunFolder, ending: str | None, host: str = "elsewhere") -> None:
    """A claim of a process on another machine, and how it ended."""
    generation = attempts.newest_generation(folder) + 1
    attempts.publish_claim(folder, Claim(generation=generation, owner=Owner(host=host, pid=1), base=None))
    if ending:
        attempts.write_end(folder, generation, ending, reason="because of a test")


# --- what is sent ---


def test_a_first_launch_sends_every_run_as_one_array(bench: Bench) -> None:
    code, text = bench.launch()
    assert code == 0
    assert len(bench.sent) == 1
    assert bench.tasks_sent() == [("baseline-s0",), ("baseline-s1",), ("se-s0",), ("se-s1",)]
    assert "4 runs in 2 arms: 4 to send as 4 tasks (4 x 1 rank)." in text


def test_the_intent_is_on_disk_before_sbatch_and_the_job_id_after(bench: Bench) -> None:
    bench.launch()
    (before,) = bench.records_at_sbatch[0].submissions
    (after,) = Submissions.read(bench.sweep).submissions
    assert (before.state, before.job_id, before.tasks) == ("intent", None, ("0001/0", "0001/1", "0001/2", "0001/3"))
    assert (after.state, after.job_id) == ("submitted", "101")


def test_second_launch_of_a_finished_sweep_submits_nothing(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    for slug in bench.slugs():
        finish(bench.run(slug))
    code, text = bench.launch()
    assert (code, len(bench.sent)) == (0, 1)
    assert "nothing left: all 4 runs are finished" in text


def test_one_removed_result_is_one_run_sent(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    for slug in bench.slugs():
        attempt(bench.run(slug), "finished")
        finish(bench.run(slug))
    bench.run("se-s0").result.unlink()
    bench.launch()
    assert bench.tasks_sent() == [("se-s0",)]


def test_what_is_queued_or_running_is_not_sent_again(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    bench.list_job("101_0", "RUNNING")
    bench.list_job("101_1", "PENDING")
    finish(bench.run("se-s0"))
    bench.launch()
    assert bench.tasks_sent() == [("se-s1",)]


def test_a_live_claim_from_elsewhere_is_left_alone(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), None)
    bench.run("se-s1").beat(1).write_text("1")
    bench.launch()
    assert bench.tasks_sent() == [("baseline-s0",), ("baseline-s1",), ("se-s0",)]


def test_a_beat_that_stood_still_is_a_lost_run(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), None)
    bench.run("se-s1").beat(1).write_text("1")
    long_ago = time.time() - 600
    os.utime(bench.run("se-s1").beat(1), (long_ago, long_ago))
    bench.launch()
    assert ("se-s1",) in bench.tasks_sent()


def test_a_squeue_that_does_not_answer_proves_nothing(bench: Bench) -> None:
    bench.launch()
    bench.listed = None
    code, text = bench.launch()
    assert (code, len(bench.sent)) == (0, 1)
    assert "squeue does not answer" in text
    assert "nothing to send: 4 of 4 runs are on their way" in text


def test_an_array_whose_id_was_never_written_down_is_found_by_its_name(bench: Bench) -> None:
    bench.launch()
    (entry,) = Submissions.read(bench.sweep).submissions
    Submissions().with_entry(replace(entry, state="intent", job_id=None)).write(bench.sweep)
    bench.launch()
    assert len(bench.sent) == 1, "a second array was sent for runs that are queued"


def test_a_refusal_is_told_and_the_next_launch_sends_again(bench: Bench) -> None:
    bench.refusal = "sbatch refused (exit 1): Invalid account"
    with pytest.raises(SubmissionError, match="Invalid account"):
        bench.launch()
    bench.refusal = None
    bench.launch()
    assert len(bench.tasks_sent()) == 4


def test_runs_that_sbatch_refused_are_not_queued_however_silent_squeue_is(bench: Bench) -> None:
    bench.refusal, bench.listed = "sbatch refused (exit 1): Could not establish a configuration source", None
    with pytest.raises(SubmissionError):
        bench.launch()
    bench.refusal = None
    assert "4 runs in 2 arms: 4 to send" in bench.launch(dry_run=True)[1]


@pytest.mark.parametrize("ending", ["preempted", "timed_out", "node_failed", "stopped", "cancelled"])
def test_interrupted_and_cancelled_runs_are_taken_up_by_a_plain_launch(bench: Bench, ending: str) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("baseline-s0"), ending)
    bench.launch()
    assert len(bench.tasks_sent()) == 4


@pytest.mark.parametrize("ending", ["crashed", "user_error", "diverged", "killed", "out_of_memory", "hung"])
def test_failed_runs_need_retry_and_the_launch_says_so(bench: Bench, ending: str) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), ending)
    _, text = bench.launch()
    assert ("se-s1",) not in bench.tasks_sent()
    assert f"failed and not sent again without --retry failed: se-s1 ({ending})" in text
    bench.listed = {}
    bench.launch(retry=("failed",))
    assert ("se-s1",) in bench.tasks_sent()


def test_retry_of_a_run_sends_that_run_alone(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), "crashed")
    bench.launch(retry=("se-s1",))
    assert bench.tasks_sent() == [("se-s1",)]


@pytest.mark.parametrize(
    ("retry", "sent"),
    [
        (("failed",), {"baseline-s0"}),
        (("lost",), {"se-s1"}),
        (("failed", "se-s0"), {"baseline-s0", "se-s0"}),
        (("lost", "failed"), {"baseline-s0", "se-s1"}),
        (("all",), {"baseline-s0", "baseline-s1", "se-s0", "se-s1"}),
    ],
)
def test_retry_sends_all_that_is_asked_for_and_nothing_else(bench: Bench, retry: tuple[str, ...], sent: set[str]) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("baseline-s0"), "crashed")
    attempt(bench.run("se-s0"), "stopped")
    attempt(bench.run("se-s1"), None)
    os.utime(bench.run("se-s1").claim(1), (0, 0))
    bench.launch(retry=retry)
    assert {slug for task in bench.tasks_sent() for slug in task} == sent


def test_retry_that_names_no_run_says_what_a_plain_launch_would_send(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    code, text = bench.launch(retry=("failed",))
    assert (code, len(bench.sent)) == (1, 1)
    assert "no run is what --retry names, and 4 runs a plain launch would send" in text


def test_retry_of_a_finished_run_is_refused(bench: Bench) -> None:
    bench.launch()
    finish(bench.run("se-s1"))
    with pytest.raises(ConfigError, match="--retry se-s1: this run is finished"):
        bench.launch(retry=("se-s1",))


def test_only_failed_runs_left_is_exit_1_with_reason_and_log(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    for slug in ("baseline-s0", "baseline-s1", "se-s0"):
        finish(bench.run(slug))
    attempt(bench.run("se-s1"), "diverged")
    code, text = bench.launch()
    assert code == 1
    assert "se-s1: failed: diverged: because of a test" in text
    assert str(bench.run("se-s1").log) in text


def test_more_epochs_within_the_horizon_extend_finished_runs(bench: Bench) -> None:
    bench.launch("optim.schedule_epochs=10", "train.epochs=2")
    bench.listed = {}
    for slug in bench.slugs():
        attempt(bench.run(slug), "finished")
        finish(bench.run(slug), epochs=2)
    _, text = bench.launch("optim.schedule_epochs=10", "train.epochs=4")
    assert len(bench.tasks_sent()) == 4
    assert "4 extend" in text


def test_runs_with_more_ranks_are_an_array_of_their_own_shape(bench: Bench) -> None:
    bench.file.write_text(SWEEP + "site: slurm\n" + "pack: {runs_per_task: 2}\n")
    bench.file.write_text(
        bench.file.read_text().replace("{model.attention: se}", "{model.attention: se, train.ranks: 2, train.micro_batch_size: 64}")
    )
    bench.launch(site=None)
    assert [(entry["shape"].ranks, entry["shape"].gpus, len(entry["tasks"])) for entry in bench.sent] == [(1, 0, 1), (2, 0, 1)]
    assert [entry["job_name"].rpartition("-")[2] for entry in bench.sent] == ["0001", "0002"]


def test_gpus_are_asked_for_where_the_device_is_cuda(bench: Bench) -> None:
    bench.launch("train.device=cuda")
    assert bench.sent[0]["shape"].gpus == 1


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
    def full(*args: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launcher, "snapshot_code", full)
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
