"""What a start imports and reads: nothing that one training run does not use, and the data once. Fresh interpreters, not this one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seresnet import assembly
from seresnet.config import DataConfig, RunConfig
from seresnet.errors import DataError
from seresnet.prepare import prepare
from seresnet.world import World

ROOT = Path(__file__).resolve().parents[2]
#: Each costs 0.1 to 3 s; torch's own are what torch.optim and use_deterministic_algorithms bring along.
UNUSED = ("torch._dynamo", "torch._inductor", "sympy", "torchvision", "scipy", "sklearn", "PIL", "pandas", "matplotlib", "wandb")
_TRAIN = f"""
import os, sys
leave = os._exit
def told(code):
    print("loaded:", *(name for name in {UNUSED!r} if name in sys.modules), flush=True)
    leave(code)
os._exit = told
from seresnet import train
train.main(sys.argv[1:])
"""
_CONFIG = """
model: {width: 4, blocks: [1, 1]}
data: {name: digits, train_images: 64, val_images: 0, test_images: 64}
augment: {autoaugment: cifar10}
optim: {warmup_epochs: 0}
train: {epochs: 1, global_batch_size: 32, device: cpu, amp: off, channels_last: false}
"""


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return prepare(DataConfig(name="digits"), tmp_path / "data")


def test_a_whole_run_of_one_rank_imports_no_compiler_and_no_library_it_does_not_use(tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "run.yaml").write_text(_CONFIG)
    command = [sys.executable, "-c", _TRAIN, "--config", "run.yaml", "--run-dir", "run", f"data.dir={prepared.parent}"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("loaded:")]
    assert found == ["loaded:"], found


@pytest.mark.parametrize("mode", [True, False])
def test_deterministic_mode_is_torchs(mode: bool) -> None:
    code = (
        "import torch; from seresnet.assembly import make_deterministic; from seresnet.config import RunConfig, TrainConfig; "
        f"make_deterministic(RunConfig(train=TrainConfig(deterministic={mode}))); "
        "print(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(mode), "False"], done.stdout + done.stderr


def config_of(prepared: Path) -> RunConfig:
    return RunConfig(data=DataConfig(name="digits", dir=str(prepared.parent)))


ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def test_a_sound_array_file_is_read_once(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seresnet import array_file

    digests: list[object] = []
    real = array_file.content_digest
    monkeypatch.setattr(array_file, "content_digest", lambda arrays: digests.append(1) or real(arrays))
    arrays = assembly.open_data(config_of(prepared), ALONE)
    assert (len(digests), len(arrays.train_labels)) == (1, 1433), f"verified {len(digests)} times"


def test_a_damaged_array_file_is_built_again_at_the_start(prepared: Path) -> None:
    expected = assembly.open_data(config_of(prepared), ALONE).digest
    content = bytearray(prepared.read_bytes())
    content[-1] ^= 1
    prepared.write_bytes(content)
    assert assembly.open_data(config_of(prepared), ALONE).digest == expected
    assert prepared.with_name(prepared.name + ".bad").exists()


def test_a_missing_source_is_said(tmp_path: Path) -> None:
    config = RunConfig(data=DataConfig(name="images", path=str(tmp_path / "gone"), dir=str(tmp_path)))
    with pytest.raises(DataError, match="gone does not exist"):
        assembly.open_data(config, ALONE)
