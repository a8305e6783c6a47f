"""Somebody else's network with dropout, data set and loss, killed, purged and resumed with the same bits; and the example as it stands."""

import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import ranks as ring
import torch
import yaml

from hpc import collect, launch
from hpc.paths import SweepFolder
from seresnet import own_code
from seresnet.journal import read
from seresnet.run_folder import RunFolder, TrainResult
from seresnet.trained import load_run

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_model"
WHERE = {own_code.VARIABLE: str(EXAMPLE)}


def own(folder: Path, ranks: int, micro: int | None = None) -> Path:
    """Its data are made in the folder, by whoever needs them first."""
    folder.mkdir(parents=True)
    path = ring.tiny_config(folder, folder / "data", ranks, loss_target="own_losses:focal", loss_args={"gamma": 1.5})
    config = yaml.safe_load(path.read_text())
    del config["data"]["name"]
    config["data"] |= {"target": "own_data:shapes", "args": {"train": 220, "test": 50}}
    config["model"] = {"target": "own_nets:MlpMixer", "args": {"width": 8, "drop": 0.3}}
    config["train"]["micro_batch_size"] = micro or config["train"]["micro_batch_size"]
    path.write_text(yaml.safe_dump(config))
    return path


def killed_and_resumed(folder: Path, ranks: int) -> Generator[None, None, TrainResult]:
    config, run_dir = own(folder, ranks), folder / "run"
    how = {"hook": "traces:steps"}
    environ = {**WHERE, "TRACE_ATTEMPT": "1", "TRACE_DO": "KILL before 16 0"}
    codes = yield from ring.attend(ring.start(config, run_dir, ranks, environ=environ, **how))
    assert -9 in codes, f"nobody was killed, {codes}\n{ring.output(run_dir)[-3000:]}"
    (made,) = (folder / "data").glob("*.arrays")
    made.unlink()  # scratch is purged: the next start makes it again
    return (yield from ring.finishing(config, run_dir, ranks, environ={**WHERE, "TRACE_ATTEMPT": "2"}, **how))


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_and_purged_and_resumed_it_has_the_same_bits(tmp_path: Path, ranks: int, report) -> None:
    undisturbed = ring.finish(own(tmp_path / "whole", ranks), tmp_path / "whole" / "run", ranks, environ=WHERE)
    (result,) = ring.together([killed_and_resumed(tmp_path / "killed", ranks)])
    assert result.state_digest == undisturbed.state_digest, "the state differs"
    assert (result.data_name, result.data_digest) == ("five shapes", undisturbed.data_digest)
    assert (result.last_test_loss, result.confusion) == (undisturbed.last_test_loss, undisturbed.confusion)
    report(f"somebody's network with dropout, data set and loss, {ranks} ranks", "1 kill, 1 purge", "digests equal")


def test_two_ranks_drop_what_one_drops(tmp_path: Path) -> None:
    losses = {}
    for ranks in (1, 2):
        ring.finish(own(tmp_path / str(ranks), ranks, micro=16), tmp_path / str(ranks) / "run", ranks, environ=WHERE)
        losses[ranks] = [record.train_loss for record in read(RunFolder(path=tmp_path / str(ranks) / "run"))]
    assert losses[1] == pytest.approx(losses[2], rel=1e-3), losses


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder, its data and its sweep in one folder; one arm of one epoch."""
    root = tmp_path_factory.mktemp("example")
    copy = Path(shutil.copytree(EXAMPLE, root / "mine", ignore=shutil.ignore_patterns("__pycache__")))
    lines = (copy / "own.yaml").read_text().splitlines()
    (copy / "own.yaml").write_text("\n".join(line for line in lines if not line.startswith(("  cross-entropy:", "  deeper:"))))
    tiny = ["seeds=1", "train.epochs=1", "optim.warmup_epochs=0", "data.args.train=64", "data.args.test=32", f"data.dir={root / 'data'}"]
    command = ["hpc.launch", "--local", "--sweep", str(copy / "own.yaml"), "--runs-dir", str(root / "runs"), *tiny]
    said = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    return root


@pytest.fixture
def sweep(launched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """A copy of the sweep, for what changes it; this process forgets which code_root it knows and what it imports from there."""
    monkeypatch.setenv(own_code.VARIABLE, "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("own_nets", "own_data", "own_losses"):
        monkeypatch.setitem(sys.modules, name, sys)  # so that it is undone, whatever is imported
        del sys.modules[name]
    return SweepFolder(Path(shutil.copytree(launched / "runs" / "own-model", tmp_path / "runs" / "own-model")))


def run_of(sweep: SweepFolder) -> RunFolder:
    (found,) = sweep.path.glob("focal*")
    return RunFolder(path=found)


def test_example_is_launched_trained_and_runs_from_its_copy(launched: Path) -> None:
    folder = SweepFolder(launched / "runs" / "own-model")
    assert {path.name for path in (folder.code("0001") / "user").iterdir()} == {"own_nets.py", "own_data.py", "own_losses.py"}
    result = TrainResult.read(run_of(folder))
    assert result is not None
    # Mixer of the example by hand: patches, 2 blocks of (16 -> 32 -> 16) and (32 -> 64 -> 32) with two layer norms, head of 5 classes.
    block = (16 * 32 + 32 + 32 * 16 + 16) + (32 * 64 + 64 + 64 * 32 + 32) + 2 * 2 * 32
    assert result.parameters == (3 * 64 * 32 + 32) + 2 * block + (32 * 5 + 5)
    assert (result.train_images, result.test_images, result.classes) == (64, 32, ["disc", "ring", "square", "triangle", "cross"])


def test_table_names_the_data_set_by_its_title(sweep: SweepFolder) -> None:
    assert collect.main(["--no-figures", str(sweep.path)]) == 0
    assert "Data: five shapes, 64 training images" in (sweep.path / "table.md").read_text()


def test_finished_run_is_reproduced_from_its_own_code_and_data(
    launched: Path, sweep: SweepFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    (made,) = (launched / "data").glob("*.arrays")
    made.unlink()
    assert launch.main(["--reproduce", str(run_of(sweep).path)]) == 0
    said = capfd.readouterr().out
    assert "what own_data:shapes gave is not in" in said and "SAME BITS" in said


def test_run_is_evaluated_on_its_own_data_after_the_code_was_edited(launched: Path, sweep: SweepFolder) -> None:
    result = TrainResult.read(run_of(sweep))
    newer = shutil.copytree(sweep.code("0001"), sweep.code("0002"))
    (newer / "user" / "own_data.py").write_text("def shapes(**arguments):\n    raise SystemExit('called')\n")
    classifier, arrays = load_run(run_of(sweep), torch.device("cpu"))
    assert (
        result is not None and arrays.digest == result.data_digest and (classifier.classes, arrays.title) == (arrays.classes, "five shapes")
    )


def test_run_whose_data_set_was_edited_does_not_go_on_with_the_other(launched: Path, sweep: SweepFolder, tmp_path: Path) -> None:
    run = run_of(sweep)
    run.result.unlink()
    edited = Path(shutil.copytree(launched / "mine", tmp_path / "mine"))
    (edited / "own_data.py").write_text((edited / "own_data.py").read_text().replace("0.2, 0.35", "0.3, 0.35"))
    command = [sys.executable, "-m", "seresnet.train", "--run-dir", str(run.path), "--code-root", str(edited)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 78, done.stdout + done.stderr
    assert "own_data:shapes now gives " in done.stdout and "Restore that, or start a new sweep." in done.stdout
