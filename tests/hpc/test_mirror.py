"""The mirror with the real wandb package, offline, as processes: what is in the offline files, and that nothing hangs or leaks.

Files are read back with `wandb leet inspect --json`, wandb's own reader.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_sweep import FakeSweep, record
from mirror_scene import core_of, environment, is_running, linux_only, offline_files, records, rows, run_mirror, start, steps, wait_for

from hpc import mirror, mirror_process, mirror_rows
from hpc.mirror_end import Stop
from seresnet.config import RunConfig

pytest.importorskip("wandb", reason="wandb is not installed: make setup")


def test_every_epoch_of_a_finished_run_is_there_once_with_the_numbers_of_the_journal(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    output = run_mirror(sweep)
    assert output.startswith("mirror: W&B: offline: no key")
    for arm in ("baseline", "se"):
        found = {int(row["_step"]): row for row in rows(sweep.of(arm, 0))}
        assert Counter(steps(sweep.of(arm, 0))) == Counter(range(1, 7))
        for epoch, row in found.items():
            expected = mirror_rows.row(record(arm, 0, epoch, 6))
            assert {name: row[name] for name in expected} == pytest.approx(expected), f"epoch {epoch}"


def test_a_second_pass_adds_nothing(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    run_mirror(sweep)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run_mirror(sweep)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_is_named_grouped_and_configured_for_wandb(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    done = sweep.finish("se", 0)
    run_mirror(sweep, "--runs", "se-seed0")
    found = records(sweep.of("se", 0))
    run = next(entry["run"] for entry in found if entry["type"] == "run")
    assert run["run_id"] == f"{sweep.ids['se', 0]}-0a1b2c3d"
    group = mirror_rows.group(sweep.of("se", 0), sweep.plan.runs[sweep.ids["se", 0]])
    assert (run["project"], run["run_group"], run["display_name"]) == ("demo", group, "se-seed0")
    config = run["config"]["update"]
    assert (config["model"]["attention"], config["train"]["seed"], config["commit"][:4]) == ("se", 0, "0123")
    assert "threads" not in config["train"], "operational and numeric keys do not say what was computed"
    summary: dict[str, Any] = {}
    for entry in found:
        summary |= entry.get("summary", {}).get("update", {})
    for key in ("last_test_top1_pct", "val_chosen_test_top1_pct", "best_on_test_top1_pct"):
        assert summary[key] == pytest.approx(getattr(done, key))


def test_only_what_a_checkpoint_covers_is_published_and_later_the_rest_once(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 6), durable=3)
    run_mirror(sweep)
    assert steps(sweep.of("se", 0)) == [1, 2, 3]
    run_mirror(sweep)
    assert steps(sweep.of("se", 0)) == [1, 2, 3]
    sweep.train("se", 0, range(4, 7), generation=2)
    run_mirror(sweep)
    assert steps(sweep.of("se", 0)) == [1, 2, 3, 4, 5, 6]


def test_durable_records_follow_the_newest_checkpoint_of_the_newest_generation(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 6), durable=5)
    sweep.train("se", 0, range(3, 5), generation=2, durable=4)
    folder = sweep.of("se", 0)
    assert [entry.epoch for entry in mirror_rows.durable_records(folder, is_finished=False)] == [1, 2, 3, 4]
    assert [entry.epoch for entry in mirror_rows.durable_records(folder, is_finished=True)] == [1, 2, 3, 4, 5]


def test_what_a_killed_mirror_left_is_replaced_not_doubled(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    folder = sweep.of("se", 0)
    torn = folder.path / "wandb" / "offline-run-20250101_000000-x" / "run-x.wandb"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b":W&B\xe1\xbe\x00")
    sweep.finish("se", 0)
    run_mirror(sweep)
    assert steps(folder) == [1, 2, 3, 4, 5, 6] and not torn.exists()


@pytest.mark.slow
def test_killed_while_following_and_started_again_every_epoch_is_there_once(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    folder = sweep.of("se", 0)
    sweep.train("se", 0, range(1, 4))
    following = start(sweep, "--follow")
    wait_for(lambda: offline_files(folder))
    following.kill()
    following.communicate(timeout=30)
    sweep.finish("se", 0)
    run_mirror(sweep)
    assert steps(folder) == [1, 2, 3, 4, 5, 6]


def test_follow_publishes_until_the_runs_are_finished_and_then_ends(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    following = start(sweep, "--follow", "--runs", "se-seed0")
    sweep.train("se", 0, range(1, 3))
    wait_for(lambda: offline_files(sweep.of("se", 0)))
    sweep.finish("se", 0)
    output, _ = following.communicate(timeout=30)
    assert following.returncode == 0, output
    assert steps(sweep.of("se", 0)) == [1, 2, 3, 4, 5, 6]


@linux_only
@pytest.mark.parametrize(
    "core_gets", [None, signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGKILL, signal.SIGSTOP))]
)
def test_sigterm_hands_over_what_is_durable_in_time_whatever_the_core_does(tmp_path: Path, core_gets: signal.Signals | None) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    folder = sweep.of("se", 0)
    sweep.train("se", 0, range(1, 3))
    following = start(sweep, "--follow")
    wait_for(lambda: offline_files(folder))
    core = wait_for(lambda: core_of(following.pid))
    sweep.train("se", 0, range(3, 6), durable=4)
    if core_gets is not None:
        os.kill(core, core_gets)
    asked = time.monotonic()
    following.terminate()
    output, _ = following.communicate(timeout=30)  # 8 s are what the supervisor allows
    took = time.monotonic() - asked
    assert following.returncode == 0 and took < 8, f"{took:.1f} s, {output}"
    wait_for(lambda: not is_running(core), 5)
    if core_gets == signal.SIGSTOP:  # nothing can be handed to a frozen core; the next mirror does it
        run_mirror(sweep)
    assert steps(folder) == [1, 2, 3, 4], output
    kinds = Counter(entry["type"] for entry in records(folder))
    assert kinds["preempting"] == 1 and kinds["exit"] == 1


def test_sigterm_of_a_crashed_run_is_a_failure_and_no_preemption(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 3))
    sweep.attempt("se", 0, "crashed", "boom")
    run_mirror(sweep)
    found = records(sweep.of("se", 0))
    assert not [entry for entry in found if entry["type"] == "preempting"]
    assert [entry["exit"]["exit_code"] for entry in found if entry["type"] == "exit"] == [1]


def test_the_parents_death_ends_it(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 3))
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=2).pid, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, sys.executable, "-m", "hpc.mirror", str(sweep.folder.path), "--follow", "--end-fd", "0"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    parent = subprocess.Popen(command, env=environment(tmp_path / "home"), text=True, **pipes)  # type: ignore[call-overload]
    wait_for(lambda: offline_files(sweep.of("se", 0)))
    parent.kill()
    parent.communicate(timeout=12)  # its stderr ends when the mirror is gone, which holds the other end
    assert steps(sweep.of("se", 0)) == [1, 2]


class FakeServer:
    """Stands in for the wandb module: what it is told, and what a server with so many epochs would answer."""

    Settings = staticmethod(lambda **settings: settings)

    def __init__(self, epochs: int) -> None:
        self.starting_step = epochs + 1 if epochs else 0
        self.steps: list[int] = []
        self.exits: list[int] = []
        self.summary: dict[str, Any] = {}
        self.started: dict[str, Any] = {}
        self.id, self.url = "x", "http://server/entity/project/runs/x"

    def init(self, **arguments: Any) -> "FakeServer":
        self.started = arguments
        return self

    def log(self, row: dict[str, float], step: int, commit: bool) -> None:
        self.steps.append(step)

    def status(self) -> None:
        pass

    def finish(self, exit_code: int) -> None:
        self.exits.append(exit_code)


def mirror_online(sweep: FakeSweep, wandb: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    scratch = sweep.folder.path.parent
    mirror.Mirror(sweep.folder, sweep.plan, [sweep.ids["se", 0]], "online", Stop(), scratch).follow(forever=False)


@pytest.mark.parametrize(("known", "sent"), [(0, [1, 2, 3, 4, 5, 6]), (4, [5, 6]), (6, [])])
def test_online_the_server_says_where_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: int, sent: list[int]) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.finish("se", 0)
    wandb = FakeServer(known)
    mirror_online(sweep, wandb, monkeypatch)
    assert (wandb.steps, wandb.exits, wandb.started["resume"]) == (sent, [0], "allow")
    again = FakeServer(6)
    mirror_online(sweep, again, monkeypatch)
    assert again.started == {}, "a run that is wholly on the server is opened again"


def test_after_an_upload_the_offline_copies_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.finish("se", 0)
    run_mirror(sweep)
    assert len(offline_files(sweep.of("se", 0))) == 1
    wandb = FakeServer(0)
    mirror_online(sweep, wandb, monkeypatch)
    assert wandb.steps == [1, 2, 3, 4, 5, 6] and not offline_files(sweep.of("se", 0))


def test_importing_the_mirror_does_not_import_wandb() -> None:
    code = "import sys, hpc.mirror; sys.exit('wandb' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_broken_wandb_folder_is_one_warning_and_spoils_no_other_run(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    (sweep.of("baseline", 0).path / "wandb").write_text("in the way")
    output = run_mirror(sweep)
    warnings = [line for line in output.splitlines() if "WARNING" in line]
    assert len(warnings) == 1 and "baseline-seed0 is no longer mirrored" in warnings[0], output
    assert len(steps(sweep.of("se", 0))) == 6


@pytest.mark.slow
def test_two_mirrors_of_one_run_publish_once(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 4))
    following = start(sweep, "--follow")
    wait_for(lambda: offline_files(sweep.of("se", 0)))
    run_mirror(sweep)
    following.terminate()
    following.communicate(timeout=30)
    assert steps(sweep.of("se", 0)) == [1, 2, 3]


def test_no_secret_reaches_a_file_and_nothing_is_written_under_home(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    planted = {"SLURM_JWT": "planted-1", "HF_TOKEN": "planted-2", "DB_PASSWORD": "planted-3", "WANDB_SERVICE": "planted-4"}
    output = run_mirror(sweep, **planted)
    assert "planted" not in output
    hits = [path for path in tmp_path.rglob("*") if path.is_file() and b"planted" in path.read_bytes()]
    assert not hits and not list((tmp_path / "home").rglob("*"))


def test_disabled_does_nothing(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    assert "W&B: disabled" in run_mirror(sweep, WANDB_MODE="disabled")
    assert not list(sweep.folder.path.glob("*/wandb"))


def test_a_folder_that_is_no_sweep_is_an_error_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "hpc.mirror", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "plan.json" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_fifteen_inodes_and_a_bit_over_a_megabyte_hold_900_epochs(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1, epochs=900)
    sweep.train("se", 0, range(1, 501))
    run_mirror(sweep)
    sweep.finish("se", 0)
    run_mirror(sweep)
    files = list((sweep.of("se", 0).path / "wandb").rglob("*"))
    size = sum(path.stat().st_size for path in files if path.is_file())
    assert steps(sweep.of("se", 0)) == list(range(1, 901))
    assert size <= 1.2e6 and len(files) + 1 <= 15, f"{size} bytes, {len(files) + 1} inodes"


def test_cleaning_drops_secrets_and_foreign_wandb_settings_and_keeps_the_rest(tmp_path: Path) -> None:
    kept = {"PATH": "/bin", "WANDB_API_KEY": "k", "WANDB_BASE_URL": "http://x", "SLURM_JOB_ID": "7", "KEYBOARD": "us"}
    dropped = [
        "SLURM_JWT",
        "WANDB_SERVICE",
        "WANDB_RUN_ID",
        "WANDB_RESUME",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "OPENAI_API_KEY",
        "MY_PASSWD",
    ]
    environ = kept | dict.fromkeys(dropped, "x")
    mirror_process.clean_environment(environ, tmp_path)
    assert kept.items() <= environ.items()
    assert not set(dropped) & environ.keys()
    assert environ["WANDB_CACHE_DIR"].startswith(str(tmp_path))


def test_config_holds_every_identity_key(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    found = mirror_rows.run_config(sweep.of("se", 0))
    assert found["optim"].keys() == vars(RunConfig().optim).keys()
    assert found["run_id"] == sweep.ids["se", 0] and found["epochs"] == 6
