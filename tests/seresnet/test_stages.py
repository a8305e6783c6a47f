"""What a start took: the process's age against the system's own word, and parts that add up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from seresnet import stages
from seresnet.run_folder import RunFolder
from seresnet.stages import Stages, process_age_s


class FakeTime:
    """A clock that only its owner moves."""

    def __init__(self) -> None:
        self.now = 50.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(stages, "time", fake)
    return fake


def started(time: FakeTime) -> Stages:
    """0.5 s old, then 2 s of imports, 0.25 s of data in two pieces, 1 s of a step."""
    found = Stages(age_s=0.5)
    for name, seconds in (("data", 0.125), ("imports", 2.0), ("data", 0.125)):
        time.now += seconds
        found.mark(name)
    time.now += 1.0
    found.finish()
    return found


def test_the_stages_of_a_start_add_up_to_the_whole(time: FakeTime) -> None:
    found = started(time)
    time.now += 9.0
    found.mark("data")  # too late to count
    assert found.to_dict() == {"after_s": 3.75, "python_s": 0.5, "data_s": 0.25, "imports_s": 2.0, "step_s": 1.0}
    assert found.line() == "first_step after_s=3.75 python_s=0.50 data_s=0.25 imports_s=2.00 step_s=1.00"


def test_where_the_system_tells_no_age_the_count_begins_at_the_first_line(time: FakeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "process_age_s", lambda: None)
    found = Stages()
    time.now += 1.5
    found.finish()
    assert found.to_dict() == {"after_s": 1.5, "step_s": 1.5}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's age")
def test_a_process_knows_how_old_it_is() -> None:
    code = "import time; time.sleep(0.4); from seresnet.stages import process_age_s; print(process_age_s())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.4 <= float(done.stdout) < 60, done.stdout
    age = process_age_s()
    assert age is None or age > 0.4, age


def test_the_numbers_lie_beside_the_claim_with_what_was_there(tmp_path: Path, time: FakeTime) -> None:
    folder = RunFolder(path=tmp_path)
    folder.create()
    folder.environment(3).write_text('{"device": "cpu"}')
    started(time).report(folder, 3)
    assert json.loads(folder.environment(3).read_text()) == {"device": "cpu", "first_step": started(time).to_dict()}


def test_a_disk_that_takes_nothing_costs_the_numbers_and_not_the_run(
    tmp_path: Path, time: FakeTime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stages, "write_json_durably", full)
    started(time).report(RunFolder(path=tmp_path), 1)
    assert "first_step_not_recorded" in caplog.text, caplog.text
