"""The mirror with the real wandb client against a stub of the server: what arrives there, once, whatever is killed or taken away."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_sweep import FakeSweep
from mirror_scene import (
    assert_rows_equal_the_record,
    environment,
    kill,
    linux_only,
    offline_files,
    run_mirror,
    server_run,
    start,
    state_of,
    wait_for,
)
from wandb_stub import Stub

from hpc import mirror_rows
from hpc.mirror import POLL_S
from seresnet.run_folder import RunFolder

pytest.importorskip("wandb", reason="wandb is not installed: make setup")

TORN = b":W&B\xe1\xbe\x00"


def test_a_finished_run_is_one_run_of_the_server_with_names_config_and_summary(tmp_path: Path, stub: Stub) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    done = sweep.finish("se", 0)
    facts = {"device": "cuda: NVIDIA H200", "commit": "f" * 40, "versions": {"torch": "2.14.1"}}
    sweep.of("se", 0).environment(1).write_text(json.dumps(facts))
    run_mirror(sweep, "--runs", "se-seed0", **stub.environment())
    assert_rows_equal_the_record(stub, sweep, 6)
    run = server_run(stub, sweep)
    assert (run.name, run.job_type, run.tags, run.exits, run.preempting, run.files) == ("se-seed0", "train", ["demo", "se"], [0], 0, [])
    assert run.group is not None and run.group.startswith("se-")
    assert facts.items() <= run.config.items() and run.config["model"]["attention"] == "se" and run.config["train"]["seed"] == 0
    for key in ("last_test_top1_pct", "val_chosen_test_top1_pct", "best_on_test_top1_pct", "attempts"):
        assert run.summary[key] == pytest.approx(getattr(done, key))
    assert run.summary["ending"] == "finished"
    asked = [body for body in stub.books.bodies if "CreateRunFiles" in body]
    assert all('"files":[]' in body for body in asked), "a file was uploaded"
    assert state_of(sweep.of("se", 0)).address == f"{stub.url}/tester/demo/runs/{run.id}"


def test_seeds_of_an_arm_are_one_group_and_another_recipe_of_that_name_is_another(tmp_path: Path) -> None:
    sweep, other = FakeSweep(tmp_path, seeds=2), FakeSweep(tmp_path, "other", seeds=2, epochs=7)
    groups = {mirror_rows.group(sweep.of("se", seed), sweep.plan.runs[sweep.ids["se", seed]]) for seed in (0, 1)}
    assert len(groups) == 1
    planned = other.plan.runs[other.ids["se", 0]]
    config = other.of("se", 0).run_yaml
    assert mirror_rows.group(other.of("se", 0), planned) in groups, "where to stop is no part of the recipe"
    config.write_text(config.read_text().replace("  lr: 0.1", "  lr: 0.2"))
    assert mirror_rows.group(other.of("se", 0), planned) not in groups


def test_mirroring_twice_sends_nothing_new_and_leaves_four_small_files(tmp_path: Path, stub: Stub) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.finish("se", 0)
    sweep.train("baseline", 0, range(1, 4))
    sweep.attempt("baseline", 0, "crashed", "boom")
    run_mirror(sweep, **stub.environment())
    sent, runs = len(stub.books.requests), {key: (run.steps, run.exits) for key, run in stub.runs.items()}
    assert sorted(exits for _, exits in runs.values()) == [[0], [1]]
    run_mirror(sweep, **stub.environment())
    assert stub.books.requests[sent:] == ["GET / ok"]
    assert {key: (run.steps, run.exits) for key, run in stub.runs.items()} == runs
    names = sorted(path.name for path in (sweep.of("se", 0).path / "wandb").rglob("*"))
    assert names == ["cursor.json", "online.lock", "state.json"]


# --- 3 and 4: killed at any moment ---

MOMENTS = ("before it has begun", "the run is new on the server", "rows are on their way", "the run is finished")


def wait_until_moment(moment: str, sweep: FakeSweep, stub: Stub | None, following: "subprocess.Popen[str]") -> None:
    folder = sweep.of("se", 0)
    if moment == MOMENTS[0]:
        return
    wait_for(lambda: stub.runs if stub else offline_files(folder))
    if moment == MOMENTS[1]:
        return
    sweep.train("se", 0, range(4, 6))
    time.sleep(POLL_S + 0.5)  # the core has them, and sends every 15 s
    if moment == MOMENTS[3]:
        sweep.finish("se", 0)
        time.sleep(random.uniform(0.0, 2.5))


@linux_only
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_the_server_has_the_record_in_the_end(tmp_path: Path, stub: Stub, moment: str) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 4))
    following = start(sweep, "--follow", "--runs", "se-seed0", **stub.environment())
    wait_until_moment(moment, sweep, stub, following)
    kill(following, with_core=moment in MOMENTS[1::2])
    sweep.finish("se", 0)
    run_mirror(sweep, "--runs", "se-seed0", **stub.environment())
    assert_rows_equal_the_record(stub, sweep, 6)
    assert server_run(stub, sweep).exits[-1] == 0


@linux_only
@pytest.mark.nightly
@pytest.mark.parametrize("number", range(20))
def test_killed_at_20_random_moments_the_server_has_the_record_in_the_end(tmp_path: Path, stub: Stub, number: int) -> None:
    chance, sweep = random.Random(number), FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 3))
    following = start(sweep, "--follow", "--runs", "se-seed0", **stub.environment())
    for epoch in range(3, 7):
        time.sleep(chance.uniform(0.0, 1.5))
        sweep.train("se", 0, range(epoch, epoch + 1))
    kill(following, with_core=chance.random() < 0.5)
    sweep.finish("se", 0)
    run_mirror(sweep, "--runs", "se-seed0", **stub.environment())
    assert_rows_equal_the_record(stub, sweep, 6)


def sync(folder: Path, stub: Stub) -> str:
    """Plain `wandb sync` of every offline folder, as W&B's own pages tell users to do."""
    paths = [str(path) for path in sorted(folder.glob("*/wandb/offline-run-*"))]
    env = environment(folder.parent / "home", **stub.environment())
    done = subprocess.run([sys.executable, "-m", "wandb", "sync", *paths], env=env, capture_output=True, text=True, timeout=60, cwd=folder)
    return done.stdout + done.stderr


