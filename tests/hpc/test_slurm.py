"""What is parsed, built and refused without a Slurm; what Slurm really does is in tests/slurm."""

import os
import time
from pathlib import Path

import pytest

from hpc import slurm
from hpc.site import Site
from hpc.slurm import TaskShape
from hpc.worker import Worker
from seresnet.errors import SubmissionError

ARRAY_TASK = """JobId=5 ArrayJobId=4 ArrayTaskId=1 JobName=a b
   UserId=someone(1001) GroupId=someone(1001) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:02 TimeLimit=00:10:00 TimeMin=N/A
   StartTime=2026-11-22T10:00:00 EndTime=2026-11-22T10:10:00 Deadline=N/A
   PreemptEligibleTime=2026-11-22T10:00:00 PreemptTime=2026-11-22T10:00:01
   Command=/x JobState=FAILED Reason=Mine

JobId=6 ArrayJobId=4 ArrayTaskId=2 JobState=PENDING
"""


def test_facts_of_an_array_task() -> None:
    facts = slurm.parse_job(ARRAY_TASK)
    assert facts is not None
    assert (facts.job_id, facts.state, facts.reason, facts.restarts) == ("4_1", "RUNNING", "None", 2)
    assert facts.start_time == time.mktime((2026, 11, 22, 10, 0, 0, 0, 0, -1))
    assert facts.preempt_time == facts.start_time + 1 and facts.end_time == facts.start_time + 600


def test_unknown_times_are_none() -> None:
    facts = slurm.parse_job("JobId=5 JobName=x JobState=PENDING Reason=Priority StartTime=Unknown EndTime=N/A PreemptTime=None")
    assert facts is not None
    assert (facts.job_id, facts.start_time, facts.end_time, facts.preempt_time) == ("5", None, None, None)


def test_text_without_a_job_is_no_facts() -> None:
    assert slurm.parse_job("") is None and slurm.parse_job("No jobs in the system") is None


def test_an_array_task_is_never_named_by_its_raw_id() -> None:
    # The raw id of one task of an array is the array's: scontrol would answer for, and requeue, all of them.
    assert slurm.own_job_id({"SLURM_JOB_ID": "4", "SLURM_ARRAY_JOB_ID": "4", "SLURM_ARRAY_TASK_ID": "0"}) == "4_0"
    assert slurm.own_job_id({"SLURM_JOB_ID": "9"}) == "9" and slurm.own_job_id({}) is None


def _script(tmp_path: Path, site: Site, ranks: int = 2, gpus: int = 2, tasks: int = 3) -> list[str]:
    return slurm.script(tmp_path / "logs", tmp_path / "code", site, TaskShape(ranks=ranks, gpus=gpus), "demo-0001", tasks).splitlines()


def test_script_asks_for_what_the_site_and_the_shape_say(tmp_path: Path) -> None:
    site = Site(
        name="s", account="lab", qos="q", comment="preemption=yes;requeue=true", constraint="a100|h100", gpu_type="h200",
        cpus_per_rank=4, mem_gb_per_rank=8, walltime_min=90, signal_delay_s=77, array_parallelism=2, sbatch={"reservation": "r"},
    )  # fmt: skip
    lines = _script(tmp_path, site)
    for option in (
        "account=lab", "qos=q", "constraint='a100|h100'", "comment='preemption=yes;requeue=true'", "gres=gpu:h200:2", "cpus-per-task=8",
        "mem=16G", "time=90", "signal=USR2@77", "array=0-2%2", "requeue", "open-mode=append", f"chdir={tmp_path}/code", "reservation=r",
    ):  # fmt: skip
        assert f"#SBATCH --{option}" in lines, (option, lines)
    assert not any("partition" in line or "wckey" in line for line in lines)


def test_script_of_a_cpu_run_asks_for_no_gpu(tmp_path: Path) -> None:
    assert not [line for line in _script(tmp_path, Site(name="s"), ranks=1, gpus=0) if "gpu" in line or "gres" in line]


def test_a_single_task_is_an_array_too(tmp_path: Path) -> None:
    assert "#SBATCH --array=0-0%1" in _script(tmp_path, Site(name="s"), tasks=1)


def test_setup_lines_stop_at_the_first_that_fails(tmp_path: Path) -> None:
    lines = _script(tmp_path, Site(name="s", setup=("module load x",)))
    assert lines.index("set -e") < lines.index("module load x") < next(i for i, line in enumerate(lines) if line.startswith("srun"))


def _fake_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


def _submit(tmp_path: Path) -> str:
    tasks = ["0001/0", "0001/1"]
    return slurm.submit_array(
        Worker("/sweep"), tasks, folder=tmp_path / "logs", code_dir=tmp_path, site=Site(name="s"), shape=TaskShape(), job_name="j"
    )  # fmt: skip


def test_refusal_shows_what_slurm_said_and_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_sbatch(tmp_path, monkeypatch, "echo 'Invalid account' >&2; exit 1")
    with pytest.raises(SubmissionError, match=r"exit 1.*Invalid account"):
        _submit(tmp_path)
    assert list((tmp_path / "logs").iterdir()) == []


def test_pickles_are_where_submitit_looks_and_hold_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_sbatch(tmp_path, monkeypatch, "echo '123;cluster'")
    assert _submit(tmp_path) == "123"
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        "123_0_submitted.pkl",
        "123_1_submitted.pkl",
        "123_submission.sh",
    ]
    assert str(tmp_path).encode() not in (tmp_path / "logs" / "123_1_submitted.pkl").read_bytes()


def test_what_must_not_reach_a_job_is_left_out_of_sbatch_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_sbatch(tmp_path, monkeypatch, f"env > {tmp_path}/env; echo 1")
    leaks = {"WANDB_SERVICE": "x", "SLURM_JWT": "x", "SLURM_JOB_ID": "9", "SLURM_MEM_PER_CPU": "1", "RANK": "0", "SERESNET_GENERATION": "4"}
    for name, value in {**leaks, "SLURM_CONF": "/c", "WANDB_API_KEY": "k", "HPC_DATA_DIR": "/d"}.items():
        monkeypatch.setenv(name, value)
    _submit(tmp_path)
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert not leaks.keys() & seen.keys()
    assert {"SLURM_CONF", "WANDB_API_KEY", "HPC_DATA_DIR"} <= seen.keys()


def test_a_client_that_hangs_is_no_answer(tmp_path: Path) -> None:
    before = time.monotonic()
    reply = slurm.call("sleep", "30", timeout_s=0.2)
    assert reply.returncode is None and not reply.succeeded and time.monotonic() - before < 5


def test_a_missing_client_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert slurm.is_job_listed("1") is None and slurm.listed_jobs() is None and slurm.job_facts("1") is None


def test_clients_start_with_stop_signals_blocked() -> None:
    # Slurm signals every process of a step, children too: a scontrol that dies of it would lose the requeue.
    reply = slurm.call("sh", "-c", "kill -TERM $$; kill -USR2 $$; echo survived")
    assert reply.stdout == "survived\n"
