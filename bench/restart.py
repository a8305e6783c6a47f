"""From the start of a process to its first training step: ours, fresh and resumed, beside a plain script that does the same.

Whole processes, alternated; the parent takes the time from spawning to the line that tells of the first step, and the process's own
count of it (`first_step after_s=`) is printed beside. The data are prepared and the page cache is warm, as at a requeue. With a GPU
the network is the report's and is compiled; one start before the first that counts fills the compile cache. Also: `--help` of every
command, two ranks, and `hpc.launch --local` from Enter to the first step of its run.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from measure import Ratio, Report, parser, speedup, spread

REPO = Path(__file__).resolve().parents[1]
#: A start that takes longer hangs.
LIMIT_S = 180.0
SMALL_S, GPU_S, HELP_S = 4.0, 6.0, 0.3
COMMANDS = (
    ("hpc",),
    *((name, "--help") for name in ("hpc.launch", "hpc.status", "hpc.collect", "hpc.mirror", "hpc.move", "hpc.supervisor")),
    *((name, "--help") for name in ("seresnet.train", "seresnet.checkpoint", "seresnet.prepare")),
)
_FIRST_STEP = re.compile(r"\bfirst_step\b(?: after_s=([0-9.]+))?")
_BASE = {
    "data": {"name": "digits", "val_images": 200},
    "augment": {"crop_padding": 2, "flip": False, "autoaugment": "none", "mix_prob": 0},
    "optim": {"lr": 0.05, "warmup_epochs": 1},
}
_TRAIN = {"epochs": 10_000, "checkpoint_every_s": 3600}


@dataclass(frozen=True, kw_only=True)
class Start:
    """Seconds to the first step: by the parent's clock from spawning on, and by the process itself where it says so."""

    seconds: float
    own: float | None


class Seconds(Ratio):
    """Median and quartiles of seconds, not of ratios."""

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f}, n = {self.n})"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    report = Report(script="bench/restart.py")
    report.introduce()
    folder = Path(tempfile.mkdtemp(prefix="bench-restart-"))
    try:
        scene = Scene(folder)
        rounds = 1 if args.quick else args.rounds
        _first_steps(report, scene, rounds)
        if not scene.has_gpu:
            _two_ranks(report, scene, 1 if args.quick else 3)
        if not args.quick:
            _launched(report, scene, 3)
        _helps(report, scene, 1 if args.quick else 5)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report.finish(args)


