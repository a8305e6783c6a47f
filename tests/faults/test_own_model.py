"""A network of somebody else's with dropout, and a loss beside it, killed and resumed with the same bits; and the example as it stands."""

import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import ranks as ring
import yaml

from hpc.paths import SweepFolder
from seresnet import own_code
from seresnet.journal import read
from seresnet.run_folder import RunFolder, TrainResult

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_model"
WHERE = {own_code.VARIABLE: str(EXAMPLE)}


def own(folder: Path, digits_dir: Path, ranks: int, micro: int | None = None) -> Path:
    folder.mkdir(parents=True)
    path = ring.tiny_config(folder, digits_dir, ranks, loss_target="own_losses:focal", loss_args={"gamma": 1.5})
    config = yaml.safe_load(path.read_text())
    config["model"] = {"target": "own_nets:MlpMixer", "args": {"width": 8, "drop": 0.3}}
    config["train"]["micro_batch_size"] = micro or config["train"]["micro_batch_size"]
    path.write_text(yaml.safe_dump(config))
    return path


def killed_and_resumed(folder: Path, digits_dir: Path, ranks: int) -> Generator[None, None, TrainResult]:
    config, run_dir = own(folder, digits_dir, ranks), folder / "run"
    how = {"hook": "traces:steps"}
    environ = {**WHERE, "TRACE_ATTEMPT": "1", "TRACE_DO": "KILL before 16 0"}
    codes = yield from ring.attend(ring.start(config, run_dir, ranks, environ=environ, **how))
    assert -9 in codes, f"nobody was killed, {codes}\n{ring.output(run_dir)[-3000:]}"
    return (yield from ring.finishing(config, run_dir, ranks, environ={**WHERE, "TRACE_ATTEMPT": "2"}, **how))


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_resumed_a_network_with_dropout_has_the_same_bits(digits_dir: Path, tmp_path: Path, ranks: int, report) -> None:
    undisturbed = ring.finish(own(tmp_path / "whole", digits_dir, ranks), tmp_path / "whole" / "run", ranks, environ=WHERE)
    (result,) = ring.together([killed_and_resumed(tmp_path / "killed", digits_dir, ranks)])
    assert result.state_digest == undisturbed.state_digest, "the state differs"
    assert (result.last_test_loss, result.confusion) == (undisturbed.last_test_loss, undisturbed.confusion)
    report(f"somebody's network with dropout, somebody's loss, {ranks} ranks", "1 kill", "digests equal")


def test_two_ranks_drop_what_one_drops(digits_dir: Path, tmp_path: Path) -> None:
    losses = {}
    for ranks in (1, 2):
        ring.finish(own(tmp_path / str(ranks), digits_dir, ranks, micro=16), tmp_path / str(ranks) / "run", ranks, environ=WHERE)
        losses[ranks] = [record.train_loss for record in read(RunFolder(path=tmp_path / str(ranks) / "run"))]
    assert losses[1] == pytest.approx(losses[2], rel=1e-3), losses


def test_example_is_launched_trained_and_runs_from_its_copy(digits_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(EXAMPLE, tmp_path / "mine"))
    lines = (copy / "own.yaml").read_text().splitlines()
    (copy / "own.yaml").write_text("\n".join(line for line in lines if not line.startswith(("  cross-entropy:", "  deeper:"))))
    tiny = ["seeds=1", "train.epochs=1", "optim.warmup_epochs=0", "data.train_images=64", "data.test_images=32", f"data.dir={digits_dir}"]
    command = ["hpc.launch", "--local", "--sweep", str(copy / "own.yaml"), "--runs-dir", str(tmp_path / "runs"), *tiny]
    said = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    folder = SweepFolder(tmp_path / "runs" / "own-model")
    assert said.returncode == 0, said.stdout + said.stderr
    (found,) = folder.path.glob("focal*")
    assert {path.name for path in (folder.code("0001") / "user").iterdir()} == {"own_nets.py", "own_losses.py"}
    result = TrainResult.read(RunFolder(path=found))
    assert result is not None
    # Mixer of the example by hand: patches, 2 blocks of (16 -> 32 -> 16) and (32 -> 64 -> 32) with two layer norms, head.
    block = (16 * 32 + 32 + 32 * 16 + 16) + (32 * 64 + 64 + 64 * 32 + 32) + 2 * 2 * 32
    assert result.parameters == (3 * 64 * 32 + 32) + 2 * block + (32 * 10 + 10)
