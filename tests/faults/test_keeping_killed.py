"""kill -9 into hpc.archive, --restore and hpc.clean at random moments: what is there is whole, and the same command ends it."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hpc"))
from checkpoints import finish_with_checkpoints
from fake_sweep import FakeSweep
from moving import snapshot

from hpc import archive, archive_file, clean
from hpc.gather import gather
from seresnet import cleaned
from seresnet.checkpoint_files import list_checkpoints, trusted
from seresnet.run_folder import RunFolder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has loaded much")


def seconds_of(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def killed_after(seconds: float, act: Callable[[], object]) -> bool:
    """Run act in a child and kill it -9 then; False if it had ended by itself."""
    child = os.fork()
    if not child:
        try:
            act()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "it failed by itself"
    return os.WIFSIGNALED(status)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> FakeSweep:
    """Two finished runs with all kinds of checkpoints, traces and enough small files for a kill to fall between."""
    sweep = FakeSweep(tmp_path_factory.mktemp("pattern"), seeds=1)
    for arm in ("baseline", "se"):
        finish_with_checkpoints(sweep, arm, 0)
        (sweep.of(arm, 0).path / "profile").mkdir()
        for number in range(60):
            (sweep.of(arm, 0).path / "profile" / f"{number}.json").write_text("x" * 5000)
    return sweep


def test_killed_while_archiving_there_is_no_archive_or_a_whole_one(pattern: FakeSweep, tmp_path: Path, amount, request) -> None:
    path, source = tmp_path / "demo.tar", pattern.folder.path
    whole_s = seconds_of(lambda: archive.archive(source, tmp_path / "first.tar"))
    draw, killed = random.Random(request.config.getoption("--seed")), 0
    for _ in range(amount(4, 10, 300)):
        killed += killed_after(draw.uniform(0, whole_s), lambda: archive.archive(source, path))
        if path.exists():
            with archive_file.reading(path) as found:
                assert found.damaged() == []
            path.unlink()
    archive.archive(source, path)
    assert path.read_bytes() == (tmp_path / "first.tar").read_bytes()
    assert killed and sorted(entry.name for entry in tmp_path.iterdir()) == ["demo.tar", "first.tar"], killed


def test_killed_while_restoring_there_is_no_sweep_or_a_whole_one(pattern: FakeSweep, tmp_path: Path, amount, request) -> None:
    path, target = tmp_path / "demo.tar", tmp_path / "again"
    archive.archive(pattern.folder.path, path)
    before, whole_s = snapshot(pattern.folder.path), seconds_of(lambda: archive.restore(path, tmp_path / "first"))
    draw, killed = random.Random(request.config.getoption("--seed")), 0
    for _ in range(amount(4, 10, 300)):
        killed += killed_after(draw.uniform(0, whole_s), lambda: archive.restore(path, target))
        if target.exists():
            assert snapshot(target) == before
            shutil.rmtree(target)
    archive.restore(path, target)
    assert killed and sorted(entry.name for entry in tmp_path.iterdir()) == ["again", "demo.tar", "first"], killed


def test_killed_while_cleaning_every_run_is_whole_and_the_same_command_ends_it(pattern: FakeSweep, tmp_path: Path, amount, request) -> None:
    shutil.copytree(pattern.folder.path, tmp_path / "first" / "demo")
    whole_s = seconds_of(lambda: clean.clean(tmp_path / "first" / "demo", "final", is_sure=True))
    rows = [row.result for row in gather([pattern.folder.path]).rows]
    draw, killed = random.Random(request.config.getoption("--seed")), 0
    for number in range(amount(4, 10, 300)):
        sweep = tmp_path / str(number) / "demo"
        shutil.copytree(pattern.folder.path, sweep)
        killed += killed_after(draw.uniform(0, whole_s), lambda sweep=sweep: clean.clean(sweep, "final", is_sure=True))
        assert [row.result for row in gather([sweep]).rows] == rows
        _check_runs(pattern, sweep)
        assert clean.clean(sweep, "final", is_sure=True) == 0
        assert not [*sweep.glob("*/*profile*")] and all(len(list_checkpoints(run)) == 1 for run in _runs(sweep))
        shutil.rmtree(sweep.parent)
    assert killed


def _runs(sweep: Path) -> list[RunFolder]:
    return [RunFolder(path=path.parent) for path in sorted(sweep.glob("*/run.yaml"))]


def _check_runs(pattern: FakeSweep, sweep: Path) -> None:
    """What is gone is in the record, and what a start would take is there."""
    for run in _runs(sweep):
        before = {str(name) for name in list_checkpoints(RunFolder(path=pattern.folder.path / run.path.name))}
        left, record = {str(name) for name in trusted(run)}, cleaned.read(run)
        assert before - left <= (set(record.files) if record else set()), "gone without a record"
        assert max(before) in left, "the final checkpoint is gone"
