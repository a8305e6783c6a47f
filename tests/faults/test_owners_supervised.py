"""A supervisor that was stopped with its ranks, as `scontrol suspend` does, and wakes up when its run has a newer owner."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import owner_hooks
import pytest
import ranks as ring

from hpc import supervisor
from hpc.single import sweep_of_one
from seresnet import claims
from seresnet.run_folder import RunFolder
from seresnet.signals import StopFlag

COMMAND = (sys.executable, str(Path(__file__).with_name("owner_rank.py")), "{run_dir}")
MOMENT = "before a checkpoint's temp file"


def _supervise(config: str, runs_dir: str) -> None:
    os.environ["OWNER_STOP_AT"] = MOMENT  # for its rank
    output = os.open(Path(runs_dir).parent / "supervisor.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    owner_hooks.install(Path(runs_dir), rank=-1)
    stop = StopFlag()
    stop.install()
    sweep, task = sweep_of_one(Path(config), [], Path(runs_dir))
    os._exit(supervisor.run_task(sweep, task, stop=stop, rank_command=COMMAND))


def _stopped_child_of(parent: int) -> int | None:
    """The rank, once it has stopped itself."""
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "T" and int(fields[1]) == parent:
            return int(place.parent.name)
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc, in which the rank is found")
def test_a_supervisor_that_wakes_up_fenced_asks_for_no_requeue_and_writes_no_end(
    digits_dir: Path, report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(Path(supervisor.__file__).parent.parent)
    config = ring.tiny_config(tmp_path, digits_dir, 1, epochs=3)
    expected = ring.finish(config, tmp_path / "alone", 1)
    process = multiprocessing.get_context("spawn").Process(target=_supervise, args=(str(config), str(tmp_path / "runs")))
    process.start()
    assert process.pid is not None
    ring.wait_until(lambda: _stopped_child_of(process.pid or 0) is not None)
    rank = _stopped_child_of(process.pid)
    assert rank is not None
    os.kill(process.pid, signal.SIGSTOP)

    (run_yaml,) = (tmp_path / "runs").glob("*/*/run.yaml")
    folder = RunFolder(path=run_yaml.parent)
    claim = claims.acquire(folder, claims.this_process({}), observe_s=owner_hooks.OBSERVE_S, poll_s=0.02)
    heart = claims.Heart(folder, claim.generation, lambda: None, interval_s=0.1).start()
    for pid in (process.pid, rank):  # a preemption, as soon as they are continued
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
    process.join(60)
    told = (tmp_path / "supervisor.txt").read_text() + folder.log.read_text()
    assert process.exitcode == 77, f"exit code {process.exitcode}; 75 would bring the job back\n{told}"
    end = claims.read_end(folder, 1)
    assert end is not None and (end.ending, end.inferred) == ("unknown", True), f"{end}\n{told}"
    assert [path.name for path in folder.attempts.glob("000002.*end*")] == [], told

    heart.stop()
    claims.write_end(folder, 2, "stopped")
    time.sleep(0.1)
    assert ring.finish(config, folder.path, 1).state_digest == expected.state_digest
    report("a supervisor stopped with its ranks, then continued and preempted", "1 zombie", "exit 77, no requeue, no end record")
