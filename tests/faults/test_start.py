"""What a start refuses, what it allows with a mark, and that every way of starting gives the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks as ring
import torch

from seresnet.config import run_id, to_dict
from seresnet.config_file import read_run_config
from seresnet.run_folder import RunFolder, RunRecord, TrainResult


def edit(config: Path, old: str, new: str) -> None:
    text = config.read_text()
    assert old in text, f"{old!r} is not in\n{text}"
    config.write_text(text.replace(old, new))


def start_again(config: Path, run_dir: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "seresnet.train", "--config", str(config), "--run-dir", str(run_dir), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def unfinished(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config and a run folder in which the first of five epochs is trained."""
    folder = tmp_path_factory.mktemp("unfinished")
    config = ring.tiny_config(folder, digits_dir, 1, epochs=1)
    edit(config, "optim:\n", "optim:\n  schedule_epochs: 5\n")
    ring.finish(config, folder / "run", 1)
    edit(config, "\n  epochs: 1\n", "\n  epochs: 2\n")
    return config, folder / "run"


def test_another_experiment_in_the_folder_is_refused_with_a_diff(unfinished: tuple[Path, Path]) -> None:
    config, run_dir = unfinished
    done = start_again(config, run_dir, "optim.lr=0.2", "model.width=8")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "  model.width: 4 -> 8\n  optim.lr: 0.05 -> 0.2\n" in done.stderr, done.stderr


def test_other_numeric_keys_are_refused_and_named(unfinished: tuple[Path, Path]) -> None:
    config, run_dir = unfinished
    done = start_again(config, run_dir, "train.amp=bf16")
    assert done.returncode == 78, done.stdout
    assert "train.amp: off -> bf16" in done.stdout and "--allow-numeric-change" in done.stdout, done.stdout


def test_allowed_numeric_change_marks_the_run_as_t2(digits_dir: Path, tmp_path: Path) -> None:
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, 1, epochs=1), tmp_path / "run"
    edit(config, "optim:\n", "optim:\n  schedule_epochs: 2\n")
    ring.finish(config, run_dir, 1)
    edit(config, "\n  epochs: 1\n", "\n  epochs: 2\n")
    assert start_again(config, run_dir, "train.amp=bf16", "--allow-numeric-change").returncode == 0
    result, record = TrainResult.read(RunFolder(path=run_dir)), RunRecord.read(RunFolder(path=run_dir))
    assert result is not None and result.tier == "T2"
    assert record.marks == ("train.amp: off -> bf16 at attempt 2",)


def test_other_data_is_refused(unfinished: tuple[Path, Path]) -> None:
    config, run_dir = unfinished
    folder = RunFolder(path=run_dir)
    before = folder.run_yaml.read_text()
    digest = RunRecord.read(folder).pinned["data_digest"]  # type: ignore[index]
    folder.run_yaml.write_text(before.replace(digest, "f" * len(digest)))
    try:
        done = start_again(config, run_dir)
    finally:
        folder.run_yaml.write_text(before)
    assert done.returncode == 78 and "this run was started on data ffffff" in done.stdout, done.stdout


def test_a_run_yaml_edited_by_hand_is_refused(unfinished: tuple[Path, Path]) -> None:
    run_yaml = unfinished[1] / "run.yaml"
    before = run_yaml.read_text()
    edit(run_yaml, "lr: 0.05\n", "lr: 0.2\n")
    try:
        command = [sys.executable, "-m", "seresnet.train", "--run-dir", str(unfinished[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        run_yaml.write_text(before)
    assert done.returncode == 2 and "the folder holds run" in done.stderr, done.stderr


def test_fewer_epochs_than_are_trained_are_refused(digits_dir: Path, tmp_path: Path) -> None:
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, 1), tmp_path / "run"
    processes = ring.start(config, run_dir, 1)
    ring.wait_until(lambda: len(list(run_dir.glob("ckpt/*-s00000001?-*"))) > 0)  # step 10 or later, of 6 an epoch
    ring.kill_all(processes)
    edit(config, "optim:\n", "optim:\n  schedule_epochs: 5\n")
    done = start_again(config, run_dir, "train.epochs=1")
    assert done.returncode == 78 and "train.epochs: 1 is less than the" in done.stdout, done.stdout


def test_a_start_that_loses_the_claim_changes_nothing(digits_dir: Path, tmp_path: Path) -> None:
    config, run_dir = ring.tiny_config(tmp_path, digits_dir, 1, epochs=300), tmp_path / "run"
    processes = ring.start(config, run_dir, 1)
    ring.wait_until(lambda: any(run_dir.glob("ckpt/*.safetensors")))
    before = (run_dir / "run.yaml").read_text()
    try:
        done = start_again(config, run_dir, "train.amp=bf16", "train.threads=2")
    finally:
        ring.kill_all(processes)
    assert done.returncode == 77, done.stdout
    assert (run_dir / "run.yaml").read_text() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="gpu: this machine has one")
def test_a_rank_that_cannot_start_says_why_and_writes_it_down(digits_dir: Path, tmp_path: Path) -> None:
    config, folder = ring.tiny_config(tmp_path, digits_dir, 2, device="cuda"), RunFolder(path=tmp_path / "run")
    folder.create()
    resolved = read_run_config(config).config
    RunRecord(run_id=run_id(resolved), slug="tiny", config=to_dict(resolved)).write(folder)
    env = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "SERESNET_GENERATION": "1"}
    command = [sys.executable, "-m", "seresnet.train", "--run-dir", str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 78 and "rank=1" in done.stdout and "sees no CUDA device" in done.stdout, done.stdout
    assert json.loads(folder.rank_exit(1, 1).read_text())["ending"] == "user_error"


def test_no_config_and_no_folder_says_what_is_needed() -> None:
    done = subprocess.run([sys.executable, "-m", "seresnet.train"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("--config or --run-dir is needed"), done.stderr


def test_explain_names_value_and_line(unfinished: tuple[Path, Path]) -> None:
    done = start_again(unfinished[0], unfinished[1], "--explain", "optim.lr")
    line = unfinished[0].read_text().splitlines().index("  lr: 0.05") + 1
    assert done.returncode == 0 and f"{unfinished[0].name}:{line}" in done.stdout and "0.05" in done.stdout, done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="gpu: this machine has one")
def test_cuda_without_a_gpu_is_a_user_error(digits_dir: Path, tmp_path: Path) -> None:
    config = ring.tiny_config(tmp_path, digits_dir, 1, device="cuda")
    done = start_again(config, tmp_path / "run")
    assert done.returncode == 78 and "sees no CUDA device" in done.stdout, done.stdout


@pytest.mark.slow
def test_torchrun_gives_the_bits_of_any_other_start(digits_dir: Path, tmp_path: Path) -> None:
    config = ring.tiny_config(tmp_path, digits_dir, 2, epochs=2)
    expected = ring.finish(config, tmp_path / "run", 2)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "-m", "seresnet.train", "--config", str(config), "--run-dir", str(tmp_path / "torchrun")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "torchrun" / "result.json").read_text())
    assert found["state_digest"] == expected.state_digest
