"""A sweep on the private cluster as a person gets it, through `python -m hpc.launch`, with the stand-in program in place of training."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster import Cluster
from scenes import copy_code

SWEEP = """\
name: demo
base:
  model: {{width: 4, blocks: [1, 1, 1]}}
  data: {{name: digits}}
  optim: {{warmup_epochs: 0}}
  train: {{epochs: 2, global_batch_size: 128, device: cpu, amp: off, channels_last: false}}
arms:
  baseline: {{}}
seeds: {seeds}
site:
  extends: slurm
  partition: low
  gpu_request: none
  cpus_per_rank: 1
  walltime_min: 5
  signal_delay_s: 30
"""


class Launched:
    """The code, a sweep of it and its runs, in a folder of the ordinary user; acts: what each attempt of every run does."""

    file = "demo.yaml"

    def __init__(self, cluster: Cluster, folder: Path, seeds: int | str, acts: str = "finish", text: str = SWEEP, more: str = "") -> None:
        self.cluster, self.acts = cluster, acts
        self.code = copy_code(cluster, folder / "code-of-user")
        (self.code / self.file).write_text(text.format(seeds=seeds) + more)
        cluster.give_to_user(self.code)

    @property
    def sweep(self) -> Path:
        return self.code / "runs" / "demo"

    def run(self, *words: str, code: int = 0, env: Mapping[str, str] | None = None, timeout_s: float = 300.0) -> str:
        """`python -m hpc.launch --sweep FILE WORDS` as the ordinary user; what it said. Fails on another exit code."""
        command = [sys.executable, "-m", "hpc.launch", "--sweep", self.file, *words]
        told = {"RANK_ACTS": self.acts, "WANDB_MODE": "disabled", "COLUMNS": "200", **(env or {})}
        done = self.cluster.run_as_user(command, cwd=self.code, env=told, check=False, timeout_s=timeout_s)
        assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return str(done.stdout) + str(done.stderr)

    def submissions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.sweep / "submission.json").read_text())["submissions"]
        return found

    @property
    def job(self) -> str:
        """The array of the newest submission."""
        return str(self.submissions()[-1]["job_id"])

    def task(self, index: int) -> dict[str, str]:
        return self.cluster.show_job(f"{self.job}_{index}")

    def listed(self) -> dict[str, tuple[str, str, str]]:
        """Task -> (state, reason, time limit) of everything that is queued."""
        text = self.cluster.command("squeue", "--noheader", "--array", "--format=%i|%T|%r|%l", "-u", "hpctest")
        return {row[0]: (row[1], row[2], row[3]) for row in (line.split("|") for line in text.splitlines())}

    def finished(self) -> int:
        return len(list(self.sweep.glob("*/result.json")))

    def wait_until(self, look: Callable[[], object], what: str, timeout_s: float = 90.0) -> None:
        limit = time.monotonic() + timeout_s
        while not look():
            assert time.monotonic() < limit, f"{what}: not within {timeout_s:.0f} s\n{self.say()}"
            time.sleep(0.25)

    def wait_until_serving(self, count: int) -> None:
        """Until so many runs are past their start and wait for a stop."""
        self.wait_until(lambda: len(list(self.sweep.glob("*/serving-*"))) >= count, f"{count} runs serve")

    def say(self) -> str:
        logs = [*self.sweep.glob("logs/*.out"), *self.sweep.glob("*/log.txt")]
        text = "\n".join(f"== {path}\n{path.read_text()[-1500:]}" for path in logs[:12])
        return f"{self.cluster.command('squeue', '--array', check=False)}\n{text}"
