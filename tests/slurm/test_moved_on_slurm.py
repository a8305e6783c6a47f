"""`python -m hpc.move` on a real Slurm: refused while a task runs or waits, done when it is over, and launched on at the new place."""

import json
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from launched import Launched

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def move(launched: Launched, target: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "hpc.move", str(launched.sweep), str(target)]
    done = launched.cluster.run_as_user(command, cwd=launched.code, env={"COLUMNS": "200"}, check=False, timeout_s=120)
    return done.returncode, str(done.stdout) + str(done.stderr)


def test_a_sweep_is_moved_only_when_no_job_of_it_is_left_and_goes_on_where_it_is(cluster: Cluster, user_path: Path) -> None:
    launched, target = Launched(cluster, user_path, 2, acts="save serve; finish"), user_path / "scratch" / "other"
    target.parent.mkdir()
    cluster.give_to_user(target.parent)
    launched.run()
    launched.wait_until_serving(1)
    code, said = move(launched, target)
    assert code == 2 and f"job {launched.job}_0 (demo-" in said and "is RUNNING" in said, said
    assert launched.sweep.exists() and not target.exists()

    cluster.command("scancel", launched.job)
    launched.wait_until(lambda: not launched.listed(), "no job is left")
    code, said = move(launched, target)
    assert code == 0 and not launched.sweep.exists(), said
    old = launched.sweep
    launched.run("--runs-dir", str(target), "--retry", "all")
    entries = json.loads((target / "submission.json").read_text())["submissions"]
    assert len(entries) == 2 and entries[1]["job_id"] != entries[0]["job_id"]
    launched.wait_until(lambda: len(list(target.glob("*/result.json"))) == 2 and not launched.listed(), "both runs finish there")
    assert not old.exists(), f"the old place is back: {[*old.rglob('*')]}"


def test_a_task_whose_sweep_is_moved_by_hand_stops_and_a_launch_waits_for_it(cluster: Cluster, user_path: Path) -> None:
    launched, target = Launched(cluster, user_path, 1, acts="serve; finish"), user_path / "moved" / "demo"
    target.parent.mkdir()
    cluster.give_to_user(target.parent)
    launched.run()
    launched.wait_until_serving(1)
    job, old = launched.job, launched.sweep
    old.rename(target)
    said = launched.run("--runs-dir", str(target.parent))
    assert "1 of 1 runs are on their way" in said, said
    facts = cluster.wait_for_state(f"{job}_0", "FAILED", "COMPLETED", "CANCELLED", timeout_s=90)
    assert facts["ExitCode"] == "77:0", facts
    assert not old.exists(), f"the old place is back: {[*old.rglob('*')]}"
    launched.run("--runs-dir", str(target.parent), "--wait")
    assert len(list(target.glob("*/result.json"))) == 1 and not old.exists()
