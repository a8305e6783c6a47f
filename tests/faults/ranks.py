"""Real ranks as real processes for the kill rings, forked from a server that has imported torch once: a start costs 50 ms, not 4 s.

Everything but the exec is as a user has it: own pid, own signals, os._exit, gloo over loopback.
"""

import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from seresnet.run_folder import RunFolder, TrainResult

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["seresnet.recipe", "seresnet.claims", "torch._dynamo", "sklearn.datasets"])


def tiny_config(folder: Path, data_dir: Path, ranks: int, **train: Any) -> Path:
    """A run of 5 epochs x 6 steps on digits that takes a second; its last batch is smaller, with 4 ranks one of them gets nothing."""
    config = {
        "model": {"width": 4, "blocks": [1, 1, 1], "attention": "se", "reduction": 2},
        "data": {"name": "digits", "dir": str(data_dir), "val_images": 32, "train_images": 180, "test_images": 40},
        "augment": {"flip": False, "autoaugment": "cifar10"},
        "optim": {"lr": 0.05, "warmup_epochs": 1},
        "train": {
            "epochs": 5,
            "global_batch_size": 32,
            "micro_batch_size": 32 // ranks,
            "device": "cpu",
            "amp": "off",
            "ranks": ranks,
            "checkpoint_every_s": 0.05,
            "eval_batch_size": 16,
            **train,
        },
    }
    path = folder / f"tiny-{ranks}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(config: Path, run_dir: Path, ranks: int) -> list[BaseProcess]:
    """Start all ranks of one attempt; their output is appended to output.txt beside the run folder."""
    meeting = tempfile.mktemp(prefix="meet-", dir=run_dir.parent)
    processes = [
        _SERVER.Process(target=_rank, args=(str(config), str(run_dir), rank, ranks, meeting), daemon=True) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def join_all(processes: Sequence[BaseProcess], limit_s: float = 120) -> list[int | None]:
    """Exit codes; once a rank has failed the others are killed, as a supervisor would, and at the limit everybody is."""
    deadline = time.monotonic() + limit_s
    while any(process.is_alive() for process in processes):
        failed = any(process.exitcode not in (None, 0, 75) for process in processes)
        if failed or time.monotonic() > deadline:
            kill_all(processes)
        time.sleep(0.01)
    return [process.exitcode for process in processes]


def kill_all(processes: Sequence[BaseProcess]) -> None:
    """SIGKILL, and wait until they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(10)


def send(processes: Sequence[BaseProcess], number: signal.Signals) -> None:
    """Send a signal to every rank that is alive, as Slurm does."""
    for process in processes:
        if process.is_alive() and process.pid:
            os.kill(process.pid, number)


def wait_until(condition: Callable[[], bool], limit_s: float = 60) -> None:
    """Poll a condition; AssertionError at the limit."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def finish(config: Path, run_dir: Path, ranks: int) -> TrainResult:
    """Train to the end in one attempt; AssertionError with the output if it does not get there."""
    codes = join_all(start(config, run_dir, ranks))
    result = TrainResult.read(RunFolder(path=run_dir))
    assert codes == [0] * ranks and result is not None, f"exit codes {codes}\n{(run_dir.parent / 'output.txt').read_text()[-4000:]}"
    return result


def journal_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Every line of every journal file, unmerged."""
    return [json.loads(line) for path in sorted((run_dir / "metrics").glob("*.jsonl")) for line in path.read_text().splitlines()]


def _rank(config: str, run_dir: str, rank: int, ranks: int, meeting: str) -> None:
    handle = os.open(Path(run_dir).parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), SERESNET_INIT_METHOD=f"file://{meeting}")
    from seresnet.train import main

    os._exit(main(["--config", config, "--run-dir", run_dir]))
