"""How tests/golden/formats/N was made: real training of a network of some hundred parameters on 24 drawn images, two of four epochs.

Run once for each schema that is released, with the code that is released: python tests/golden/formats/make_fixture.py N. A fixture is never
made again: what it holds is what users have on their disks.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

CONFIG = {
    "model": {"width": 2, "blocks": [1], "attention": "se", "reduction": 2},
    "data": {"name": "images", "val_images": 4},
    "augment": {"autoaugment": "none", "crop_padding": 1},
    "optim": {"lr": 0.05, "warmup_epochs": 1, "schedule_epochs": 4},
    "train": {"epochs": 2, "global_batch_size": 6, "device": "cpu", "amp": "off", "channels_last": False, "eval_batch_size": 8},
}


def main(schema: str) -> None:
    """Write images, array file, config and run folder; refuses where there is a fixture."""
    folder = Path(__file__).resolve().parent / schema
    folder.mkdir()
    _draw(folder / "images")
    # threads and paths as a user on another machine has them: relative to the fixture.
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "seresnet.train", "--config", "config.yaml", "--run-dir", "run", "data.path=images", "data.dir=data"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    subprocess.run(command, cwd=folder, env=env, check=True)
    for path in (*folder.glob("data/.*"), *folder.glob("data/*.lock"), *folder.glob("run/attempts/*.beat")):
        path.unlink()


def _draw(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for number, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 128, (8, 8, 3), dtype=np.uint8) + 127 * np.uint8(number)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


if __name__ == "__main__":
    main(sys.argv[1])
