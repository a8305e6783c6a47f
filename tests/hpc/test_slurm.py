"""What is parsed, built and refused without a Slurm; what Slurm really does is in tests/slurm."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from hpc import slurm
from hpc.site import Site
from hpc.slurm import TaskShape
from hpc.worker import Worker
from seresnet.errors import ConfigError, SubmissionError

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


def test_the_script_of_an_array_ends_as_train_sh_does(tmp_path: Path) -> None:
    lines = _script(tmp_path, Site(name="s", signal_delay_s=77, setup=("unset PYTHONHOME",)))
    srun = next(index for index, line in enumerate(lines) if line.startswith("srun"))
    assert lines.index("trap : TERM USR1 USR2") < lines.index("unset PYTHONSAFEPATH") < srun
    assert any(line.startswith("source hpc/requeue.sh") for line in lines[:srun])
    assert [line for line in lines[srun + 1 :] if line and not line.startswith("#")] == ["end_task $? 77"]
    assert "end_task $? 60" in Path(__file__).parents[2].joinpath("sbatch/train.sh").read_text()


def test_a_script_without_its_code_says_so(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("\n".join(_script(tmp_path, Site(name="s"))))
    done = subprocess.run(["bash", str(tmp_path / "script")], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 78 and f"no code snapshot in {tmp_path}" in done.stderr


@pytest.mark.parametrize(
    "name", ["array", "output", "chdir", "signal", "open_mode", "requeue", "no-requeue", "time", "outp", "account", "o"]
)
def test_options_that_we_set_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"site\.sbatch\.{name}: --.* is set by the toolkit"):
        _script(tmp_path, Site(name="s", account="lab", sbatch={name: "3"}))


@pytest.mark.parametrize(
    ("site", "word"),
    [
        (Site(name="s", account="a\n#SBATCH --uid=0"), "account"),
        (Site(name="s", sbatch={"reservation": "a\tb"}), "reservation"),
        (Site(name="s", python="python\nreboot"), "python"),
        (Site(name="s", sbatch={"a b\n": 1}), "site.sbatch"),
    ],
)
def test_a_line_break_never_reaches_the_script(tmp_path: Path, site: Site, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        _script(tmp_path, site)


def test_a_folder_that_slurm_would_rename_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    site, folder = Site(name="s"), tmp_path / "a%A b"
    with pytest.raises(ConfigError, match="expand the %"):
        slurm.script(folder, tmp_path, site, TaskShape(), "j", 1)


def test_an_option_that_is_off_is_left_out(tmp_path: Path) -> None:
    lines = _script(tmp_path, Site(name="s", sbatch={"exclusive": False, "spread-job": True}))
    assert "#SBATCH --spread-job" in lines and not any("exclusive" in line for line in lines)


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
    leaks = {
        "WANDB_SERVICE": "x",
        "PYTHONSAFEPATH": "1",
        "SLURM_JWT": "x",
        "SLURM_JOB_ID": "9",
        "SLURM_MEM_PER_CPU": "1",
        "RANK": "0",
        "SERESNET_GENERATION": "4",
    }
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


def _fake_scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n{body}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "asked"


def test_a_slow_scontrol_is_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_fails = (
        f'[ $(grep -c "^$1" {tmp_path}/asked) -gt 1 ] || {{ echo "Socket timed out" >&2; exit 1; }}\necho JobId=4 JobState=RUNNING'
    )
    asked = _fake_scontrol(tmp_path, monkeypatch, first_fails)
    facts = slurm.job_facts("4")
    assert facts is not None and facts.state == "RUNNING" and slurm.requeue("4") is None
    assert asked.read_text().splitlines() == ["show job 4"] * 2 + ["requeue 4"] * 2


def test_a_scontrol_that_knows_no_such_job_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _fake_scontrol(tmp_path, monkeypatch, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert slurm.job_facts("4") is None and asked.read_text().splitlines() == ["show job 4"]


def test_times_are_read_whatever_format_the_user_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    _fake_scontrol(tmp_path, monkeypatch, "echo JobId=4 JobState=RUNNING Reason=$SLURM_TIME_FORMAT")
    facts = slurm.job_facts("4")
    assert facts is not None and facts.reason == "standard"
