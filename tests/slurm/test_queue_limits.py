"""Launches that a real Slurm takes in parts, one after another or not at all: submit limits, a cap of GPUs, smoke tests."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, up, why_not
from launched import SWEEP, Launched
from scenes import REPO

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]

TWO_ARMS = SWEEP.replace("  baseline: {{}}\n", "  baseline: {{}}\n  se: {{model.attention: se}}\n")
#: Tasks of one GPU, and of two.
ON_GPUS = (
    SWEEP.replace("gpu_request: none", "gpu_request: gres")
    .replace("device: cpu", "device: cuda")
    .replace("  baseline: {{}}\n", "  baseline: {{}}\n  pair: {{train.ranks: 2, train.micro_batch_size: 64}}\n")
)
LIMIT = 10


def endings(launched: Launched) -> list[list[str]]:
    """Of every run, how its attempts ended."""
    folders = [path.parent for path in sorted(launched.sweep.glob("*/run.yaml"))]
    return [[json.loads(path.read_text())["ending"] for path in sorted(folder.glob("attempts/*.end.json"))] for folder in folders]


# --- a submit limit ---


@pytest.fixture(scope="module")
def narrow() -> Iterator[Cluster]:
    """A cluster on which the user may have ten jobs and array tasks at a time."""
    if reason := why_not():
        pytest.skip(f"no private Slurm cluster: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="hpc-limit-"))
    started = up(folder, extra="AccountingStorageEnforce=limits,qos\n")
    try:
        started.command("sacctmgr", "-i", "modify", "account", "lab", "set", f"MaxSubmitJobs={LIMIT}")
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder)


def test_what_there_is_no_room_for_follows_as_others_end(narrow: Cluster) -> None:
    folder = Path(tempfile.mkdtemp(prefix="limit-", dir=narrow.work))
    narrow.give_to_user(folder)
    folder.chmod(0o755)
    launched = Launched(narrow, folder, seeds=30)
    said = launched.run()
    assert f"sent {LIMIT} of 30 tasks: MaxSubmit of account lab is {LIMIT} and 0 are queued" in said, said
    assert [len(entry["tasks"]) for entry in launched.submissions()] == [LIMIT]

    said = launched.run("--wait", timeout_s=150)
    assert "30 of 30 runs finished" in said, said
    assert sum(len(entry["tasks"]) for entry in launched.submissions()) == 30, launched.submissions()
    assert all(entry["state"] == "submitted" for entry in launched.submissions()), "an array was refused"
    assert endings(launched) == [["finished"]] * 30, launched.say()


# --- a cap of GPUs ---


def gpus_in_use(cluster: Cluster) -> int:
    rows = cluster.command("squeue", "--noheader", "--array", "--states=RUNNING", "--format=%b").split()
    return sum(int(row.rpartition(":")[2]) for row in rows if "gpu" in row)


def test_several_arrays_never_use_more_gpus_than_the_cap(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path, seeds=4, text=ON_GPUS)
    launched.run("--max-gpus", "3")
    (launched.code / "demo.yaml").write_text(ON_GPUS.format(seeds=6))
    seen = [gpus_in_use(cluster)]
    launched.run("--max-gpus", "3")  # two arrays more while the first two run
    assert len(launched.submissions()) == 4
    limit = time.monotonic() + 90
    while launched.listed():
        seen.append(gpus_in_use(cluster))
        assert time.monotonic() < limit, launched.say()
        time.sleep(0.1)
    print(f"GPUs in use, of 4: {seen}")
    assert max(seen) == 3, f"GPUs in use: {seen}"
    assert endings(launched) == [["finished"]] * 12, launched.say()


# --- a smoke test ---

#: In place of seresnet.train: a trial that keeps to the contract of one, and else the rank program.
_STAND_IN = """
import runpy, sys
assert sys.argv[1] == "--run-dir"
del sys.argv[1]
runpy.run_path(__file__.replace("train.py", "a_trial.py" if "--trial" in sys.argv else "a_rank.py"), run_name="__main__")
"""


def with_trials(launched: Launched, acts: str = "") -> Launched:
    """acts: what the trial of each run does, as trial_program.py says."""
    package = launched.code / "seresnet"
    shutil.copyfile(REPO / "tests" / "hpc" / "trial_program.py", package / "a_trial.py")
    shutil.copyfile(REPO / "tests" / "hpc" / "rank_program.py", package / "a_rank.py")
    (package / "train.py").write_text(_STAND_IN)
    (launched.sweep / "trials").mkdir(parents=True)
    (launched.sweep / "trials" / "acts.txt").write_text(acts)
    launched.cluster.give_to_user(launched.code)
    return launched


def test_the_sweep_waits_for_its_smoke_test_and_then_trains(cluster: Cluster, user_path: Path) -> None:
    launched = with_trials(Launched(cluster, user_path, seeds=2, text=ON_GPUS), "pair-s0 serve")
    # The cap gives the second array a dependency of its own, which must not replace the smoke test's.
    said = launched.run("--smoke", "--max-gpus", "2")
    assert "sent smoke test of 2 runs, 20 steps each" in said and "they wait for the smoke test" in said, said
    launched.wait_until((launched.sweep / "trials" / "serving").exists, "the second arm is being tried")
    (smoke,) = (task for task, (state, _, _) in launched.listed().items() if state == "RUNNING")
    waiting = {entry[:2] for task, entry in launched.listed().items() if task != smoke}
    assert waiting == {("PENDING", "Dependency")}
    (launched.sweep / "trials" / "acts.txt").write_text("")
    # Preempted, a smoke test goes on with the arms that are left; the arrays still wait for its success.
    cluster.command("scontrol", "requeue", smoke)
    seen = []
    while launched.listed():
        seen.append(gpus_in_use(cluster))
        assert len(seen) < 900, launched.say()
        time.sleep(0.1)
    assert max(seen) == 2 and endings(launched) == [["finished"]] * 4, f"GPUs in use: {seen}\n{launched.say()}"
    outcomes = json.loads((launched.sweep / "trials" / "smoke-0001.end.json").read_text())
    assert [outcome["passed"] for outcome in outcomes.values()] == [True, True]


def test_after_a_failed_smoke_test_nothing_is_queued_and_the_arm_is_named(cluster: Cluster, user_path: Path) -> None:
    launched = with_trials(Launched(cluster, user_path, seeds=2, text=TWO_ARMS), "se-s0 forget")
    said = launched.run("--smoke", "--wait", code=1)
    assert "0 of 4 runs finished" in said, said
    assert "smoke test failed: se (se-s0): user_error: when it was started again: data.path: /nowhere does not exist" in said, said
    assert not launched.listed(), "the array of a failed smoke test waits for ever"
    assert not list(launched.sweep.glob("*/attempts/*")), "something was started"

    said = launched.run("--dry-run")
    assert "the last smoke test failed: se (se-s0)" in said, said
    (launched.sweep / "trials" / "acts.txt").write_text("")
    launched.run("--smoke")
    launched.wait_until(lambda: launched.finished() == 4, "the sweep trains")


def test_a_calibration_starts_no_run_and_its_times_are_in_the_next_plan(cluster: Cluster, user_path: Path) -> None:
    """Real training: a calibration that timed a stand-in would say nothing."""
    launched = Launched(cluster, user_path, seeds=2)
    shutil.copyfile(REPO / "seresnet" / "train.py", launched.code / "seresnet" / "train.py")
    assert "not known: --calibrate times some steps" in launched.run("--dry-run")
    said = launched.run("--calibrate")
    assert "sent timing of 1 run, 20 steps each" in said, said
    launched.wait_until(lambda: not launched.listed(), "the calibration ends")
    assert not (launched.sweep / "submission.json").exists() and not list(launched.sweep.glob("baseline-*"))
    said = launched.run("--dry-run")
    assert "calibrat" in said and "s an epoch" in said, said


def test_a_smoke_test_in_a_full_queue_is_sent_once_and_the_rest_follows(narrow: Cluster) -> None:
    folder = Path(tempfile.mkdtemp(prefix="smoke-", dir=narrow.work))
    narrow.give_to_user(folder)
    folder.chmod(0o755)
    launched = with_trials(Launched(narrow, folder, seeds=12))
    said = launched.run("--smoke", "--wait", timeout_s=150)
    assert f"sent {LIMIT - 1} of 12 tasks" in said and "12 of 12 runs finished" in said, said
    assert said.count("sent smoke test of 1 run") == 1, said
    assert [len(entry["tasks"]) for entry in launched.submissions()] == [LIMIT - 1, 3]
