"""What a sweep leaves has the umask's modes: nothing is left private by a temp file, and nothing is given to others against it."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SWEEP = """\
name: modes
base:
  model: {width: 4, blocks: [1, 1, 1]}
  data: {name: digits, train_images: 128, val_images: 32, test_images: 32}
  augment: {crop_padding: 1, flip: false, autoaugment: none, mix_prob: 0}
  optim: {warmup_epochs: 0}
  train: {epochs: 2, global_batch_size: 64, device: cpu, amp: off, channels_last: false}
arms: {a: {}}
seeds: 1
wandb: {mode: MODE}
"""
#: Locks of wandb's own and the like would be listed here with a reason; there are none.
EXCEPT: frozenset[str] = frozenset()


def wrong_modes(folder: Path, umask: int) -> dict[str, str]:
    wrong = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        wanted = (0o777 if stat.S_ISDIR(facts.st_mode) else 0o666) & ~umask
        if not stat.S_ISLNK(facts.st_mode) and path.name not in EXCEPT and facts.st_mode & 0o7777 != wanted:
            wrong[path.relative_to(folder).as_posix()] = f"{facts.st_mode & 0o7777:o}, not {wanted:o}"
    return wrong


@pytest.mark.parametrize("umask", [0o027, 0o077, 0o002])
def test_every_file_of_a_sweep_has_the_umasks_mode(tmp_path: Path, umask: int, amount: Any) -> None:
    if umask != 0o027 and amount(0, 1, 1) == 0:
        pytest.skip("the other umasks with RING=full")
    mode = "offline" if umask == 0o027 else "disabled"
    (tmp_path / "modes.yaml").write_text(SWEEP.replace("MODE", mode))
    command = [
        sys.executable,
        "-m",
        "hpc.launch",
        "--sweep",
        str(tmp_path / "modes.yaml"),
        "--local",
        "--runs-dir",
        str(tmp_path / "out/runs"),
    ]
    environ = {
        **os.environ,
        "HPC_DATA_DIR": str(tmp_path / "out/data"),
        "OMP_NUM_THREADS": "1",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    for name in ("WANDB_API_KEY", "WANDB_MODE", "RING"):
        environ.pop(name, None)
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        ["sh", "-c", f'umask {umask:04o}; exec "$@"', "sh", *command],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    collected = subprocess.run(
        ["sh", "-c", f'umask {umask:04o}; exec "$@"', "sh", sys.executable, "-m", "hpc.collect", str(tmp_path / "out/runs/modes")],
        env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert collected.returncode == 0, collected.stderr
    names = {path.name for path in (tmp_path / "out").rglob("*")}
    assert {"result.json", "plan.json", "log.txt", "table.md", "CODE.json"} <= names, names
    assert any(path.is_file() for path in (tmp_path / "out/data").iterdir())
    assert ("wandb" in names) == (mode == "offline")
    assert wrong_modes(tmp_path / "out", umask) == {}
