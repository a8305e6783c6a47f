"""Whole epochs of this toolkit against the plain script: training, test and save, on the same images in equal precision.

`python bench/epoch.py [--check]`. Ours is `python -m seresnet.train` in a process of its own, the other bench/plain_script.py in
another; they train an epoch each in turn. Ours takes the toolkit's defaults; the plain script gets the workers and threads that
served it best; beside it, for information, stands the same script in channels_last. One invariant: all use the same cores (two on
a CPU) and see as many images, tests and saves.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from measure import Report, alternate, parser, speedup
from paced import REPO, Paced
from sample_data import given, made_up, write_official

BENCH = REPO / "bench"
#: On CPU: what the plain script may choose from. Two cores are all that either side gets.
SETTINGS = [(workers, threads) for workers in (0, 1, 2) for threads in (1, 2)]
CPU_CORES = 2
NHWC = "plain in channels_last"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    if args.device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPU_CORES])  # children inherit it
    report = Report(script="epoch.py")
    report.introduce(f"width {args.width}, batch {args.batch}, {args.amp}, {args.images} images + {args.test_images} tested, {args.device}")
    folder = Path(tempfile.mkdtemp(prefix="bench-epoch-"))
    sides: dict[str, Paced] = {}
    try:
        data = write_official(folder, _sample(args, folder))
        settings = _settings(args, data, report)
        sides["ours"] = _ours(args, folder, data)
        for setting in settings:
            name = f"plain, {setting[0]} workers" if args.device == "cuda" else "plain"
            sides[name] = _plain(args, folder, data, name, *setting)
        if not args.quick:
            sides[NHWC] = _plain(args, folder, data, NHWC, *settings[0], "--channels-last")
        _compare(args, sides, report)
    finally:
        for side in sides.values():
            side.close()
        shutil.rmtree(folder)
    return report.finish(args)


def _compare(args: argparse.Namespace, sides: Mapping[str, Paced], report: Report) -> None:
    for name, side in sides.items():
        if side.parameters != sides["ours"].parameters:
            raise SystemExit(f"{name} has {side.parameters} parameters, ours has {sides['ours'].parameters}: not the same network")
    computed: dict[str, list[float]] = {name: [] for name in sides}
    seconds = alternate({name: partial(_epoch, side, computed[name]) for name, side in sides.items()}, args.rounds)
    for name, side in sides.items():
        median = statistics.median(seconds[name])
        report.row(f"{name}: an epoch with test and save", median, "s")
        report.row(f"{name}: images a second, all in", args.images / median)
        last = side.last
        report.row(f"{name}: after epoch {last['epoch']}", f"training loss {float(last['train_loss']):.4f}, test {last['test']} %")
    for name in list(sides)[1:]:
        if args.device == "cpu" and all(computed[name]):
            report.row(f"processor seconds of {name} over ours", speedup(computed["ours"][1:], computed[name][1:]))
        report.row(f"ours against {name}", speedup(seconds["ours"], seconds[name]), floor=_floor(args, name))


def _epoch(side: Paced, computed: list[float]) -> None:
    """Let it train an epoch, and note the processor seconds that it took: a busy machine changes them less than the clock."""
    before = side.cpu_seconds()
    side.epoch()
    computed.append(side.cpu_seconds() - before)


def _floor(args: argparse.Namespace, name: str) -> float | None:
    if args.device == "cpu":
        return 1.3 if name == "plain" else None
    return {"plain, 16 workers": 1.8, "plain, 4 workers": 4.0}.get(name)


def _settings(args: argparse.Namespace, data: Path, report: Report) -> list[tuple[int, int]]:
    """Workers and threads of the plain scripts to compare with: the best on a CPU, those that the aims name on a GPU."""
    if args.device == "cuda":
        return [(workers, os.cpu_count() or 1) for workers in args.workers or (16, 4)]
    if args.workers:
        return [(args.workers[0], args.plain_threads)]
    # Twice round, the better time of each: a disturbance must not choose for it.
    tried = {setting: min(times) for setting, times in _try_settings(args, data).items()}
    best = min(tried, key=lambda setting: tried[setting])
    shown = ", ".join(f"{workers}/{threads}: {1000 * seconds:.0f}" for (workers, threads), seconds in tried.items())
    report.row("the plain script's workers/threads: ms a batch", shown)
    report.row("of these it gets", f"{best[0]} workers, {best[1]} threads")
    return [best]


def _try_settings(args: argparse.Namespace, data: Path, batches: int = 2) -> dict[tuple[int, int], list[float]]:
    """Seconds a batch of each setting; the first batch, which starts the workers, is not counted."""
    import plain_script

    times: dict[tuple[int, int], list[float]] = {setting: [] for setting in SETTINGS}
    for setting in SETTINGS * 2:
        plain = plain_script.parse(_plain_words(args, data, *setting))
        plain_script.prepare_torch(plain)
        loader, _ = plain_script.make_loaders(plain)
        model, optimizer = plain_script.make_model(plain)
        model.train()
        waiting = iter(loader)
        started = 0.0
        for number in range(batches + 1):
            plain_script.train_batch(model, optimizer, *next(waiting), plain)
            started = started if number else time.perf_counter()
        times[setting].append((time.perf_counter() - started) / batches)
        del waiting, loader
    return times


def _plain_words(args: argparse.Namespace, data: Path, workers: int, threads: int) -> list[str]:
    words = ["--data", str(data), "--width", str(args.width), "--batch-size", str(args.batch), "--amp", args.amp, "--device", args.device]
    words += ["--epochs", str(args.rounds + 1), "--schedule-epochs", "900", "--warmup-epochs", "2"]
    return [*words, "--workers", str(workers), "--threads", str(threads)]


def _plain(args: argparse.Namespace, folder: Path, data: Path, name: str, workers: int, threads: int, *more: str) -> Paced:
    words = [str(BENCH / "plain_script.py"), *_plain_words(args, data, workers, threads), *more, "--paced"]
    return Paced(name, [*words, "--save", str(folder / f"{name}.pt")], folder, _environ())


def _ours(args: argparse.Namespace, folder: Path, data: Path) -> Paced:
    config = folder / "run.yaml"
    config.write_text("model: {attention: se}\n")
    overrides: dict[str, object] = {
        "model.width": args.width,
        "data.name": "cifar10",
        "data.path": data,
        "data.dir": folder / "data",
        "optim.warmup_epochs": 2,
        "optim.schedule_epochs": 900,
        "train.epochs": args.rounds + 2,  # one more than is asked for: the last would end the process
        "train.global_batch_size": args.batch,
        "train.device": args.device,
        "train.amp": args.amp,
        "train.threads": CPU_CORES if args.device == "cpu" else 1,
        "train.checkpoint_every_s": 5.0 if args.device == "cpu" else 60.0,  # on a CPU each epoch is saved, as the plain script does
    }
    overrides |= dict(word.split("=", 1) for word in args.set)
    words = [f"{key}={value}" for key, value in overrides.items()]
    command = [str(BENCH / "paced_train.py"), "--config", str(config), "--run-dir", str(folder / "run"), *words]
    return Paced("ours", command, folder, _environ())


def _environ() -> dict[str, str]:
    """Without what would bind a side to fewer threads than it asks for, or ours to somebody's supervisor."""
    return {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS" and not key.startswith("SERESNET_")}


def _sample(args: argparse.Namespace, folder: Path):  # type: ignore[no-untyped-def]
    if args.data is None:
        return made_up(args.images, args.test_images)
    return given(args.data, folder / "data", args.images, args.test_images)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    import torch

    made = parser(__doc__ or "")
    on_gpu = torch.cuda.is_available()
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    made.add_argument("--data", type=Path, help="CIFAR-10: official files or an archive; default: made-up images")
    made.add_argument("--amp", choices=("bf16", "off"), default="bf16", help="precision of both sides")
    made.add_argument("--width", type=int, help="default: 16, on a GPU 64")
    made.add_argument("--batch", type=int, help="default: 128, on a GPU 1024")
    made.add_argument("--images", type=int, help="images of an epoch; default: 1,920, on a GPU 50,000")
    made.add_argument("--test-images", type=int, help="default: a fifth of --images")
    made.add_argument("--rounds", type=int, help="epochs that count; default: 5")
    made.add_argument("--workers", type=int, action="append", help="of the plain script; default: the best of 0, 1, 2; on a GPU 16 and 4")
    made.add_argument("--plain-threads", type=int, default=2, help="with --workers, on a CPU")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of our config, as train.compile=true")
    args = made.parse_args(argv)
    gpu = args.device == "cuda"
    args.width = args.width or (64 if gpu else 16)
    args.batch = args.batch or (1024 if gpu else 16 if args.quick else 128)
    args.images = args.images or (50_000 if gpu else 64 if args.quick else 1920)
    args.test_images = args.test_images or max(10, args.images // 5)
    args.rounds = args.rounds or (1 if args.quick else 5)
    if args.quick and not gpu and not args.workers:
        args.workers = [1]
    return args


if __name__ == "__main__":
    sys.exit(main())
