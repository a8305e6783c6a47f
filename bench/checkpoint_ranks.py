"""What steering costs and how fast a run stops, with real rank processes; on a GPU, kills and resumes of the full network.

Part of bench/checkpoint.py, which calls the functions; started with a word as argument this file is one rank of a measurement.
"""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parents[1]
BLOCK = 5  # steps with agreement, then as many without
LIMIT_S = 120.0


def measure_agreement(budget_s: float) -> dict[str, Any]:
    """Two gloo ranks on the CPU: of each pair of blocks, seconds without agreement over those with it; the median step, and call."""
    with tempfile.TemporaryDirectory() as scratch:
        ranks = _pair(["agreement", str(budget_s)], Path(scratch))
        text, _ = ranks[0].communicate(timeout=600)
        ranks[1].wait(60)
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"the ranks of the agreement exited {[rank.returncode for rank in ranks]}")
    return dict(json.loads(text.splitlines()[-1]))


def _agreement_rank(budget_s: float) -> None:
    import statistics

    import torch
    from checkpoint_saves import make_engine

    from seresnet.config import ModelConfig
    from seresnet.watchdog import Watchdog
    from seresnet.world import Agreement, join

    torch.set_num_threads(1)
    world = join("cpu")
    model = ModelConfig(width=16, blocks=(1, 1, 1), attention="se")
    engine = make_engine(model, world, global_batch_size=32, micro_batch_size=16, amp="off", channels_last=False)
    agreement, watchdog = Agreement(world), Watchdog()
    calls: list[float] = []

    def block(agree: bool) -> float:
        started = time.perf_counter()
        for _ in range(BLOCK):
            watchdog.step()
            if agree:
                called = time.perf_counter()
                agreement.agree(False, False, engine.losses.has_diverged)
                calls.append(time.perf_counter() - called)
            engine.train_step()
        agreement.settle()
        return time.perf_counter() - started

    block(True), block(False)  # warm-up
    pairs = world.broadcast_object(max(3, round(budget_s / (block(True) + block(False)))))
    ratios, without = [], []
    for number in range(pairs):
        first = number % 2 == 0
        seconds = {agree: block(agree) for agree in (first, not first)}
        ratios.append(seconds[False] / seconds[True])
        without.append(seconds[False] / BLOCK)
    if world.is_main:
        print(json.dumps({"ratios": ratios, "step_s": statistics.median(without), "agree_s": statistics.median(calls)}))
    world.part()
    sys.stdout.flush()
    os._exit(0)


def train_config(folder: Path, ranks: int, model: Mapping[str, Any] | None = None, **train: Any) -> Path:
    """The full SE-ResNet on digits, CIFAR's shape."""
    config = {
        "model": {"attention": "se", **(model or {})},
        "data": {"name": "digits", "dir": str(folder / "data"), "test_images": 40},
        "optim": {"lr": 0.01, "warmup_epochs": 0},
        "train": {"epochs": 5, "device": "cpu", "amp": "off", "ranks": ranks, **train},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@dataclass(frozen=True, kw_only=True)
class Stop:
    """From a signal to one rank until rank 0's checkpoint has its name, and until both ranks are gone."""

    durable_s: float
    exit_s: float
    step_s: float


def measure_stops(folder: Path, count: int) -> list[Stop]:
    """One run on two ranks, stopped and started again, the signal at a random moment in a step and to either rank."""
    config = train_config(folder, 2, global_batch_size=8, micro_batch_size=4, checkpoint_every_s=2)
    return [_stop_once(folder, config, random.Random(number)) for number in range(count)]


def _stop_once(folder: Path, config: Path, draw: random.Random) -> Stop:
    ckpt, command = folder / "run" / "ckpt", ["-m", "seresnet.train", "--config", str(config), "--run-dir", str(folder / "run")]
    before = _names(ckpt)
    ranks = _pair(command, folder, log=folder / "output.txt")
    try:
        _wait(lambda: len(_names(ckpt) - before) >= 2, ranks)
        (first, early), (last, late) = sorted((_step(name), (ckpt / name).stat().st_mtime) for name in _names(ckpt) - before)[-2:]
        step_s = (late - early) / (last - first)
        time.sleep(draw.uniform(0, step_s))
        old, at = _names(ckpt), time.perf_counter()
        draw.choice(ranks).send_signal(signal.SIGTERM)
        seen = _watch(ckpt, old, ranks)
        exit_s = time.perf_counter() - at
        codes = [rank.wait() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if codes != [75, 75]:
        raise SystemExit(f"stopped ranks exited {codes}, 75 was expected; {folder / 'output.txt'} has why")
    # A periodic save may have been under way: what counts is the newest. None: the step that it stopped at was on the disk already.
    durable_s = seen[max(seen, key=_step)] - at if seen else 0.0
    return Stop(durable_s=durable_s, exit_s=exit_s, step_s=step_s)


def _watch(ckpt: Path, old: set[str], ranks: list[subprocess.Popen[str]]) -> dict[str, float]:
    """When each new checkpoint got its name, until all ranks have exited."""
    seen: dict[str, float] = {}
    limit = time.monotonic() + LIMIT_S
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < limit:
        seen |= dict.fromkeys(_names(ckpt) - old - seen.keys(), time.perf_counter())
        time.sleep(0.002)
    return seen


def kills(folder: Path, count: int, model: Mapping[str, Any] | None = None, **train: Any) -> tuple[int, str, str]:
    """Kills survived, and the state_digest of an undisturbed run and of the one killed at random moments."""
    config = train_config(folder, 1, model, checkpoint_every_s=0.5, **train)
    draw, killed = random.Random(0), 0
    _train(folder, config, "undisturbed").wait(600)
    for _ in range(count):
        ckpt = folder / "killed" / "ckpt"
        before, rank = _names(ckpt), _train(folder, config, "killed")
        while rank.poll() is None and not _names(ckpt) - before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 1))
        killed += rank.poll() is None
        rank.kill()
        rank.wait(60)
    _train(folder, config, "killed").wait(600)
    digests = [json.loads((folder / name / "result.json").read_text())["state_digest"] for name in ("undisturbed", "killed")]
    return killed, digests[0], digests[1]