class Scene:
    """A folder with prepared data, configs, and the commands that start from them."""

    def __init__(self, folder: Path) -> None:
        import torch

        from seresnet.array_file import load_arrays
        from seresnet.config import DataConfig
        from seresnet.prepare import prepare

        self.folder, self.has_gpu = folder, torch.cuda.is_available()
        arrays = load_arrays(prepare(DataConfig(name="digits"), folder / "data"))
        np.savez(folder / "digits.npz", images=arrays.train_images, labels=arrays.train_labels)
        # An ordinary user's environment: our modules' bytecode may be kept, one thread a process.
        self.env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.env |= {"HPC_DATA_DIR": str(folder / "data"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(REPO)}
        self.env |= {"PYTHONUNBUFFERED": "1"}

    def config(self, ranks: int = 1) -> dict[str, Mapping[str, object]]:
        """The small network of configs/demo.yaml, or on a GPU the report's."""
        if self.has_gpu:
            train = {"global_batch_size": 256, "device": "cuda", "amp": "bf16", "channels_last": True, "compile": True}
            return {**_BASE, "model": {"attention": "se"}, "train": {**_TRAIN, **train}}
        train = {"global_batch_size": 32, "device": "cpu", "amp": "off", "channels_last": False}
        train |= {"ranks": 2, "micro_batch_size": 16} if ranks == 2 else {}
        return {**_BASE, "model": {"width": 16, "blocks": [1, 1, 1], "attention": "se"}, "train": {**_TRAIN, **train}}

    def write(self, name: str, content: Mapping[str, object]) -> Path:
        path = self.folder / name
        path.write_text(json.dumps(content))  # JSON is YAML
        return path

    def ours(self, run: str) -> Start:
        """A rank alone, up to its first step; then it is asked to stop and saves."""
        config = self.write("run.yaml", self.config())
        command = [sys.executable, "-m", "seresnet.train", "--config", str(config), "--run-dir", str(self.folder / run)]
        return self._start(command)

    def fresh(self) -> Start:
        shutil.rmtree(self.folder / "fresh", ignore_errors=True)
        return self.ours("fresh")

    def plain(self, *options: str) -> Start:
        gpu = ["--device", "cuda", "--width", "64", "--blocks", "4", "4", "3", "--batch", "256", "--compile"] if self.has_gpu else []
        script = str(REPO / "bench" / "plain_start.py")
        files = ["--data", str(self.folder / "digits.npz"), "--save", str(self.folder / "plain.pt")]
        return self._start([sys.executable, script, *files, *gpu, *options], ends_itself=True)

    def two_ranks(self) -> Start:
        shutil.rmtree(self.folder / "ranks", ignore_errors=True)
        config = self.write("ranks.yaml", self.config(ranks=2))
        # What the supervisor does, less its own start: a process a rank, a file to meet at.
        meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "SERESNET_INIT_METHOD": f"file://{self.folder / 'meeting'}"}
        (self.folder / "meeting").unlink(missing_ok=True)
        command = [sys.executable, "-m", "seresnet.train", "--config", str(config), "--run-dir", str(self.folder / "ranks")]
        env = {**self.env, **meeting}
        with subprocess.Popen(
            command, cwd=self.folder, env={**env, "RANK": "1", "LOCAL_RANK": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as other:
            try:
                return self._start(command, {**env, "RANK": "0", "LOCAL_RANK": "0"})
            finally:
                other.terminate()

    def launched(self) -> Start:
        """`hpc.launch --local`: plan, code snapshot, supervisor, rank."""
        shutil.rmtree(self.folder / "runs", ignore_errors=True)
        sweep = self.write("sweep.yaml", {"name": "restart", "base": self.config(), "seeds": 1, "site": "local"})
        command = [sys.executable, "-m", "hpc.launch", "--sweep", str(sweep), "--local", "--runs-dir", str(self.folder / "runs")]
        return self._start(command, log="runs/restart/*/log.txt")

    def _start(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, log: str | None = None, ends_itself: bool = False
    ) -> Start:
        """Spawn, wait for the line, ask the process to stop. log: glob of the file to look in, instead of standard output."""
        said = self.folder / "said.txt"
        started = time.perf_counter()
        with open(said, "wb") as output:
            child = subprocess.Popen(command, cwd=self.folder, env=env or self.env, stdout=output, stderr=subprocess.STDOUT)
        try:
            while True:
                now = time.perf_counter()
                is_over = child.poll() is not None
                places = list(self.folder.glob(log)) if log else [said]
                if found := next((hit for place in places if (hit := _FIRST_STEP.search(place.read_text(errors="replace")))), None):
                    return Start(seconds=now - started, own=float(found[1]) if found[1] else None)
                if is_over or now - started > LIMIT_S:
                    raise SystemExit(f"{' '.join(command)} came to no first step in {now - started:.0f} s:\n{said.read_text()[-3000:]}")
                time.sleep(0.005)
        finally:
            _stop(child, None if ends_itself else signal.SIGTERM)


def _stop(child: subprocess.Popen[bytes], number: signal.Signals | None) -> None:
    """SIGTERM, as a scheduler would, or none; SIGKILL if that was in vain."""
    if number is not None and child.poll() is None:
        child.send_signal(number)
    try:
        child.wait(60)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _first_steps(report: Report, scene: Scene, rounds: int) -> None:
    """Fresh and resumed, ours and plain, in turn; every other round in reverse order."""
    variants: dict[str, Callable[[], Start]] = {
        "fresh": scene.fresh,
        "resumed": lambda: scene.ours("resumed"),
        "plain": scene.plain,
        "plain resumed": lambda: scene.plain("--resume"),
    }
    for name in ("fresh", "resumed", "plain"):  # warms the caches, and leaves what is resumed
        variants[name]()
    starts: dict[str, list[Start]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            starts[name].append(variants[name]())
    seconds = {name: [start.seconds for start in some] for name, some in starts.items()}
    limit = GPU_S if scene.has_gpu else SMALL_S
    net = "the report's SE-ResNet, compile cache warm" if scene.has_gpu else "SE, width 16, blocks 1 1 1"
    for name, what in (("fresh", "first step, fresh run"), ("resumed", "first step, resumed run")):
        report.row(f"{what} ({net})", _seconds(seconds[name]), "s", ceiling=limit)
        if own := [start.own for start in starts[name] if start.own is not None]:
            report.row(f"{what}, as the process itself says", _seconds(own), "s")
    for name in ("plain", "plain resumed"):
        report.row(f"first step, {name} script", _seconds(seconds[name]), "s")
    report.row("plain script / ours, fresh", speedup(seconds["fresh"], seconds["plain"]))
    report.row("plain script / ours, resumed", speedup(seconds["resumed"], seconds["plain resumed"]))


def _two_ranks(report: Report, scene: Scene, rounds: int) -> None:
    seconds = [scene.two_ranks().seconds for _ in range(rounds)]
    report.row("first step, two ranks (gloo)", _seconds(seconds), "s")


def _launched(report: Report, scene: Scene, rounds: int) -> None:
    seconds = [scene.launched().seconds for _ in range(rounds)]
    report.row("hpc.launch --local, from Enter to the first step", _seconds(seconds), "s")


def _helps(report: Report, scene: Scene, rounds: int) -> None:
    """The slowest command's median is what counts."""
    seconds: dict[tuple[str, ...], list[float]] = {command: [] for command in COMMANDS}
    for number in range(rounds + 1):
        for command in COMMANDS:
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", *command], env=scene.env, cwd=scene.folder, check=True, capture_output=True)
            if number:  # the first warms the caches
                seconds[command].append(time.perf_counter() - started)
    slowest = max(COMMANDS, key=lambda command: spread(seconds[command]).median)
    for command in COMMANDS:
        if command is not slowest:
            report.row(f"python -m {' '.join(command)}", _seconds(seconds[command]), "s")
    report.row(f"slowest --help: python -m {' '.join(slowest)}", _seconds(seconds[slowest]), "s", ceiling=HELP_S)


def _seconds(values: Sequence[float]) -> Seconds:
    return Seconds(**asdict(spread(values)))


def _parser() -> argparse.ArgumentParser:
    made = parser(str(__doc__))
    made.add_argument("--rounds", type=int, default=5, help="starts of each kind")
    return made


if __name__ == "__main__":
    sys.exit(main())
