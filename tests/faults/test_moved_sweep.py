"""A sweep that was stopped halfway, moved to another file system and trained to its end there, against one that was never moved."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from ranks import finish, wait_until

SWEEP = """\
name: demo
base:
  model: {width: 4, blocks: [1, 1, 1]}
  data: {name: digits, train_images: 180, val_images: 32, test_images: 40}
  augment: {flip: false, autoaugment: cifar10}
  optim: {lr: 0.05, warmup_epochs: 1}
  train: {epochs: 12, global_batch_size: 32, device: cpu, amp: off, channels_last: false, checkpoint_every_s: 0.5}
arms: {a: {}}
seeds: SEEDS
wandb: {mode: offline}
"""
SHM = Path("/dev/shm")
#: What was true of a machine at a time: records of past attempts, and what processes said. Nothing reads a place from them.
OF_THE_PAST = ("attempts", "logs", "log.txt", "submission.json")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    if not os.access(SHM, os.W_OK) or SHM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    folder = Path(tempfile.mkdtemp(dir=SHM, prefix="moved-"))
    yield folder
    shutil.rmtree(folder)


class Desk:
    """A working directory with a sweep's file, and the commands that a user types there."""

    def __init__(self, folder: Path, data: Path, seeds: int) -> None:
        self.seeds = seeds
        self.folder, self.file = folder, folder / "demo.yaml"
        self.file.write_text(SWEEP.replace("SEEDS", str(seeds)))
        self.environ = {name: text for name, text in os.environ.items() if not name.startswith(("WANDB_", "SLURM_"))}
        self.environ |= {"HPC_DATA_DIR": str(data), "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(folder / "config")}

    def begin(self, module: str, *words: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", module, *map(str, words)]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def run(self, module: str, *words: object, code: int = 0) -> str:
        process = self.begin(module, *words)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == code, f"{module} ended with {process.returncode}: {said[-3000:]}"
        return said

    def launch(self, runs_dir: Path, *words: object) -> str:
        return self.run("hpc.launch", "--sweep", self.file, "--local", "--runs-dir", runs_dir, *words)

    def launch_half(self, runs_dir: Path) -> None:
        """Ctrl-C once every run has trained an epoch."""
        process = self.begin("hpc.launch", "--sweep", self.file, "--local", "--runs-dir", runs_dir, "wandb.mode=disabled")
        wait_until(lambda: len(started(runs_dir / "demo")) == self.seeds or process.poll() is not None, 120)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
        assert not list(runs_dir.glob("demo/*/result.json")), f"nothing is left to be trained: {said}"


def started(sweep: Path) -> list[Path]:
    return [path for path in sweep.glob("*/metrics/g0001.jsonl") if path.read_bytes().count(b"\n")]


def untouched(sweep: Path, folder: Path, data: Path) -> dict[str, str]:
    """The digests of the same runs, each trained in one go in a folder of its own."""
    found = {}
    for record in sweep.glob("*/run.yaml"):
        config = yaml.safe_load(record.read_text())["config"]
        config["data"]["dir"] = str(data)
        work = folder / record.parent.name
        work.mkdir(parents=True)
        (work / "run.yaml").write_text(yaml.safe_dump(config))
        found[record.parent.name] = finish(work / "run.yaml", work / "run", 1).state_digest
    return found


def digests(sweep: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["state_digest"] for path in sweep.glob("*/result.json")}


def naming(sweep: Path, text: str) -> list[str]:
    """Files that hold this text, apart from records of the past; links count by where they lead."""
    found = []
    for path in sorted(sweep.rglob("*")):
        inside = path.relative_to(sweep)
        content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        if text.encode() in content and not set(inside.parts) & set(OF_THE_PAST):
            found.append(inside.as_posix())
    return found


def test_a_sweep_moved_halfway_ends_with_the_bits_of_one_that_stayed(
    tmp_path: Path, elsewhere: Path, digits_dir: Path, amount: Callable[[int, int, int], int], report: Callable[[str, str, str], None]
) -> None:
    runs = amount(1, 2, 2)
    desk, old, new = Desk(tmp_path, digits_dir, runs), tmp_path / "runs" / "demo", elsewhere / "demo"
    desk.launch_half(tmp_path / "runs")
    before = {path.relative_to(old): path.read_bytes() for path in old.glob("*/ckpt/*.safetensors")}
    assert before, "nothing was saved"

    desk.run("hpc.move", old, new)
    assert not old.exists() and {path.relative_to(new): path.read_bytes() for path in new.glob("*/ckpt/*.safetensors")} == before
    said = desk.run("hpc.status", new, code=3)
    assert f"({runs} stopped)" in said and f"--runs-dir {os.path.relpath(elsewhere, tmp_path)}" in said, said
    desk.run("hpc.collect", new, "--no-figures")
    assert f"({runs} stopped)" in (new / "table.md").read_text(), (new / "table.md").read_text()

    desk.launch(elsewhere)
    assert digests(new) == untouched(new, tmp_path / "stayed", digits_dir) and len(digests(new)) == runs
    resumed = [json.loads(path.read_text())["base"] for path in new.glob("*/attempts/000002.json")]
    assert len(resumed) == runs and all(resumed), f"begun anew instead of resumed: {resumed}"

    desk.run("hpc.mirror", new)
    assert {json.loads(path.read_text())["epoch"] for path in new.glob("*/wandb/*.json")} == {12}
    assert not old.exists() and naming(new, str(old)) == [], "the old place is back, or named"
    assert list(old.parent.iterdir()) == []
    report("half-trained sweep moved to another file system", f"{runs} run(s)", "state_digest equal, nothing names the old place")