def _train(folder: Path, config: Path, name: str) -> subprocess.Popen[str]:
    return _start(["-m", "seresnet.train", "--config", str(config), "--run-dir", str(folder / name)], log=folder / "output.txt")


def seconds_a_step(steps: int, deterministic: bool, **train: Any) -> float:
    """Of the full network in a process of its own: CUDA reads what determinism needs only once."""
    words = ["steps", str(steps), json.dumps({"deterministic": deterministic, **train})]
    text, _ = _start(words).communicate(timeout=600)
    return float(json.loads(text.splitlines()[-1]))


def _steps_process(steps: int, train: Mapping[str, Any]) -> None:
    from checkpoint_saves import FULL, make_engine

    from seresnet.assembly import make_deterministic
    from seresnet.config import RunConfig, TrainConfig
    from seresnet.world import join

    make_deterministic(RunConfig(train=TrainConfig(**train)))
    device = train["device"]
    engine = make_engine(FULL, join(device), **{key: value for key, value in train.items() if key != "device"})
    seconds = []
    for _ in range(2):  # the first half warms up
        started = time.perf_counter()
        for _ in range(steps):
            engine.train_step()
        engine.epoch_sums()  # waits for the device
        seconds.append((time.perf_counter() - started) / steps)
    print(json.dumps(seconds[-1]))


def _pair(words: list[str], folder: Path, *, log: Path | None = None) -> list[subprocess.Popen[str]]:
    """Two ranks that meet by a file of their own."""
    meeting = f"file://{folder / secrets.token_hex(4)}"
    return [
        _start(words, {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "SERESNET_INIT_METHOD": meeting}, log)
        for rank in (0, 1)
    ]


def _start(words: list[str], place: Mapping[str, str] | None = None, log: Path | None = None) -> subprocess.Popen[str]:
    """A rank of this file, or with -m of a module; its output goes to the log, and into a pipe where there is none."""
    script = [] if words[0] == "-m" else [str(Path(__file__).resolve())]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "WORLD_SIZE": "1", "RANK": "0", **(place or {})}
    command = [sys.executable, *script, *words]
    if log is None:
        return subprocess.Popen(command, env=environ, text=True, stdout=subprocess.PIPE)
    with open(log, "a") as file:
        return subprocess.Popen(command, env=environ, text=True, stdout=file, stderr=file)


def _names(folder: Path) -> set[str]:
    """Names of checkpoints, temp files left out."""
    return {path.name for path in folder.glob("g*.safetensors")}


def _step(name: str) -> int:
    return int(name.split("-")[1][1:])


def _wait(condition: Callable[[], object], ranks: list[subprocess.Popen[str]]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not condition():
        ended = [rank.returncode for rank in ranks if rank.poll() is not None]
        if ended or time.monotonic() > limit:
            raise SystemExit(f"the ranks did not come so far in {LIMIT_S:.0f} s; ended: {ended}")
        time.sleep(0.01)


if __name__ == "__main__":
    if sys.argv[1:2] not in (["agreement"], ["steps"]):
        sys.exit("a part of bench/checkpoint.py, which starts it: run that one")
    if sys.argv[1] == "agreement":
        _agreement_rank(float(sys.argv[2]))
    else:
        _steps_process(int(sys.argv[2]), json.loads(sys.argv[3]))
