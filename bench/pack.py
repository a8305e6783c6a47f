"""Runs side by side in one task against the same runs in turn: how much more work is done in the same time, and with which bits.

Both by the real path, `hpc.launch --local` and its supervisor, in a temporary folder. What counts is training alone, images a second of
all runs together as their journals have them: starts and evaluations overlap, too, but a short benchmark is mostly made of them. The whole
wall clock is printed beside. Equal runs must end in equal states however they were packed; that is the floor everywhere.
On the CPU each run has one thread, so that in turn leaves the other cores idle; on a GPU four runs of 1,024 and eight of 128 are packed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from measure import Report, parser, spread

REPO = Path(__file__).resolve().parents[1]
LIMIT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """k runs of one kind."""

    k: int
    batch: int
    epochs: int
    model: Mapping[str, object]
    train: Mapping[str, object]
    images: int | None = None  # of made-up CIFAR-10; None: the digits
    digits: Mapping[str, int] = field(default_factory=dict)  # how many of them, as in DataConfig; empty: all
    floor: float | None = None

    def __str__(self) -> str:
        return f"{self.k} runs at batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What one launch of a case gave."""

    wall_s: float
    images_per_s: float  # of all runs while they train: their sum side by side, their mean in turn
    digests: Mapping[str, str]  # by run


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    report = Report(script="bench/pack.py")
    report.introduce()
    folder = Path(tempfile.mkdtemp(prefix="bench-pack-"))
    try:
        for case in _cases(quick=args.quick):
            _measure(report, Bench(folder, case), 1 if args.quick else args.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report.finish(args)


class Bench:
    """Launches of one case, packed one way or the other."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.case, self._folder, self._launches = case, folder, 0
        self._data: dict[str, object] = {"name": "digits", **case.digits}
        if case.images is not None:
            self._data = {"name": "cifar10", "path": str(_made_up(folder, case.images))}
        self._data["dir"] = str(folder / "data")
        self._env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._env |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(REPO)}

    def launch(self, mode: str) -> Launch:
        """Train all runs to their end. mode: concurrent or sequential, in one task either way."""
        self._launches += 1
        sweep = self._folder / "pack.yaml"
        sweep.write_text(json.dumps(self._sweep(mode)))  # JSON is YAML
        runs = self._folder / f"runs-{self._launches}"
        command = [sys.executable, "-m", "hpc.launch", "--sweep", str(sweep), "--local", "--runs-dir", str(runs)]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=self._folder, env=self._env, capture_output=True, text=True, timeout=LIMIT_S)
        wall_s = time.perf_counter() - started
        if done.returncode:
            logs = "\n".join(path.read_text()[-1500:] for path in runs.rglob("log.txt"))
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}{logs}")
        found = _read(runs, mode, wall_s)
        shutil.rmtree(runs)
        return found

    def _sweep(self, mode: str) -> dict[str, object]:
        case = self.case
        train = {"epochs": case.epochs, "global_batch_size": case.batch, **case.train}
        base = {"model": case.model, "data": self._data, "optim": {"lr": 0.05, "warmup_epochs": 1}, "train": train}
        pack = {"mode": mode, "runs_per_task": case.k, **({"per_gpu": case.k} if mode == "concurrent" else {})}
        return {"name": "pack", "base": base, "seeds": case.k, "pack": pack, "site": "local"}


def _read(runs: Path, mode: str, wall_s: float) -> Launch:
    """Results and speeds, as the run folders have them."""
    from seresnet import journal
    from seresnet.run_folder import RunFolder

    digests, speeds = {}, []
    for result in sorted(runs.glob("pack/*/result.json")):
        digests[result.parent.name] = str(json.loads(result.read_text())["state_digest"])
        # Not the first epoch: that one has the libraries' warm-up, which overlaps with the neighbours' start.
        rates = [epoch.images_per_s for epoch in journal.read(RunFolder(path=result.parent))[1:] if epoch.images_per_s]
        speeds.append(statistics.harmonic_mean(rates))
    together = sum(speeds) if mode == "concurrent" else statistics.harmonic_mean(speeds)
    return Launch(wall_s=wall_s, images_per_s=together, digests=digests)


def _measure(report: Report, bench: Bench, rounds: int) -> None:
    """In turn and side by side, alternated."""
    found: dict[str, list[Launch]] = {"sequential": [], "concurrent": []}
    for number in range(rounds):
        for mode in list(found)[:: -1 if number % 2 else 1]:
            found[mode].append(bench.launch(mode))
    case, pairs = bench.case, list(zip(found["sequential"], found["concurrent"], strict=True))
    for mode, what in (("sequential", "in turn"), ("concurrent", "side by side")):
        report.row(f"{case}, {what}: images/s together", statistics.median(launch.images_per_s for launch in found[mode]))
    report.row(f"{case}: side by side / in turn, training", spread([b.images_per_s / a.images_per_s for a, b in pairs]), floor=case.floor)
    report.row(f"{case}: side by side / in turn, whole wall clock", spread([a.wall_s / b.wall_s for a, b in pairs]))
    expected = found["sequential"][0].digests
    launches = [*found["sequential"], *found["concurrent"]]
    equal = [launch.digests.get(run) == digest for launch in launches for run, digest in expected.items()]
    if len(expected) != case.k:
        raise SystemExit(f"{case}: {len(expected)} runs have a result: {', '.join(expected)}")
    report.row(f"{case}: share of {len(equal)} endings with equal state_digests", sum(equal) / len(equal), floor=1.0)


def _cases(*, quick: bool) -> list[Case]:
    """What this machine can show."""
    import torch

    if not torch.cuda.is_available():
        small = {"width": 16, "blocks": [1, 1, 1], "attention": "se"}
        train = {"device": "cpu", "amp": "off", "channels_last": False, "threads": 1}
        few = {"train_images": 256, "test_images": 100} if quick else {}
        return [Case(k=2, batch=32, epochs=2 if quick else 3, model=small, train=train, digits=few)]
    report = {"attention": "se"}
    train = {"device": "cuda", "amp": "bf16", "channels_last": True}
    return [
        Case(k=4, batch=1024, epochs=2 if quick else 4, model=report, train=train, images=50_000, floor=1.2),
        Case(k=8, batch=128, epochs=2 if quick else 3, model=report, train=train, images=10_000, floor=2.0),
    ]


def _made_up(folder: Path, images: int) -> Path:
    """Made-up images as the official files, one folder for each number of them."""
    from sample_data import made_up, write_official

    place = folder / f"images-{images}"
    return place / "cifar-10-batches-py" if place.exists() else write_official(place, made_up(images, 1000))


def _parser() -> argparse.ArgumentParser:
    made = parser(str(__doc__))
    made.add_argument("--rounds", type=int, default=3, help="launches of each kind")
    return made


if __name__ == "__main__":
    sys.exit(main())
