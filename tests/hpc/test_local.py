"""Tasks as child processes of a launcher: how many at once, where, and what a stop does to them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hpc import local
from hpc.local import LocalTask, Room
from hpc.paths import Submission, SweepFolder
from seresnet.errors import ConfigError, SubmissionError

STAND_IN = """\
import json, os, pathlib, signal, sys, time
sweep, task = pathlib.Path(sys.argv[2]), sys.argv[4].replace("/", "_")
def stop(*_):
    time.sleep(0.3)
    (sweep / f"{task}.saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(sweep / f"{task}.env").write_text(json.dumps(dict(os.environ)))
(sweep / f"{task}.start").write_text(f"{time.time()} {pathlib.Path.cwd()}")
print("hello from", task, flush=True)
time.sleep(float((sweep / "seconds").read_text()))
(sweep / f"{task}.stop").write_text(str(time.time()))
"""


class LocalBench:
    """A sweep folder whose code snapshot holds a supervisor that sleeps."""

    def __init__(self, root: Path, seconds: float) -> None:
        self.sweep, self.printed = SweepFolder(root), StringIO()
        self.entry = Submission(id="0001", created=0.0, code="0001", mode="local", tasks=())
        package = self.sweep.code("0001") / "hpc"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "supervisor.py").write_text(STAND_IN)
        (root / "seconds").write_text(str(seconds))

    def run(self, tasks: Sequence[LocalTask], room: Room, look: local.Look = lambda listed: []) -> bool:
        return local.run_local(self.sweep, self.entry, tasks, room, Console(file=self.printed, width=200), look)

    def spans(self) -> list[tuple[float, float]]:
        starts = sorted(self.sweep.path.glob("*.start"))
        return [(float(path.read_text().split()[0]), float(path.with_suffix(".stop").read_text())) for path in starts]

    def most_at_once(self) -> int:
        spans = self.spans()
        return max(sum(start <= moment < stop for start, stop in spans) for moment, _ in spans)


def tasks(count: int, ranks: int = 1) -> list[LocalTask]:
    return [LocalTask(name=f"0001/{index}", processes=ranks) for index in range(count)]


def test_at_most_max_parallel_tasks_run_at_once(tmp_path: Path) -> None:
    bench = LocalBench(tmp_path, 0.3)
    assert bench.run(tasks(5), Room(cores=64, max_parallel=2)) is False
    assert len(bench.spans()) == 5
    assert bench.most_at_once() == 2


def test_without_a_cap_cores_decide_and_a_wide_task_runs_alone(tmp_path: Path) -> None:
    bench = LocalBench(tmp_path, 0.3)
    bench.run([*tasks(2), LocalTask(name="0001/2", processes=4)], Room(cores=2))
    spans = bench.spans()
    assert bench.most_at_once() == 2
    assert spans[2][0] >= max(stop for _, stop in spans[:2])


def test_a_task_runs_in_the_code_snapshot_and_its_output_is_kept(tmp_path: Path) -> None:
    bench = LocalBench(tmp_path, 0.0)
    bench.run(tasks(1), Room(cores=1))
    assert (tmp_path / "0001_0.start").read_text().split()[1] == str(tmp_path / "code" / "0001")
    assert "hello from 0001_0" in bench.sweep.task_log("0001/0").read_text()


def test_inside_an_allocation_no_child_takes_the_enclosing_job_for_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_PROCID", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    LocalBench(tmp_path, 0.0).run(tasks(1), Room(cores=1))
    seen = json.loads((tmp_path / "0001_0.env").read_text())
    # SLURM_CONF says where the controller is: an earlier owner of a run may be a job.
    assert {name for name in seen if name.startswith(("SLURM", "SBATCH"))} == {"SLURM_CONF"}


def test_a_user_who_sets_pythonsafepath_still_runs_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    LocalBench(tmp_path, 0.0).run(tasks(1), Room(cores=1))
    assert (tmp_path / "0001_0.start").exists()
    assert "PYTHONSAFEPATH" not in json.loads((tmp_path / "0001_0.env").read_text())


def test_a_look_that_fails_is_told_once_and_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc.progress_view._LINE_EVERY_S", 0.1)
    looks = []

    def look(listed: local.Listed) -> Sequence[Any]:
        looks.append(listed)
        raise ConfigError("result.json: torn")

    bench = LocalBench(tmp_path, 0.5)
    assert bench.run(tasks(2), Room(cores=2), look) is False
    assert len(bench.spans()) == 2
    assert len(looks) > 2
    assert bench.printed.getvalue().count("result.json: torn") == 1


def test_after_an_error_of_the_launcher_children_save_before_it_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = local._start

    def start_one(sweep: SweepFolder, task: LocalTask, gpus: list[str], code: Path) -> subprocess.Popen[bytes]:
        if task.name == "0001/0":
            return start(sweep, task, gpus, code)
        while not (tmp_path / "0001_0.start").exists():
            time.sleep(0.02)
        raise OSError("no more processes")

    monkeypatch.setattr(local, "_start", start_one)
    with pytest.raises(OSError, match="no more processes"):
        LocalBench(tmp_path, 60.0).run(tasks(2), Room(cores=2))
    assert (tmp_path / "0001_0.saved").exists(), "the lock was given back while a training still saved"


@pytest.mark.parametrize("taps", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_request_lets_every_child_save_and_starts_no_other(tmp_path: Path, number: signal.Signals, taps: int) -> None:
    bench = LocalBench(tmp_path, 60.0)

    def press() -> None:
        while len(list(tmp_path.glob("*.start"))) < 2:
            time.sleep(0.05)
        for _ in range(taps):  # an impatient finger, or a wrapper that passes the signal on
            os.kill(os.getpid(), number)
            time.sleep(0.04)

    presser = threading.Thread(target=press)
    presser.start()
    started = time.monotonic()
    assert bench.run(tasks(3), Room(cores=64, max_parallel=2)) is True
    presser.join()
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["0001_0.saved", "0001_1.saved"]
    assert not (tmp_path / "0001_2.start").exists()
    assert time.monotonic() - started < 20


def test_gpus_are_leased_one_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    bench = LocalBench(tmp_path, 0.3)
    leases: list[list[str]] = []
    start = local._start

    def spy(sweep: SweepFolder, task: LocalTask, gpus: list[str], code: Path) -> Any:
        leases.append(gpus)
        return start(sweep, task, gpus, code)

    monkeypatch.setattr(local, "_start", spy)
    bench.run([LocalTask(name=f"0001/{n}", processes=2, gpus=2) for n in range(2)], Room(cores=64))
    assert bench.most_at_once() == 1, "two tasks of two ranks ran on three GPUs"
    assert [len(set(lease)) for lease in leases] == [2, 2]


def test_cuda_without_gpus_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SubmissionError, match="this machine shows 0"):
        local.check_fits([LocalTask(name="0001/0", gpus=1)])


LAUNCHER = """\
import sys
from pathlib import Path
from rich.console import Console
from hpc import local
from hpc.paths import Submission, SweepFolder
entry = Submission(id="0001", created=0.0, code="0001", mode="local", tasks=())
tasks = [local.LocalTask(name=f"0001/{n}") for n in range(2)]
local.run_local(SweepFolder(Path(sys.argv[1])), entry, tasks, local.Room(cores=2), Console(), lambda listed: [])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent has died")
def test_a_launcher_that_is_killed_leaves_children_that_save_and_end(tmp_path: Path) -> None:
    LocalBench(tmp_path, 60.0)
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)], env=environ, stdout=subprocess.DEVNULL)
    while len(list(tmp_path.glob("*.start"))) < 2:
        time.sleep(0.05)
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("*.saved"))) < 2:
        assert time.monotonic() < deadline, "a task trains on without its launcher"
        time.sleep(0.05)