def plant(folder: RunFolder) -> Path:
    torn = folder.path / "wandb" / "offline-run-20250101_000000-x" / "run-x.wandb"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(TORN)
    return torn


@linux_only
@pytest.mark.parametrize("moment", [MOMENTS[1], MOMENTS[3]])
def test_killed_offline_and_mirrored_later_the_server_has_the_record(tmp_path: Path, stub: Stub, moment: str) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 4))
    following = start(sweep, "--follow", "--runs", "se-seed0")
    wait_until_moment(moment, sweep, None, following)
    kill(following, with_core=moment == MOMENTS[1])
    sweep.finish("se", 0)
    torn = plant(sweep.of("se", 0))
    run_mirror(sweep, "--runs", "se-seed0", **stub.environment())
    assert_rows_equal_the_record(stub, sweep, 6)
    assert not torn.exists() and not offline_files(sweep.of("se", 0)), "what the server has is still kept offline"


@linux_only
def test_killed_offline_plain_sync_gives_the_record_once_a_mirror_has_passed(tmp_path: Path, stub: Stub) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 3))
    run_mirror(sweep)
    sweep.train("se", 0, range(3, 5))
    following = start(sweep, "--follow", "--runs", "se-seed0")
    wait_for(lambda: len(offline_files(sweep.of("se", 0))) == 2)
    kill(following, with_core=True)
    sweep.finish("se", 0)
    plant(sweep.of("se", 0)), plant(sweep.of("baseline", 0))
    assert "ERROR" in sync(sweep.folder.path, stub) and not stub.runs, "the planted file does not stop wandb sync: the test shows nothing"
    run_mirror(sweep)
    assert "ERROR" not in sync(sweep.folder.path, stub)
    assert_rows_equal_the_record(stub, sweep, 6)
    run_mirror(sweep, "--runs", "se-seed0", **stub.environment())
    assert_rows_equal_the_record(stub, sweep, 6)


def test_many_preemptions_offline_stay_within_15_inodes(tmp_path: Path, stub: Stub) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    for epoch in range(1, 7):
        sweep.train("se", 0, range(epoch, epoch + 1))
        run_mirror(sweep, "--runs", "se-seed0")
    sweep.finish("se", 0)
    run_mirror(sweep, "--runs", "se-seed0")
    inodes = len(list((sweep.of("se", 0).path / "wandb").rglob("*"))) + 1
    assert inodes <= 15, f"{inodes} inodes"
    sync(sweep.folder.path, stub)
    assert_rows_equal_the_record(stub, sweep, 6)
