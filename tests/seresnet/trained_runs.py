"""Two tiny trained runs of one sweep, seeds 0 and 1, for tests of what is done with trained runs."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def train_two(root: Path) -> list[Path]:
    """Digits, width 4, 3 epochs, with averages and validation; the run folders."""
    folders = []
    for seed in (0, 1):
        config = {
            "model": {"width": 4, "blocks": [1, 1], "attention": "se", "reduction": 2},
            "data": {"name": "digits", "dir": str(root / "data"), "val_images": 60, "test_images": 120},
            "augment": {"crop_padding": 2, "flip": False, "autoaugment": "none", "mix_prob": 0},
            "optim": {"lr": 0.1, "warmup_epochs": 1, "ema_decay": 0.5},
            "train": {"epochs": 3, "global_batch_size": 32, "device": "cpu", "amp": "off", "seed": seed},
        }
        path, folder = root / f"seed{seed}.yaml", root / "sweep" / f"se-s{seed}"  # as hpc.sweep names runs
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "seresnet.train", "--config", str(path), "--run-dir", str(folder)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        folders.append(folder)
    return folders
