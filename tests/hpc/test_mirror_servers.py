"""The mirror with the real wandb client where the server, the core, the environment or the folder is not as it should be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_sweep import FakeSweep
from mirror_scene import (
    assert_rows_equal_the_record,
    cores_of,
    environment,
    has_open,
    is_running,
    linux_only,
    offline_files,
    run_mirror,
    server_run,
    start,
    state_of,
    wait_for,
)
from wandb_stub import Stub

pytest.importorskip("wandb", reason="wandb is not installed: make setup")

# --- 5 and 6: the server ---

BAD_SERVERS = ("refused", "silent", "503", "401", "no DNS", "no key", "silent later", "503 later")


def misbehave(stub: Stub, how: str) -> dict[str, str]:
    """The environment of somebody whose server behaves so. later: it answers the first question, and no more."""
    if how == "no DNS":
        return {**stub.environment(), "WANDB_BASE_URL": "http://wandb.invalid"}
    if how == "no key":
        return {"WANDB_BASE_URL": stub.url}
    if how == "refused":
        stub.go_away()
    elif how.endswith("later"):
        stub.after_first = how.split()[0]
    else:
        stub.behaviour = how
    return stub.environment()


def test_whatever_the_server_is_at_the_start_rows_are_kept_and_can_be_uploaded_later(tmp_path: Path) -> None:
    mirrors = {}
    for how in BAD_SERVERS:
        stub, sweep = Stub(), FakeSweep(tmp_path / how.replace(" ", "-"), seeds=1)
        sweep.finish("se", 0)
        mirrors[how] = stub, sweep, start(sweep, "--runs", "se-seed0", **misbehave(stub, how))
    for how, (stub, sweep, process) in mirrors.items():
        output, _ = process.communicate(timeout=90)
        told = [line for line in output.splitlines() if "W&B: offline" in line]
        assert process.returncode == 0 and len(told) == 1, f"{how}: {output}"
        folder = sweep.of("se", 0)
        assert len(offline_files(folder)) == 1 and state_of(folder).mode == "offline", f"{how}: {output}"
        stub.behaviour = stub.after_first = "ok"
        stub.come_back()
    for stub, sweep, _ in (mirrors["503 later"], mirrors["refused"]):
        run_mirror(sweep, "--runs", "se-seed0", **stub.environment())
        assert_rows_equal_the_record(stub, sweep, 6)
        stub.close()


def test_a_server_that_goes_away_while_it_is_written_to_keeps_nobody_and_is_repaired_later(tmp_path: Path) -> None:
    following = {}
    for how in ("refused", "silent", "503"):
        stub, sweep = Stub(), FakeSweep(tmp_path / how, seeds=1)
        sweep.train("se", 0, range(1, 4))
        process = start(sweep, "--follow", "--runs", "se-seed0", "--finish-timeout", "3", **stub.environment())
        following[how] = stub, sweep, process
    for how, (stub, sweep, _) in following.items():
        wait_for(lambda: has_open(stub))  # noqa: B023
        misbehave(stub, how)
        sweep.finish("se", 0)
    asked = time.monotonic()
    for how, (_, sweep, process) in following.items():
        output, _ = process.communicate(timeout=60)
        state = state_of(sweep.of("se", 0))
        assert process.returncode == 0 and output.count("WARNING run=") == 1, f"{how}: {output}"
        assert state.is_over and state.epoch <= 3 and state.why and "last rows" in state.why, f"{how}: {state}"
    assert time.monotonic() - asked < 20
    for stub, sweep, _ in following.values():
        stub.behaviour = "ok"
        stub.come_back()
        run_mirror(sweep, "--runs", "se-seed0", **stub.environment())
        assert_rows_equal_the_record(stub, sweep, 6)
        stub.close()


def test_an_upload_while_a_node_without_network_still_writes_wins(tmp_path: Path, stub: Stub) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 4))
    on_node = start(sweep, "--follow", "--runs", "se-seed0")
    wait_for(lambda: offline_files(sweep.of("se", 0)))
    on_login_node = start(sweep, "--follow", "--runs", "se-seed0", **stub.environment())
    wait_for(lambda: has_open(stub))
    sweep.finish("se", 0)
    for process in (on_node, on_login_node):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and "WARNING run" not in output, output
    run_mirror(sweep, "--runs", "se-seed0", **stub.environment())
    assert_rows_equal_the_record(stub, sweep, 6)
    assert state_of(sweep.of("se", 0)).mode == "online" and not offline_files(sweep.of("se", 0))


# --- 7, 8 and 9 ---


def test_four_packed_runs_are_four_runs_of_the_server_and_one_core(tmp_path: Path, stub: Stub) -> None:
    sweep = FakeSweep(tmp_path, seeds=2)
    for arm, seed in sweep.ids:
        sweep.train(arm, seed, range(1, 4))
    following = start(sweep, "--follow", **stub.environment())
    wait_for(lambda: has_open(stub, 4))
    cores = cores_of(following.pid)
    sweep.finish_all()
    output, _ = following.communicate(timeout=60)
    assert len(cores) == 1 or not sys.platform.startswith("linux"), f"{len(cores)} cores"
    assert following.returncode == 0 and [run.steps for run in stub.runs.values()] == [[1, 2, 3, 4, 5, 6]] * 4, output


SECRETS = {
    "SLURM_JWT": "pl4nted-1",
    "HF_TOKEN": "pl4nted-2",
    "DB_PASSWORD": "pl4nted-3",
    "WANDB_SERVICE": "3-1-tcp-localhost-pl4nted4",
    "ODD_NAME": "hf_pl4ntedpl4ntedpl4nted",
    "OTHER": "feedfacefeedfacefeedfacefeedfacefeedface",
    "DATABASE": "postgres://me:pl4nted5@host/db",
}


def test_no_planted_secret_is_in_any_request_or_file_while_it_runs_or_after(tmp_path: Path, stub: Stub) -> None:
    sweep, key = FakeSweep(tmp_path, seeds=1), "0123456789" * 4
    sweep.train("se", 0, range(1, 4))
    following = start(sweep, "--follow", "--runs", "se-seed0", **SECRETS, **stub.environment(key))
    wait_for(lambda: has_open(stub))
    words = [b"pl4nted", b"feedface" * 5, key.encode()]

    def hits() -> list[str]:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return [str(path) for path in files if any(word in path.read_bytes() for word in words)]

    assert hits() == []
    sweep.finish("se", 0)
    output, _ = following.communicate(timeout=60)
    assert following.returncode == 0 and hits() == []
    sent = "\n".join(stub.books.bodies) + output
    assert not [word for word in words if word.decode() in sent]
    assert list((tmp_path / "home").rglob("*")) == [] and list((tmp_path / "tmp").rglob("*")) == []


def test_a_key_in_the_config_or_a_name_is_not_sent(tmp_path: Path, stub: Stub) -> None:
    sweep, key = FakeSweep(tmp_path, seeds=1), "0123456789abcdef0123456789abcdef01234567"
    sweep.finish("se", 0)
    yaml = sweep.of("se", 0).run_yaml
    yaml.write_text(yaml.read_text().replace("name: cifar10", f"name: '{key}'"))
    output = run_mirror(sweep, "--runs", "se-seed0", **stub.environment())
    assert "looks like a W&B key" in output and key not in output + "".join(stub.books.bodies)
    assert state_of(sweep.of("se", 0)).mode == "off"


@pytest.mark.slow  # wandb tries for 20 s
def test_a_run_that_was_deleted_on_the_server_stays_deleted_with_one_warning(tmp_path: Path, stub: Stub) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    stub.books.deleted.append(f"{sweep.ids['se', 0]}-{sweep.plan.salt}")
    output = run_mirror(sweep, **stub.environment())
    assert output.count("WARNING run=") == 1 and "se-seed0 is no longer mirrored" in output and "deleted" in output
    assert server_run(stub, sweep, "baseline").exits == [0], "its neighbour suffers"
    assert state_of(sweep.of("se", 0)).mode == "off" and not offline_files(sweep.of("se", 0))


def test_a_value_that_is_no_number_is_left_out_of_its_row(tmp_path: Path, stub: Stub) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.finish("se", 0)
    path = sweep.of("se", 0).journal(1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2] |= {"train_loss": None}
    path.write_text("".join(json.dumps({key: value for key, value in line.items() if key != "crc32"}) + "\n" for line in lines))
    assert "WARNING" not in run_mirror(sweep, "--runs", "se-seed0", **stub.environment())
    assert ["train/loss" in row for row in server_run(stub, sweep).rows] == [True, True, False, True, True, True]


@linux_only
@pytest.mark.skipif(os.getuid() == 0 and not Path("/usr/bin/setpriv").exists(), reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_warning(tmp_path: Path, stub: Stub) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    (sweep.of("se", 0).path / "wandb").write_text("in the way")
    output = run_mirror(sweep, **stub.environment())
    assert output.count("WARNING run=") == 1 and "se-seed0" in output
    assert server_run(stub, sweep, "baseline").exits == [0]


@linux_only
@pytest.mark.parametrize("is_end", [True, False], ids=["training is over", "evicted"])
def test_a_frozen_core_is_replaced_within_the_time_that_is_left(tmp_path: Path, stub: Stub, is_end: bool) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.train("se", 0, range(1, 4))
    read, write = os.pipe()
    home = tmp_path / "home"
    command = [sys.executable, "-m", "hpc.mirror", str(sweep.folder.path), "--follow", "--runs", "se-seed0", "--end-fd", str(read)]
    env = environment(home, **stub.environment())
    following = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, pass_fds=(read,))
    os.close(read)
    wait_for(lambda: has_open(stub))
    (core,) = cores_of(following.pid)
    os.kill(core, signal.SIGSTOP)
    sweep.finish("se", 0) if is_end else sweep.train("se", 0, range(4, 6))
    asked = time.monotonic()
    os.close(write) if is_end else following.terminate()
    output, _ = following.communicate(timeout=60)
    took = time.monotonic() - asked
    assert following.returncode == 0 and took < (10 if is_end else 5.5), f"{took:.1f} s: {output}"
    wait_for(lambda: not is_running(core), 5)
    if not is_end:
        os.close(write)
    if is_end:
        assert_rows_equal_the_record(stub, sweep, 6)
