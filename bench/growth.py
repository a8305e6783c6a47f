"""How the cost of training grows: with images, width, ranks, and the runs of a sweep; measured beside what one would predict.

`python bench/growth.py`. It judges nothing: its table is for docs/performance.md. Images and width are measured in turn in one
process, ranks and sweeps as processes of their own. One invariant: each prediction is made from the table's first row of its kind.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from measure import Report, alternate, parser, speedup, spread
from paced import REPO
from sample_data import made_up, write_official

from seresnet import assembly, journal
from seresnet.array_file import Arrays
from seresnet.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from seresnet.engine import Engine
from seresnet.models import count_parameters
from seresnet.prepare import load_arrays, prepare
from seresnet.run_folder import RunFolder
from seresnet.world import World, join

_SWEEP = """\
name: growth-{runs}
base.model: {{width: 4, blocks: [1]}}
base.data: {{name: digits, train_images: 100, test_images: 20, dir: {data}}}
base.augment: {{crop_padding: 2, flip: false, autoaugment: none, mix_prob: 0}}
base.optim: {{warmup_epochs: 0}}
base.train: {{epochs: 1, global_batch_size: 50, device: cpu, amp: off, channels_last: false}}
arms:
  baseline: {{}}
seeds: {runs}
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    report = Report(script="growth.py")
    report.introduce(f"batch {args.batch}, {args.amp}, {args.device}; predicted from each kind's first row")
    folder = Path(tempfile.mkdtemp(prefix="bench-growth-"))
    try:
        source = write_official(folder, made_up(4 * args.images, 20))
        arrays = load_arrays(prepare(DataConfig(name="cifar10", path=str(source)), folder / "data"))
        assembly.make_deterministic(_config(args, args.width, args.images))
        world = join(args.device)
        _images(args, arrays, world, report)
        _width(args, arrays, world, report)
        if not args.quick:
            _ranks(args, source, folder, report)
            _runs(folder, report)
    finally:
        shutil.rmtree(folder)
    return report.finish(args)


def _images(args: argparse.Namespace, arrays: Arrays, world: World, report: Report) -> None:
    """An epoch of one, two and four times as many images: predicted is as many times as long."""
    counts = [args.images, 2 * args.images, 4 * args.images]
    engines = {count: assembly.build_engine(_config(args, args.width, count), arrays, world)[0] for count in counts}
    epochs = {f"{count} images": partial(_steps, engine, engine.steps_per_epoch) for count, engine in engines.items()}
    seconds = alternate(epochs, args.rounds)
    _rows(report, "an epoch", seconds, [1.0, 2.0, 4.0])


def _width(args: argparse.Namespace, arrays: Arrays, world: World, report: Report) -> None:
    """Some steps at growing width: the arithmetic grows with its square, the memory traffic with the width itself."""
    widths = [args.width, 2 * args.width, 4 * args.width]
    engines = {width: assembly.build_engine(_config(args, width, args.images), arrays, world)[0] for width in widths}
    shown = {width: f"width {width} ({count_parameters(engine.model):,} parameters)" for width, engine in engines.items()}
    seconds = alternate({shown[width]: partial(_steps, engine, args.steps) for width, engine in engines.items()}, args.rounds)
    _rows(report, f"{args.steps} steps", seconds, [1.0, 4.0, 16.0])


def _rows(report: Report, what: str, seconds: dict[str, list[float]], predicted: list[float]) -> None:
    first = next(iter(seconds))
    for (name, times), factor in zip(seconds.items(), predicted, strict=True):
        report.row(f"{what}, {name}", spread(times).median, "s")
        if name != first:
            report.row(f"  over the first; predicted {factor:g}x", speedup(seconds[first], times))


def _steps(engine: Engine, steps: int) -> None:
    for _ in range(steps):
        engine.train_step()
    engine.epoch_sums()  # waits for the device


