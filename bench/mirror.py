"""What the W&B mirror costs a training: the same tiny run with W&B disabled, online, with wandb-core frozen at epoch 3, without a server.

The server is the tests' stub on 127.0.0.1. One invariant: every variant ends in the same state and with exit code 0, or the bench fails.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests" / "hpc")]

from wandb_stub import Stub, serving  # noqa: E402

from seresnet.run_folder import RunFolder, TrainResult  # noqa: E402

#: Of the time with W&B disabled (issue 6).
MOST_RATIO = 1.05
#: A server that takes nothing may hold the end of a task for finish_timeout and 5 s.
MOST_END_S = 25.0
VARIANTS = ("disabled", "online", "frozen", "silent")

_RUN = """\
model: {{width: 4, blocks: [1, 1, 1]}}
data: {{name: digits, dir: {data}, train_images: 180, test_images: 40}}
augment: {{flip: false}}
optim: {{lr: 0.05, warmup_epochs: 1}}
train: {{epochs: {epochs}, global_batch_size: 32, device: cpu, amp: off, checkpoint_every_s: 1, eval_batch_size: 40}}
"""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training as a task. train_s: of its epochs, from the journal's own clock; end_s: from its result to the task's end."""

    state_digest: str
    train_s: float
    end_s: float
    left: int  # processes that outlived it
    steps: tuple[int, ...]  # of the server


def train(folder: Path, variant: str, epochs: int) -> Trained:
    """Train one run through the supervisor, as sbatch/train.sh does. Raises RuntimeError if it does not exit with 0."""
    folder.mkdir()
    (folder / "tiny.yaml").write_text(_RUN.format(data=folder.parent / "data", epochs=epochs))
    with serving() as stub, _run(folder, stub, variant) as process:
        if variant in ("frozen", "silent"):
            _disturb(stub, process.pid, variant, folder)
        output, _ = process.communicate(timeout=600)
        ended = time.time()
        (path,) = folder.glob("runs/tiny/*/result.json")
        result = TrainResult.read(RunFolder(path=path.parent))
        if process.returncode != 0 or result is None:
            raise RuntimeError(f"{variant}: exit {process.returncode}\n{output[-2000:]}")
        left = len([pid for pid in _mirrors(folder) if pid != process.pid])
        steps = next((tuple(run.steps) for run in stub.runs.values()), ())
        return Trained(
            state_digest=result.state_digest, train_s=result.seconds, end_s=ended - path.stat().st_mtime, left=left, steps=steps
        )  # fmt: skip


@contextlib.contextmanager
def _run(folder: Path, stub: Stub, variant: str) -> Iterator["subprocess.Popen[str]"]:
    told = {"WANDB_MODE": "disabled"} if variant == "disabled" else stub.environment()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SERESNET_", "WANDB_"))}
    env = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "TMPDIR": str(folder), **told}
    command = [sys.executable, "-m", "hpc.supervisor", "tiny.yaml"]
    process = subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _disturb(stub: Stub, supervisor: int, variant: str, folder: Path) -> None:
    """Freeze the core, or silence the server, once the journal has three epochs and the run is open."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        written = sum(path.read_text().count("\n") for path in folder.glob("runs/tiny/*/metrics/*.jsonl"))
        cores = [pid for pid in _mirrors(folder) if "wandb-core" in _command(pid)]
        if written >= 3 and cores and any(" file_stream " in asked for asked in stub.books.requests):
            break
        time.sleep(0.02)
    else:
        raise RuntimeError(f"{variant}: nothing to disturb within 120 s")
    if variant == "silent":
        stub.behaviour = "silent"
    for core in cores if variant == "frozen" else ():
        os.kill(core, signal.SIGSTOP)


def _mirrors(folder: Path) -> list[int]:
    """Pids of the mirror and all that it started: their temporary files are in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environ = (path / "environ").read_bytes()
            if b"HPC_MIRROR_OF=" in environ and str(folder).encode() in environ:
                found.append(int(path.name))
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def main() -> int:
    """A line for each variant; with --check 1 if one is too slow, ends too late, leaves a process, or ends in another state."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", default=",".join(VARIANTS[:3]), help="of " + ", ".join(VARIANTS))
    parser.add_argument("--check", action="store_true", help="fail where a limit of issue 6 is not kept")
    parser.add_argument("--quick", action="store_true", help="20 epochs, once; nothing is checked")
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.rounds, args.check = 20, 1, False
    chosen = ["disabled", *(name for name in args.variants.split(",") if name != "disabled")]
    with tempfile.TemporaryDirectory(prefix="bench-mirror-") as place:
        train(Path(place) / "warm-up", "disabled", 10)
        found: dict[str, list[Trained]] = {name: [] for name in chosen}
        for turn in range(args.rounds):
            for name in chosen[:: -1 if turn % 2 else 1]:
                found[name].append(train(Path(place) / f"{name}{turn}", name, args.epochs))
    plain, faults = found["disabled"], []
    for name, runs in found.items():
        ratios = [run.train_s / base.train_s for run, base in zip(runs, plain, strict=True)]
        ratio, end_s = statistics.median(ratios), max(run.end_s for run in runs)
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}, n = {len(runs)}"
        rows = f", {len(runs[0].steps)} rows at the server" if name != "disabled" else ""
        print(f"{name}: {statistics.median(run.train_s for run in runs):.1f} s, {ratio:.3f}x ({spread}), ends within {end_s:.1f} s{rows}")
        faults += [f"{name}: {ratio:.3f} times as long as without W&B"] if ratio > MOST_RATIO else []
        faults += [f"{name}: the task ended {end_s:.1f} s after its result"] if end_s > MOST_END_S else []
        faults += [f"{name}: other bits"] if {run.state_digest for run in runs} != {plain[0].state_digest} else []
        faults += [f"{name}: {sum(run.left for run in runs)} processes left"] if any(run.left for run in runs) else []
        complete = tuple(range(1, args.epochs + 1))
        faults += [f"{name}: rows are missing"] if name in ("online", "frozen") and any(run.steps != complete for run in runs) else []
    print(*faults, sep="\n", end="\n" if faults else "")
    return 1 if args.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
