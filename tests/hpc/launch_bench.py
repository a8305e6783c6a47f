"""A bench for launches: a sweep in a working directory, a stand-in for SLURM that keeps books, and records as training writes them."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hpc import launch_session, launcher, limits, slurm
from hpc.launcher import Request, launch
from hpc.paths import Plan, Submissions, SweepFolder
from seresnet import attempts
from seresnet.attempts import Claim, Owner
from seresnet.run_folder import RunFolder, TrainResult

SWEEP = """\
name: demo
base:
  model: {width: 4, blocks: [1, 1, 1]}
  data: {name: digits}
  optim: {warmup_epochs: 0}
  train: {epochs: 2, global_batch_size: 128, device: cpu, amp: off, channels_last: false}
arms:
  baseline: {}
  se: {model.attention: se}
seeds: 2
"""


class Bench:
    """A working directory with a sweep, a stand-in for SLURM that keeps books, and launches that return what they printed."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file, self.sweep = root / "demo.yaml", SweepFolder(Path("runs/demo"))
        self.file.write_text(SWEEP)
        self.sent: list[dict[str, Any]] = []
        self.listed: dict[str, slurm.ListedJob] | None = {}
        self.limits = limits.Limits()  # of a cluster that says nothing of itself
        self.refusal: str | None = None
        self.records_at_sbatch: list[Submissions] = []
        monkeypatch.setattr(slurm, "submit_array", self._submit)
        monkeypatch.setattr(slurm, "listed_jobs", lambda: self.listed)
        monkeypatch.setattr("hpc.estimate.ask_slurm", lambda draft: "now, says the bench")
        monkeypatch.setattr(launch_session, "live_limits", lambda site: self.limits)
        monkeypatch.setattr(limits, "live_limits", lambda site: self.limits)
        monkeypatch.setattr(launcher, "require_sbatch", lambda site: None)
        monkeypatch.setattr(launcher, "ensure_prepared", lambda runs: None)

    def _submit(self, worker: Any, tasks: Sequence[str], **facts: Any) -> str:
        self.records_at_sbatch.append(Submissions.read(self.sweep))
        if self.refusal:
            raise slurm.SbatchRefusedError(self.refusal)
        self.sent.append({"worker": worker, "tasks": list(tasks), **facts})
        job_id = str(100 + len(self.sent))
        for index in range(len(tasks)):
            self.list_job(f"{job_id}_{index}", "PENDING", facts["job_name"])
        return job_id

    def list_job(self, job_id: str, state: str, name: str | None = None) -> None:
        """A job in the queue, by default under the name that its array was sent with."""
        assert self.listed is not None
        name = self.sent[int(job_id.partition("_")[0]) - 101]["job_name"] if name is None else name
        self.listed[job_id] = slurm.ListedJob(job_id=job_id, name=name or self.sent[-1]["job_name"], state=state, reason="None")

    def launch(self, *overrides: str, site: str | None = "slurm", **request: Any) -> tuple[int, str]:
        text = StringIO()
        chosen = (f"site={site}",) if site else ()
        code = launch(Request(sweep_file=self.file, overrides=(*overrides, *chosen), **request), Console(file=text, width=160))
        return code, text.getvalue()

    def tasks_sent(self) -> list[tuple[str, ...]]:
        """Slugs of each task of the last array."""
        plan = Plan.read(self.sweep)
        return [tuple(plan.runs[run_id].slug for run_id in plan.tasks[task]) for task in self.sent[-1]["tasks"]]

    def run(self, slug: str) -> RunFolder:
        plan = Plan.read(self.sweep)
        return self.sweep.run_folder(plan.find(slug), plan)

    def slugs(self) -> list[str]:
        return [entry.slug for entry in Plan.read(self.sweep).runs.values()]


def finish(folder: RunFolder, epochs: int = 2) -> None:
    """A result, as training writes it."""
    value = {
        "run_id": folder.path.name.rpartition("-")[2],
        **dict.fromkeys(("slug", "state_digest", "data_digest", "data_name", "tier", "device", "amp", "code_digest"), "x"),
        **dict.fromkeys(
            ("step", "parameters", "best_on_test_epoch", "attempts", "world_size", "train_images", "val_images", "test_images"), 1
        ),
        **dict.fromkeys(("last_test_top1_pct", "best_on_test_top1_pct", "seconds"), 1.0),
        **dict.fromkeys(("train_loss", "last_val_top1_pct", "last_test_loss", "val_chosen_epoch", "val_chosen_val_top1_pct"), None),
        **{"val_chosen_test_top1_pct": None, "classes": [], "confusion": [], "epochs": epochs, "commit": None},
    }
    TrainResult(**value).write(folder)


def attempt(folder: RunFolder, ending: str | None, host: str = "elsewhere") -> None:
    """A claim of a process on another machine, and how it ended."""
    generation = attempts.newest_generation(folder) + 1
    attempts.publish_claim(folder, Claim(generation=generation, owner=Owner(host=host, pid=1), base=None))
    if ending:
        attempts.write_end(folder, generation, ending, reason="because of a test")
