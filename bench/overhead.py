"""An epoch of this toolkit against its bare steps: what data, augmentation, agreement, saves and records cost on top.

`python bench/overhead.py [--check]`. The epoch is that of `python -m seresnet.train` with all it does; ten test images make its
evaluation too small to count, since the bare steps have none. The bare steps are as many forward and backward passes and updates on
batches that lie ready, between the epochs of the same process. One invariant: the parts shown are measured in the epochs that count.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import Report, parser, speedup
from paced import REPO
from sample_data import made_up, write_official

#: Of 1,797 digits: a network whose step takes about 10 ms on a CPU; there is nothing smaller that anybody trains.
TINY = {
    "model.width": 16,
    "model.blocks": "[1,1,1]",
    "data.name": "digits",
    "data.test_images": 10,
    "augment.crop_padding": 2,
    "augment.flip": "false",
    "augment.autoaugment": "none",
    "augment.mix_prob": 0,
    "train.global_batch_size": 32,
    "train.amp": "off",
    "train.channels_last": "false",
}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    report = Report(script="overhead.py")
    report.introduce(f"{args.rounds} epochs of {args.steps} steps, {args.device}, {args.threads} threads, a save every {args.save_every} s")
    folder = Path(tempfile.mkdtemp(prefix="bench-overhead-"))
    try:
        data = write_official(folder, made_up(args.steps * args.batch, 10))
        usual = {"model.width": args.width, "data.path": data, "train.global_batch_size": args.batch, "train.amp": args.amp}
        ceiling = 1.05 if args.device == "cuda" else 1.10
        _measure(f"width {args.width}, batch {args.batch}, {args.amp}", usual, args, folder / "usual", report, ceiling)
        if not args.quick and args.device == "cpu":
            _measure("digits, width 16, batch 32, three blocks", TINY, args, folder / "tiny", report, None)
    finally:
        shutil.rmtree(folder)
    return report.finish(args)


def _measure(
    name: str, overrides: Mapping[str, object], args: argparse.Namespace, folder: Path, report: Report, ceiling: float | None
) -> None:
    rows = _run(overrides, args, folder)[1:]  # the first epoch chooses kernels and fetches memory
    epochs, bare, steps = [row["epoch_s"] for row in rows], [row["bare_s"] for row in rows], rows[0]["steps"]
    saves = len({row["saved"] for row in rows if row["saved"] is not None})
    middle = statistics.median(bare)
    report.row(f"{name}: a bare step", 1000 * middle / steps, "ms")
    report.row(f"{name}: an epoch over its bare steps", speedup(bare, epochs), ceiling=ceiling)
    computed = speedup([row["bare_cpu_s"] for row in rows], [row["epoch_cpu_s"] for row in rows])
    report.row("  the same in processor seconds, writing in the background too", computed)
    parts = {part: statistics.mean(row["parts"][part] for row in rows) for part in rows[0]["parts"]}
    rest = statistics.mean(epoch - alone for epoch, alone in zip(epochs, bare, strict=True)) - sum(parts.values())
    for part, seconds in {**parts, "the rest, and noise": rest}.items():
        report.row(f"  of it {part}", f"{1000 * seconds / steps:.3f} ms a step, {100 * seconds / middle:.2f} % of the bare steps")
    report.row("  epochs that were saved, of those that count", f"{saves} of {len(rows)}")


def _run(overrides: Mapping[str, object], args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    (folder / "run.yaml").write_text("model: {attention: se}\n")
    values: dict[str, object] = {
        "data.name": "cifar10",
        "data.dir": folder / "data",
        "train.epochs": args.rounds + 1,
        "train.device": args.device,
        "train.threads": args.threads,
        "train.checkpoint_every_s": args.save_every,
        "optim.warmup_epochs": 1,
    }
    values |= dict(overrides) | dict(word.split("=", 1) for word in args.set)
    words = [f"{key}={value}" for key, value in values.items()]
    command = [sys.executable, str(REPO / "bench" / "overhead_train.py"), "--config", str(folder / "run.yaml")]
    environ = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS" and not key.startswith("SERESNET_")}
    done = subprocess.run([*command, "--run-dir", str(folder / "run"), *words], cwd=folder, env=environ, capture_output=True, text=True)
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(rows) != args.rounds + 1:
        raise SystemExit(f"{len(rows)} of {args.rounds + 1} epochs, exit {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return rows


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    import torch

    made = parser(__doc__ or "")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--amp", choices=("bf16", "off"), default="bf16")
    made.add_argument("--width", type=int, help="default: 16, on a GPU 64")
    made.add_argument("--batch", type=int, help="default: 64, on a GPU 1024")
    made.add_argument("--steps", type=int, help="of an epoch; default: 40, on a GPU 49")
    made.add_argument("--rounds", type=int, help="epochs that count; default: 6, on a GPU 8")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    made.add_argument("--save-every", type=float, help="seconds; default: 5, so that epochs of seconds are saved; on a GPU 60")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config, as train.compile=true")
    args = made.parse_args(argv)
    gpu = args.device == "cuda"
    args.width = args.width or (64 if gpu else 16)
    args.batch = args.batch or (1024 if gpu else 8 if args.quick else 64)
    args.steps = args.steps or (49 if gpu else 4 if args.quick else 40)
    args.rounds = args.rounds or (2 if args.quick else 8 if gpu else 6)
    args.save_every = args.save_every or (60.0 if gpu else 5.0)
    return args


if __name__ == "__main__":
    sys.exit(main())
