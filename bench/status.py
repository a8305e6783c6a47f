"""How long `python -m hpc.status` takes for a large sweep, start of the interpreter included, beside the plain way to read the same.

`python bench/status.py [--runs 1000] [--check]`: builds a sweep of real records (every run with 900 journal lines in three attempts),
puts a stand-in for squeue on PATH, times the command. The plain way: yaml.safe_load of every run.yaml, json.loads of every journal line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import yaml

from hpc.paths import Plan, PlannedFolder, Submission, Submissions, SweepFolder
from hpc.queues import job_name
from seresnet.attempts import Owner
from seresnet.config import RunConfig, TrainConfig, to_dict
from seresnet.journal import EpochRecord
from seresnet.run_folder import RunFolder, RunRecord, TrainResult

ATTEMPTS, LINES = 3, 900
LIMIT_S = 2.0
#: What becomes of runs in turn: so many of ten are ...
KINDS = ("finished", "finished", "finished", "running", "running", "queued", "preempted", "crashed", "diverged", "finished")


def main() -> int:
    """Build, time, print; with --check 1 if the command takes longer than LIMIT_S."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--check", action="store_true", help=f"exit 1 above {LIMIT_S:.0f} s")
    parser.add_argument("--keep", type=Path, help="build here, and leave it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.keep or Path(scratch)
        sweep = build(root, args.runs)
        seconds, counts = time_status(sweep, root / "bin")
        plain_s = time_plain(sweep)
    print(f"status:    {seconds:.2f} s for {args.runs} runs ({', '.join(f'{count} {state}' for state, count in counts.items())})")
    print(f"plain way: {plain_s:.2f} s (yaml.safe_load of every run.yaml, json.loads of every journal line)")
    print(f"ratio:     {plain_s / seconds:.0f} times faster")
    return int(args.check and seconds > LIMIT_S)


def build(root: Path, runs: int) -> SweepFolder:
    """A sweep with every state in it, and a squeue that lists what is queued and running."""
    sweep = SweepFolder(root / "runs" / "bench")
    entries = {f"{index:012x}": _planned(f"{index:012x}", index) for index in range(runs)}
    tasks = {f"0001/{index}": (run_id,) for index, run_id in enumerate(entries)}
    plan = Plan(sweep="bench", salt="0a1b2c3d", arms={"arm": tuple(entries)}, runs=entries, tasks=tasks)
    sweep.path.mkdir(parents=True)
    plan.write(sweep)
    submission = Submission(id="0001", created=0, code="0001", mode="slurm", tasks=tuple(tasks), job_id="7", state="submitted", gpus=1)
    Submissions().with_entry(submission).write(sweep)
    record = _record_text()
    for index, run_id in enumerate(entries):
        _build_run(sweep.run_folder(run_id, plan), run_id, KINDS[index % len(KINDS)], record)
    _write_squeue(root / "bin", job_name(plan, "0001"), runs)
    return sweep


def _planned(run_id: str, index: int) -> PlannedFolder:
    return PlannedFolder(slug=f"arm-s{index}", folder=f"arm-s{index}-{run_id}", arms=("arm",))


def _record_text() -> str:
    config = RunConfig(train=TrainConfig(epochs=1000))
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(path=Path(scratch))
        RunRecord(run_id="RUNID", slug="SLUG", config=to_dict(config)).write(folder)
        return folder.run_yaml.read_text()


def _build_run(folder: RunFolder, run_id: str, kind: str, record: str) -> None:
    folder.create()
    folder.run_yaml.write_text(record.replace("RUNID", f"'{run_id}'").replace("SLUG", folder.path.name))
    if kind == "queued":
        return
    each = LINES // ATTEMPTS
    for generation in range(1, ATTEMPTS + 1):
        first = 1 + each * (generation - 1)
        folder.journal(generation).write_text("".join(_line(epoch, generation) for epoch in range(first, first + each)))
        owner = Owner(host=f"gpu{generation}", pid=1, array_job_id="7_0", started=time.time() - 3600, facts={"code_digest": "c" * 16})
        folder.claim(generation).write_text(json.dumps({"schema": 1, "generation": generation, "base": None, "owner": asdict(owner)}))
        ending = kind if generation == ATTEMPTS else "preempted"
        if ending == "running":
            folder.beat(generation).write_text("1")
            continue
        end = {"schema": 1, "generation": generation, "time": time.time(), "ending": ending, "reason": "as the bench wants it"}
        folder.end(generation).write_text(json.dumps(end))
    if kind == "finished":
        _result(run_id, folder).write(folder)


def _line(epoch: int, generation: int) -> str:
    record = EpochRecord(
        epoch=epoch,
        step=98 * epoch,
        generation=generation,
        lr=0.09876,
        train_loss=1.23456789,
        train_top1_pct=67.891,
        val_loss=0.56789,
        val_top1_pct=89.12,
        test_loss=0.5678912,
        test_top1_pct=90.12,
        skipped_steps=0,
        seconds=12.345678,
        images_per_s=4567.891,
        time=1.7e9 + epoch,
    )
    return json.dumps(asdict(record)) + "\n"


def _result(run_id: str, folder: RunFolder) -> TrainResult:
    words = ("slug", "state_digest", "data_digest", "data_name", "tier", "device", "amp", "code_digest")
    numbers = ("step", "parameters", "best_on_test_epoch", "world_size", "train_images", "val_images", "test_images")
    unknown = (
        "train_loss",
        "last_val_top1_pct",
        "last_test_loss",
        "val_chosen_epoch",
        "val_chosen_val_top1_pct",
        "val_chosen_test_top1_pct",
    )
    values = {
        **dict.fromkeys(words, folder.path.name),
        **dict.fromkeys(numbers, 1),
        **dict.fromkeys(unknown),
        **dict.fromkeys(("last_test_top1_pct", "best_on_test_top1_pct"), 95.5),
    }
    classes = [str(number) for number in range(10)]
    return TrainResult(
        **values,  # type: ignore[arg-type]
        run_id=run_id,
        epochs=1000,
        seconds=12_345.6,
        attempts=ATTEMPTS,
        commit=None,
        classes=classes,
        confusion=[[10] * 10 for _ in classes],
    )


def _write_squeue(folder: Path, name: str, runs: int) -> None:
    listed = {"running": "RUNNING|None", "queued": "PENDING|Resources", "preempted": "PENDING|Priority"}
    rows = [f"7_{index}|{listed[kind]}|N/A|{name}" for index in range(runs) if (kind := KINDS[index % len(KINDS)]) in listed]
    folder.mkdir()
    (folder / "rows").write_text("\n".join(rows) + "\n")
    (folder / "squeue").write_text(f"#!/bin/sh\ncat {folder}/rows\n")
    (folder / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    for client in ("squeue", "scontrol"):
        (folder / client).chmod(0o755)


def time_status(sweep: SweepFolder, clients: Path) -> tuple[float, Counter[str]]:
    """The best of three, as the table is printed into a pipe; and what --json counts."""
    environ = {**os.environ, "PATH": f"{clients}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "hpc.status", str(sweep.path)]
    times = []
    for _ in range(3):
        for beat in sweep.path.glob("*/attempts/*.beat"):
            beat.touch()  # building takes longer than a beat lasts
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        times.append(time.perf_counter() - start)
        if done.returncode != 1 or "Traceback" in done.stderr:
            raise SystemExit(f"status exited {done.returncode}: {done.stderr[-2000:]}")
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, env=environ, check=False).stdout)
    return min(times), Counter(run["state"] for run in found["runs"])


def time_plain(sweep: SweepFolder) -> float:
    """The named alternative."""
    start = time.perf_counter()
    for path in sweep.path.glob("*/run.yaml"):
        yaml.safe_load(path.read_text())
    for path in sweep.path.glob("*/metrics/*.jsonl"):
        for line in path.read_bytes().splitlines():
            json.loads(line)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
