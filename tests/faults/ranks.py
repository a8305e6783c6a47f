"""Real ranks as real processes for the kill rings, forked from a server that has imported torch once: a start costs 50 ms, not 4 s.

Everything but the exec is as a supervisor does it: own pid, stop signals blocked until the rank unblocks them, os._exit, gloo over
loopback. execute=True does the exec too: python -m seresnet.train, claimed by us, with the environment of hpc.ranks.
"""

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from hpc.ranks import start_process
from hpc.slurm import stop_signals_blocked
from seresnet import claims, journal
from seresnet.attempts import newest_generation
from seresnet.journal import EpochRecord
from seresnet.run_folder import CheckpointName, RunFolder, TrainResult

_NO_ENVIRON: Mapping[str, str] = MappingProxyType({})

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


class Executed:
    """A rank that was started by exec, with the methods of a multiprocessing process that the rings use."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self.pid, self._popen = popen.pid, popen

    @property
    def exitcode(self) -> int | None:
        return self._popen.poll()

    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        self._popen.kill()

    def join(self, timeout: float | None = None) -> None:
        self._popen.wait(timeout)


Rank = BaseProcess | Executed


def start(
    config: Path,
    run_dir: Path,
    ranks: int,
    *,
    hook: str | None = None,
    environ: Mapping[str, str] = _NO_ENVIRON,
    execute: bool = False,
    supervised: bool = False,
) -> list[Rank]:
    """Start all ranks of one attempt; their output is appended to output.txt beside the run folder.

    hook: "module:function" of a module in tests/faults, called in each rank with (run folder, rank) before main: it may plant faults and
    recorders. environ: added to each rank's environment. supervised: under a claim of this process; then in every attempt of the run.
    execute: by exec, supervised, without a hook.
    """
    meeting = tempfile.mktemp(prefix="meet-", dir=run_dir.parent)
    if supervised or execute:
        environ = {**environ, "SERESNET_GENERATION": str(_claim(run_dir))}
    if execute:
        assert hook is None, "a rank that is started by exec has no hook"
        return _execute(config, run_dir, ranks, meeting, environ)
    processes = [
        _SERVER.Process(target=_rank, args=(str(config), str(run_dir), rank, ranks, meeting, hook, dict(environ)), daemon=True)
        for rank in range(ranks)
    ]
    resource_tracker.ensure_running()  # starting it unblocks SIGTERM and SIGINT (seen)
    with stop_signals_blocked():  # the server is started here too, and hands its mask down
        for process in processes:
            process.start()
    return processes


def join_all(processes: Sequence[Rank], limit_s: float = 120) -> list[int | None]:
    """Exit codes; once a rank has failed the others are killed, as a supervisor would, and at the limit everybody is."""
    (codes,) = together([attend(processes, limit_s)])
    return codes


def attend(processes: Sequence[Rank], limit_s: float = 120, patience_s: float = 0) -> Generator[None, None, list[int | None]]:
    """join_all for together(). patience_s: how long the others may live on once a rank has failed."""
    deadline = time.monotonic() + limit_s
    while any(process.is_alive() for process in processes):
        if any(process.exitcode not in (None, 0, 75) for process in processes):
            deadline = min(deadline, time.monotonic() + patience_s)
            patience_s = float("inf")
        if time.monotonic() >= deadline:
            kill_all(processes)
        yield
    return [process.exitcode for process in processes]


def together(legs: Iterable[Generator[None, None, Any]], width: int = 1) -> list[Any]:
    """What the legs return, in their order. At most `width` are under way; each yields where it would wait. No threads: exit codes of
    forkserver's processes are read once, by whichever thread looks first.
    """
    waiting, running, results = deque(enumerate(legs)), {}, {}
    while waiting or running:
        while waiting and len(running) < width:
            number, leg = waiting.popleft()
            running[number] = leg
        for number, leg in list(running.items()):
            try:
                next(leg)
            except StopIteration as end:
                results[number] = end.value
                del running[number]
        time.sleep(0.002)
    return [results[number] for number in sorted(results)]


def kill_all(processes: Sequence[Rank]) -> None:
    """SIGKILL, and wait until they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(10)


def send(processes: Sequence[Rank], number: signal.Signals) -> None:
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


def finish(config: Path, run_dir: Path, ranks: int, **how: Any) -> TrainResult:
    """Train to the end in one attempt, started as start() is told; AssertionError with the output if it does not get there."""
    (result,) = together([finishing(config, run_dir, ranks, **how)])
    return result