def _ranks(args: argparse.Namespace, source: Path, folder: Path, report: Report) -> None:
    """One process and two of one thread each, the same global batch in the same micro-batches; in turn."""
    if args.device == "cuda" and torch.cuda.device_count() < 2:
        report.row("ranks", "not measured: there is one GPU")
        return
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(args.rank_rounds):
        for ranks in (1, 2)[:: -1 if number % 2 else 1]:
            seconds[ranks].append(_epoch_of(ranks, args, source, folder, folder / f"ranks-{ranks}-{number}"))
    for ranks, times in seconds.items():
        report.row(f"an epoch with ranks: {ranks}, {4 * args.images} images", spread(times).median, "s")
    report.row("  one rank over two; predicted 2x at most", speedup(seconds[2], seconds[1]))


def _epoch_of(ranks: int, args: argparse.Namespace, source: Path, folder: Path, run: Path) -> float:
    """Seconds of training of the second epoch of a run of its own: the first chooses kernels and fetches memory."""
    config = folder / "ranks.yaml"
    config.write_text("model: {attention: se}\n")
    words = [f"model.width={args.width}", "data.name=cifar10", f"data.path={source}", f"data.dir={folder / 'data'}", "train.epochs=2"]
    words += [f"train.ranks={ranks}", f"train.global_batch_size={args.batch}", f"train.micro_batch_size={args.batch // 2}"]
    words += [f"train.device={args.device}", f"train.amp={args.amp}", "optim.warmup_epochs=1"]
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    _call([*start, "-m", "seresnet.train", "--config", str(config), "--run-dir", str(run), *words], folder)
    speed = journal.read(RunFolder(path=run))[1].images_per_s
    assert speed, f"{run}: the second epoch has no images_per_s"
    return 4 * args.images / speed


def _runs(folder: Path, report: Report) -> None:
    """Sweeps of one, two and four runs that train next to nothing: what planning and starting costs, one task at a time."""
    seconds = []
    for runs in (1, 2, 4):
        sweep = folder / f"growth-{runs}.yaml"
        sweep.write_text(_SWEEP.format(runs=runs, data=folder / "data"))
        started = time.perf_counter()
        _call(["-m", "hpc.launch", "--sweep", str(sweep), "--local", "--max-parallel", "1", "--runs-dir", str(folder / "runs")], folder)
        seconds.append(time.perf_counter() - started)
        report.row(f"a sweep of {runs} tiny runs, one at a time, from the command to its end", seconds[-1], "s")
    each = (seconds[2] - seconds[1]) / 2
    report.row("  of it each run more", each, "s")
    report.row("  four runs over one; predicted 4x at most", seconds[2] / seconds[0], "x")


def _call(words: Sequence[str], folder: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("SERESNET_", "SLURM_"))}
    environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "WANDB_MODE": "disabled"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def _config(args: argparse.Namespace, width: int, images: int) -> RunConfig:
    return RunConfig(
        model=ModelConfig(attention="se", width=width),
        data=DataConfig(name="cifar10", train_images=images),
        optim=OptimConfig(warmup_epochs=1),
        train=TrainConfig(device=args.device, amp=args.amp, global_batch_size=args.batch),
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--amp", choices=("bf16", "off"), default="bf16")
    made.add_argument("--width", type=int, help="the smallest of three; default: 16")
    made.add_argument("--batch", type=int, help="default: 64, on a GPU 1024")
    made.add_argument("--images", type=int, help="the smallest of three; default: 256, on a GPU 10,240")
    made.add_argument("--steps", type=int, help="of each width; default: 2, on a GPU 20")
    args = made.parse_args(argv)
    gpu = args.device == "cuda"
    args.width = args.width or (4 if args.quick else 16)
    args.batch = args.batch or (1024 if gpu else 16 if args.quick else 64)
    args.images = args.images or (10_240 if gpu else 32 if args.quick else 256)
    args.steps = args.steps or (20 if gpu else 2)
    args.rounds, args.rank_rounds = (1, 1) if args.quick else (4, 2)
    return args


if __name__ == "__main__":
    sys.exit(main())
