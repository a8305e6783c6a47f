"""What every released version left on disk: this version verifies it, reads it, and trains it on. The fixtures are never made again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seresnet import inspection, journal
from seresnet.array_file import load_arrays
from seresnet.claims import newest_claim, read_end
from seresnet.pinning import NUMERICS_SCHEMA
from seresnet.run_folder import RunFolder, RunRecord, TrainResult

FORMATS = Path(__file__).resolve().parents[1] / "golden" / "formats"
RELEASED = sorted(path.name for path in FORMATS.iterdir() if path.name.isdigit())


@pytest.fixture(params=RELEASED)
def fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, so that nothing here can change what was released."""
    return Path(shutil.copytree(FORMATS / request.param, tmp_path / "copy"))


def test_there_is_a_fixture_of_the_first_release_and_it_is_small() -> None:
    assert "1" in RELEASED
    sizes = {name: sum(path.stat().st_size for path in (FORMATS / name).rglob("*") if path.is_file()) for name in RELEASED}
    assert max(sizes.values()) < 60_000, sizes


def test_a_released_run_is_verified_and_read(fixture: Path) -> None:
    folder = RunFolder(path=fixture / "run")
    look = inspection.inspect(folder)
    assert [str(finding) for finding in look.findings] == [] and look.resume.startswith("nothing to resume: finished after 2 epochs")
    result = TrainResult.read(folder)
    assert result is not None and [record.epoch for record in journal.read(folder)] == [1, 2]
    assert RunRecord.read(folder).run_id == result.run_id
    claim = newest_claim(folder)
    end = read_end(folder, 1)
    assert claim is not None and claim.owner is not None and end is not None and end.ending == "finished"
    arrays = load_arrays(next((fixture / "data").glob("*.arrays")))
    assert arrays.digest == result.data_digest


def test_a_released_run_is_trained_on(fixture: Path) -> None:
    before_numerics = (RunRecord.read(RunFolder(path=fixture / "run")).pinned or {}).get("numerics", 1)
    before = {path.name: path.read_bytes() for path in (fixture / "run" / "ckpt").iterdir()}
    command = [sys.executable, "-m", "seresnet.train", "--config", "config.yaml", "--run-dir", "run"]
    command += ["data.path=images", "data.dir=data", "train.epochs=4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(inspection.__file__).parents[1])}
    done = subprocess.run(command, cwd=fixture, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = RunFolder(path=fixture / "run")
    is_marked = any(mark.startswith("numerics: ") for mark in RunRecord.read(folder).marks)
    assert is_marked == (before_numerics != NUMERICS_SCHEMA), RunRecord.read(folder).marks
    look, result = inspection.inspect(folder), TrainResult.read(folder)
    assert result is not None and (result.epochs, result.attempts) == (4, 2), result
    assert [record.epoch for record in journal.read(folder)] == [1, 2, 3, 4]
    assert [str(finding) for finding in look.findings if finding.is_damage] == []
    kept = {path.name: path.read_bytes() for path in folder.checkpoints.iterdir() if path.name in before}
    assert kept and all(before[name] == content for name, content in kept.items()), "an old file was rewritten"