def finishing(config: Path, run_dir: Path, ranks: int, **how: Any) -> Generator[None, None, TrainResult]:
    """finish for together()."""
    codes = yield from attend(start(config, run_dir, ranks, **how))
    result = TrainResult.read(RunFolder(path=run_dir))
    assert codes == [0] * ranks and result is not None, f"exit codes {codes}\n{output(run_dir)[-4000:]}"
    return result


def output(run_dir: Path) -> str:
    """What all ranks of all attempts have printed."""
    path = run_dir.parent / "output.txt"
    return path.read_text(errors="replace") if path.exists() else ""


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint, 0 before the first."""
    names = [CheckpointName.parse(path.name) for path in run_dir.glob("ckpt/*.safetensors")]
    return max((name.step for name in names if name), default=0)


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A tiny run that nobody touched, and how long it took until it began to train and until it had ended."""

    result: TrainResult
    journal: list[EpochRecord]
    start_s: float
    seconds: float

    def left_s(self, run_dir: Path) -> float:
        """About what an attempt takes that goes on from this folder's newest checkpoint."""
        return self.start_s + (self.seconds - self.start_s) * (1 - newest_step(run_dir) / self.result.step)


@cache
def undisturbed(data_dir: Path, ranks: int) -> Undisturbed:
    """Once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix=f"undisturbed-{ranks}-", dir=data_dir.parent))
    config, run_dir = tiny_config(folder, data_dir, ranks), folder / "run"
    began = time.monotonic()
    processes = start(config, run_dir, ranks)
    wait_until(lambda: "started run" in output(run_dir))
    start_s = time.monotonic() - began
    codes, result = join_all(processes), TrainResult.read(RunFolder(path=run_dir))
    assert result is not None, f"exit codes {codes}\n{output(run_dir)[-4000:]}"
    log = journal.read(RunFolder(path=run_dir))
    return Undisturbed(result=result, journal=log, start_s=start_s, seconds=time.monotonic() - began)


def assert_same(run_dir: Path, expected: Undisturbed, story: str) -> None:
    """Same state, same numbers, every epoch once."""
    folder = RunFolder(path=run_dir)
    result = TrainResult.read(folder)
    assert result is not None, story
    assert result.state_digest == expected.result.state_digest, f"{story}: the state differs"
    assert result.confusion == expected.result.confusion, story
    found, wanted = (
        [(r.epoch, r.step, r.train_loss, r.val_top1_pct, r.test_loss) for r in log] for log in (journal.read(folder), expected.journal)
    )
    assert found == wanted, f"{story}: {found} != {wanted}"


def journal_lines(run_dir: Path) -> list[dict[str, Any]]:
    """Every line of every journal file, unmerged."""
    return [json.loads(line) for path in sorted((run_dir / "metrics").glob("*.jsonl")) for line in path.read_text().splitlines()]


def _environ(rank: int, ranks: int, meeting: str) -> dict[str, str]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {**{name: str(value) for name, value in own.items()}, "SERESNET_INIT_METHOD": f"file://{meeting}"}


def _claim(run_dir: Path) -> int:
    folder = RunFolder(path=run_dir)
    folder.create()
    # A later try of one process: proof enough that the one before has ended.
    return claims.acquire(folder, claims.this_process(task_try=newest_generation(folder) + 1)).generation


def _execute(config: Path, run_dir: Path, ranks: int, meeting: str, environ: Mapping[str, str]) -> list[Rank]:
    command = [sys.executable, "-m", "seresnet.train", "--config", str(config), "--run-dir", str(run_dir)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
    log = run_dir.parent / "output.txt"
    return [
        Executed(start_process(command, env={**env, **_environ(rank, ranks, meeting)}, cwd=run_dir.parent, log=log))
        for rank in range(ranks)
    ]


def _rank(config: str, run_dir: str, rank: int, ranks: int, meeting: str, hook: str | None, environ: Mapping[str, str]) -> None:
    handle = os.open(Path(run_dir).parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update({**_environ(rank, ranks, meeting), **environ})
    if hook is not None:
        module, _, function = hook.partition(":")
        getattr(importlib.import_module(module), function)(Path(run_dir), rank)
    from seresnet.train import main

    os._exit(main(["--config", config, "--run-dir", run_dir, *os.environ.get("RING_ARGUMENTS", "").split()]))
