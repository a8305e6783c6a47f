"""A rank that tries nothing but keeps to the contract of seresnet.trial; what it does stands in acts.txt of the folder above its own.

A line a run, "SLUG ACT": `refuse` (user error at the first start), `forget` (user error at the second), `mute` (leaves no report),
`serve` (until it is told to stop). Without a line: pass.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from seresnet.durable import write_json_durably
from seresnet.run_folder import RunFolder, RunRecord

folder = RunFolder(path=Path(sys.argv[1]))
assert sys.argv[2:] == ["--trial", "20"], sys.argv
generation, rank = int(os.environ["SERESNET_GENERATION"]), int(os.environ["RANK"])
record = RunRecord.read(folder)
lines = [line.split() for line in (folder.path.parent / "acts.txt").read_text().splitlines()]
act = dict(lines).get(record.slug, "pass")
is_first = not (folder.path / "saved.json").exists()
(folder.path / f"looked-{generation}-{rank}").touch()
while len(list(folder.path.glob(f"looked-{generation}-*"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.01)  # every rank has seen the same folder


def refuse() -> None:
    reason = "data.path: /nowhere does not exist"
    write_json_durably(folder.rank_exit(generation, rank), {"code": 78, "ending": "user_error", "reason": reason})
    os._exit(78)


if act == "serve":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os._exit(75))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    (folder.path.parent / "serving").touch()
    time.sleep(600)
if act == ("refuse" if is_first else "forget"):
    refuse()
if is_first:
    if rank == 0:
        (folder.checkpoints / "left-over").touch()
        write_json_durably(folder.path / "saved.json", {"step": 20, "state_digest": "0"})
    os._exit(75)
if act != "mute" and rank == 0:
    report = {"time": 1.0, "epoch_s": 1.0, "step_s": 0.0123, "images_per_s": 2600.0, "peak_memory_mb": 1234.0, "gpu": None}
    (folder.path / "trial.json").write_text(json.dumps({**report, "checkpoint_bytes": 1, "steps": 20, "ranks": 1}))
os._exit(0)
