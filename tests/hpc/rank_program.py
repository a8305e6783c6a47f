"""A rank that trains nothing but keeps to the contract of exits.py: what it does in each attempt stands in the run's acts.txt, or
in the environment's RANK_ACTS, a line or a semicolon each.

`finish`, `exit N`, `kill` (itself, -9), `save` (a checkpoint with a higher step, then the next word), `serve` (until SIGTERM, then
save and exit 75), `deaf` (ignores SIGTERM), `rank1:ACT` (that act for rank 1, and serve for the others), `fault` (a crash of the GPU),
`freeze` (stops itself after a word of progress), `eat MB` (so much memory, then serve), `await PATTERN` (until the sweep has such a
file, then the next word), `epochs N` (so many more epochs in the journal, a step each, covered by a checkpoint, then the next word).
Past the last line: finish. Moments at which a stop may come: `starting N` (N seconds before its handlers
are in, as importing torch is), `preparing` (nothing to save yet), `validating` (the epoch is durable, the rest is thrown away),
`saving N` (the save takes N seconds). `hang`: five steps, then nothing, under the real watchdog. `starve`: until Python has no memory.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from seresnet import checkpoint_files, journal
from seresnet.durable import write_durably, write_json_durably
from seresnet.run_folder import CheckpointName, RunFolder, RunRecord, TrainResult
from seresnet.watchdog import Watchdog

FOLDER = RunFolder(path=Path(sys.argv[-1]))
GENERATION, RANK = int(os.environ["SERESNET_GENERATION"]), int(os.environ["RANK"])
told_to_stop = False


def leave(code: int, ending: str) -> None:
    facts = {"code": code, "ending": ending, "reason": f"the program says {ending}"}
    write_json_durably(FOLDER.rank_exit(GENERATION, RANK), facts)
    os._exit(code)


def finish() -> None:
    if RANK == 0:
        record = RunRecord.read(FOLDER)
        TrainResult(
            run_id=record.run_id, slug=record.slug, epochs=record.config["train"]["epochs"], step=1, parameters=1, state_digest="0",
            data_digest="0", data_name="x",
            train_images=1, val_images=0, test_images=1, classes=["a"], train_loss=None, last_val_top1_pct=None, last_test_top1_pct=0.0,
            last_test_loss=None, val_chosen_epoch=None, val_chosen_val_top1_pct=None, val_chosen_test_top1_pct=None, best_on_test_epoch=1,
            best_on_test_top1_pct=0.0, confusion=[[1]], seconds=0.0, attempts=GENERATION, tier="T1", world_size=1, device="cpu", amp="off",
            code_digest="0", commit=None,
        ).write(FOLDER)  # fmt: skip
    leave(0, "finished")


def save(step: int = GENERATION * 10) -> None:
    header = checkpoint_files.Header(generation=GENERATION, step=step)
    text = json.dumps({"__metadata__": checkpoint_files.metadata(header, {})}).encode()
    payload = len(text).to_bytes(8, "little") + text
    name = CheckpointName(generation=GENERATION, step=step, digest=checkpoint_files.digest_of(payload))
    write_durably(FOLDER.checkpoints / str(name), payload)


def train(epochs: int) -> None:
    done = max((record.epoch for record in journal.read(FOLDER)), default=0)
    for epoch in range(done + 1, done + epochs + 1):
        journal.append(FOLDER, journal.EpochRecord(
            epoch=epoch, step=epoch, generation=GENERATION, lr=0.1, train_loss=1.0 / epoch, train_top1_pct=50.0, val_loss=None,
            val_top1_pct=None, test_loss=1.0, test_top1_pct=50.0 + epoch, skipped_steps=0, seconds=1.0,
            images_per_s=100.0, time=time.time(),
        ))  # fmt: skip
        save(epoch)


def say_serving() -> None:
    part = FOLDER.path / f".serving-{GENERATION}-{RANK}"
    part.write_text(str(os.getpid()))
    part.rename(part.with_name(part.name[1:]))


def serve(save_s: float = 0.0, *, saves: bool = True) -> None:
    say_serving()
    while not told_to_stop:
        time.sleep(0.02)
    limit = time.monotonic() + save_s
    while time.monotonic() < limit:
        time.sleep(0.05)
    if saves:
        save()
    leave(75, "stopped")


def validate() -> None:
    save()
    serve(saves=False)


def hang() -> None:
    watchdog = Watchdog(RANK).start(lambda idle_s: leave(76, "hung"))
    for _ in range(5):
        watchdog.step()
        time.sleep(0.02)
    time.sleep(600)


def starve() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    try:
        memory = [bytearray(1 << 20) for _ in range(1000)]
    except MemoryError:
        leave(80, "out_of_memory")
    leave(1, f"{len(memory)} MB were to be had")


def fault() -> None:
    write_json_durably(
        FOLDER.rank_exit(GENERATION, RANK), {"code": 1, "ending": "crashed", "reason": "CUDA error: an illegal memory access"}
    )
    os._exit(1)


def freeze() -> None:
    (Path(os.environ["SERESNET_PROGRESS"]) / f"progress-{RANK}").write_text("1 0.4")
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_for(pattern: str) -> None:
    while not any(FOLDER.path.parent.glob(pattern)) and not told_to_stop:
        time.sleep(0.02)


def on_stop(number: int, frame: object) -> None:
    global told_to_stop
    told_to_stop = True


def act(words: list[str]) -> None:
    if words[0] == "save":
        save()
        act(words[1:])
    elif words[0] == "epochs":
        train(int(words[1]))
        act(words[2:])
    elif words[0] == "eat":
        memory = [b"x" * (1 << 20) for _ in range(int(words[1]))]
        serve() if memory else None
    elif words[0] == "await":
        wait_for(words[1])
        act(words[2:])
    elif words[0].startswith("rank1:"):
        act([words[0].removeprefix("rank1:"), *words[1:]] if RANK == 1 else ["serve"])
    elif words[0] == "exit":
        leave(int(words[1]), "as told")
    elif words[0] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif words[0] == "deaf":
        say_serving()
        time.sleep(600)
    elif words[0] == "saving":
        serve(float(words[1]))
    elif words[0] == "preparing":
        serve(saves=False)
    else:
        {
            "finish": finish, "serve": serve, "fault": fault, "freeze": freeze, "validating": validate, "hang": hang, "starve": starve,
        }[words[0]]()  # fmt: skip


if __name__ == "__main__":
    (FOLDER.path / f"environment-{RANK}").write_text("\n".join(f"{name}={value}" for name, value in os.environ.items()))
    if hasattr(os, "sched_getaffinity"):
        (FOLDER.path / f"cpus-{RANK}").write_text(" ".join(map(str, sorted(os.sched_getaffinity(0)))))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    (FOLDER.path / f"blocked-{RANK}").write_text(" ".join(sorted(signal.Signals(number).name for number in blocked)))
    acts = FOLDER.path / "acts.txt"
    lines = (acts.read_text() if acts.exists() else os.environ.get("RANK_ACTS", "")).replace(";", "\n").splitlines()
    words = lines[GENERATION - 1].split() if len(lines) >= GENERATION else ["finish"]
    if words[0] == "starting":
        say_serving()
        time.sleep(float(words[1]))
        words = words[2:]
    if words[0] != "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, on_stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2))
    act(words)
