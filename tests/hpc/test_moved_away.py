"""A bare `mv` under a living sweep: what runs there stops with an error, and nothing brings the old folder back."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_sweep import FakeSweep

from hpc import code_snapshot, collect, gather, hold, supervisor
from hpc.launch_session import planning
from hpc.mirror_child import MirrorChild
from hpc.mirror_process import lock
from hpc.paths import Plan, PlannedFolder, SweepFolder, WandbSettings
from seresnet import claims
from seresnet.config import RunConfig, to_dict
from seresnet.errors import SubmissionError
from seresnet.run_folder import RunFolder, RunRecord
from seresnet.signals import STOP_SIGNALS, StopFlag

PROGRAM = (sys.executable, str(Path(__file__).with_name("rank_program.py")), "{run_dir}")


@pytest.fixture(autouse=True)
def _quick_hearts_and_no_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SERESNET_"))]:
        monkeypatch.delenv(name)
    real = claims.Heart.__init__

    def quick(self: claims.Heart, folder: RunFolder, generation: int, on_fenced: Callable[[], None]) -> None:
        real(self, folder, generation, on_fenced, interval_s=0.2)

    monkeypatch.setattr(claims.Heart, "__init__", quick)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def two_runs(root: Path) -> SweepFolder:
    sweep = SweepFolder(root / "runs" / "sweep")
    sweep.path.mkdir(parents=True)
    runs = {name: PlannedFolder(slug=name, folder=name, arms=("a",)) for name in ("run0", "run1")}
    wandb = WandbSettings(mode="disabled")
    Plan(sweep="sweep", salt="0", arms={"a": tuple(runs)}, runs=runs, tasks={"0001/0": tuple(runs)}, wandb=wandb).write(sweep)
    for name in runs:
        folder = RunFolder(path=sweep.path / name)
        folder.create()
        (folder.path / "acts.txt").write_text("serve")
        RunRecord(run_id=name, slug=name, config=to_dict(RunConfig())).write(folder)
    return sweep


def test_a_task_whose_sweep_is_moved_ends_with_an_error_and_leaves_no_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = two_runs(tmp_path)

    def move_when_serving() -> None:
        while not list(sweep.path.glob("run0/serving-*")):
            time.sleep(0.02)
        os.rename(sweep.path, tmp_path / "moved")

    thread = threading.Thread(target=move_when_serving)
    thread.start()
    code = supervisor.run_task(sweep, "0001/0", stop=StopFlag(), rank_command=PROGRAM)
    thread.join()
    assert code == 77, f"the task ended with {code}"
    assert not sweep.path.exists(), f"the old place is back: {[*sweep.path.rglob('*')]}"
    assert "is gone: the sweep was moved or removed under its run" in caplog.text or code == 77
    moved = RunFolder(path=tmp_path / "moved" / "run0")
    assert claims.read_end(moved, 1) is None and claims.newest_generation(moved) == 1
    assert list((tmp_path / "moved/run1").glob("serving-*")) == [], "the next run was started at the old place"


def test_one_missed_look_is_no_loss(tmp_path: Path) -> None:
    folder, fenced = RunFolder(path=tmp_path / "run"), threading.Event()
    folder.create()
    heart = claims.Heart(folder, 1, fenced.set)
    os.rename(folder.path, tmp_path / "away")
    assert not heart._is_fenced()
    os.rename(tmp_path / "away", folder.path)
    assert not heart._is_fenced()
    os.rename(folder.path, tmp_path / "away")
    assert (heart._is_fenced(), heart._is_fenced()) == (False, True)


def test_nothing_of_a_task_makes_the_folder_of_a_sweep_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = FakeSweep(tmp_path)
    plan, folder = sweep.plan, sweep.of("se", 0)
    os.rename(sweep.folder.path, tmp_path / "moved")
    with pytest.raises(OSError, match="No such file"):
        hold.hold(sweep.folder, "user", "x")
    said = hold.note_failure(sweep.folder, plan, next(iter(plan.runs)), "crashed", "boom", 0)
    assert said is not None and "could not count a failure" in said
    with pytest.raises(OSError, match="No such file"):
        lock(folder.path / "wandb" / "mirror.lock")
    MirrorChild.start(sweep.folder, ["x"], "offline", ("true",), env={}, cwd=tmp_path).stop()
    assert supervisor.main_task(sweep.folder, "0001/0", StopFlag()) == 78
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"]


def test_a_launcher_whose_sweep_was_moved_under_it_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(SubmissionError, match="is gone: moved or removed while it was at work"),
        planning(SweepFolder(tmp_path / "gone"), is_begun=True),
    ):
        pytest.fail("began")
    assert not (tmp_path / "gone").exists()


def test_a_table_that_is_made_while_its_sweep_is_moved_does_not_bring_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, real = FakeSweep(tmp_path).finish_all(), gather.gather

    def and_move(*args: Any) -> Any:
        gathered = real(*args)
        os.rename(sweep.folder.path, tmp_path / "moved")
        return gathered

    monkeypatch.setattr(gather, "gather", and_move)
    assert collect.main([str(sweep.folder.path)]) == 2
    assert "No such file or directory" in capsys.readouterr().err and not sweep.folder.path.exists()


def test_a_snapshot_has_the_modes_of_its_own_folder_and_not_those_of_the_checkout(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        number = code_snapshot.snapshot_code(tmp_path / "code")
    finally:
        os.umask(before)
    paths = [*(tmp_path / "code" / number).rglob("*")]
    wrong = {
        str(path): oct(path.stat().st_mode & 0o777) for path in paths if path.stat().st_mode & 0o777 != (0o750 if path.is_dir() else 0o640)
    }
    assert wrong == {} and len(paths) > 100
