"""What is parsed, built and refused without a Slurm; what Slurm really does is in tests/slurm."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hpc import slurm
from hpc.sbatch_script import comment_of
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
    assert [line for line in lines[srun + 1 :] if line and not line.startswith("#")] == [f"end_task $? 77 {tmp_path}/logs"]
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


# --- what a site's keys become ---


def test_a_list_of_partitions_is_one_option_and_its_account_is_charged(tmp_path: Path) -> None:
    site = Site(name="s", account="lab", partition=("h200", "h100"), partition_accounts={"h200": "big", "h100": "big"})
    lines = _script(tmp_path, site)
    assert "#SBATCH --partition=h200,h100" in lines and "#SBATCH --account=big" in lines


@pytest.mark.parametrize(
    ("comment", "at_a_time", "expected"),
    [
        ({"preemption": "yes", "requeue": True}, 1, "preemption=yes;requeue=true"),
        ({"preemption": "yes", "requeue": True}, 2, "preemption=yes;requeue=true;gpu_mps=yes"),
        ("a=b", 2, "a=b;gpu_mps=yes"),
        (None, 2, "gpu_mps=yes"),
        (None, 1, None),
    ],
)
def test_the_comment_has_the_grammar_of_the_site(comment: object, at_a_time: int, expected: str | None) -> None:
    site = Site(name="s", comment=comment, mps_comment="gpu_mps=yes")  # type: ignore[arg-type]
    assert comment_of(site, TaskShape(gpus=1, at_a_time=at_a_time)) == expected


def test_runs_that_share_no_gpu_do_not_ask_for_mps() -> None:
    site = Site(name="s", mps_comment="gpu_mps=yes")
    assert comment_of(site, TaskShape(gpus=0, at_a_time=4)) is None and comment_of(site, TaskShape(gpus=2, at_a_time=2)) is None


def test_mail_is_sent_when_the_array_ends(tmp_path: Path) -> None:
    lines = _script(tmp_path, Site(name="s", mail="me@example.org"))
    assert "#SBATCH --mail-type=END,FAIL" in lines and "#SBATCH --mail-user=me@example.org" in lines
    assert not any("--mail" in line for line in _script(tmp_path, Site(name="s")))


def test_nodes_of_a_task_get_one_supervisor_each_and_none_takes_the_others_down(tmp_path: Path) -> None:
    shape = TaskShape(ranks=8, gpus=2, nodes=4)
    lines = slurm.script(tmp_path / "logs", tmp_path / "code", Site(name="s", cpus_per_rank=3), shape, "j", 1).splitlines()
    for option in ("nodes=4", "ntasks-per-node=1", "gres=gpu:2", "cpus-per-task=6"):
        assert f"#SBATCH --{option}" in lines, (option, lines)
    (srun,) = (line for line in lines if line.startswith("srun "))
    assert "--kill-on-bad-exit=0 --wait=0" in srun
    assert not any("kill-on-bad-exit" in line for line in _script(tmp_path, Site(name="s")))


@pytest.mark.parametrize(("bad", "code"), [("cuda", 3), ("gcc", 3)])
def test_a_module_that_cannot_be_loaded_stops_the_task_before_srun(tmp_path: Path, bad: str, code: int) -> None:
    done = _run(tmp_path, Site(name="s", modules=("gcc", "cuda")), f'module() {{ echo "module $*"; [ "$2" != {bad} ] || return {code}; }}')
    assert done.returncode == code and "SRUN" not in done.stdout and f"module load {bad}" in done.stdout.splitlines()


def test_modules_are_loaded_in_order_before_setup(tmp_path: Path) -> None:
    done = _run(tmp_path, Site(name="s", modules=("gcc", "cuda"), setup=("echo setup",)), 'module() { echo "module $*"; }')
    assert done.stdout.splitlines()[:3] == ["module load gcc", "module load cuda", "setup"] and "SRUN" in done.stdout


def _run(
    tmp_path: Path, site: Site, before: str = "", environ: dict[str, str] | None = None, **more: Any
) -> "subprocess.CompletedProcess[str]":
    """Run the script of one task in bash, with an srun that says what it was given."""
    code = tmp_path / "sweep" / "code" / "0001"
    (code / "hpc").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(slurm.__file__).parent / "requeue.sh", code / "hpc")
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "srun").write_text("#!/bin/bash\necho SRUN\nprintf '<%s>\\n' \"$@\"\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    shape = more.pop("shape", TaskShape(ranks=1, gpus=1))
    text = before + "\n" + slurm.script(tmp_path / "sweep" / "logs", code, site, shape, "j", 1, **more)
    environ = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": "/home/me", **(environ or {})}
    return subprocess.run(["bash", "-c", text], cwd=code, env=environ, capture_output=True, text=True, timeout=30)


# --- containers ---


def _container(tmp_path: Path, site: Site, environ: dict[str, str] | None = None, **more: Any) -> list[str]:
    """The words of the command that srun would start, from the container's name on."""
    done = _run(tmp_path, site, environ=environ, **more)
    assert done.returncode == 0, done.stderr
    words = re.findall(r"<(.*)>", done.stdout)
    assert words[words.index("-c") : words.index("task") + 1] == ["-c", 'trap "" TERM USR1 USR2; exec "$@"', "task"]
    return words[words.index("task") + 1 :]


def test_a_task_in_a_container_is_one_chain_of_exec(tmp_path: Path) -> None:
    site = Site(name="s", container="singularity", image="/i/x.sif", overlay="/o/env.ext3", python="/ext3/bin/python")
    sweep = tmp_path / "sweep"
    assert _container(tmp_path, site) == [
        "singularity", "exec", "--nv", "--overlay", "/o/env.ext3:ro", "--bind", str(sweep), "--pwd", f"{sweep}/code/0001", "/i/x.sif",
        "/ext3/bin/python", "-u", "-m", "submitit.core._submit", f"{sweep}/logs",
    ]  # fmt: skip


def test_a_container_without_gpus_wants_none_and_brings_its_own_python(tmp_path: Path) -> None:
    words = _container(tmp_path, Site(name="s", container="apptainer", image="x.sif", overlay="a:ro"), shape=TaskShape())
    assert "--nv" not in words and words[words.index("x.sif") + 1] == "python" and words[words.index("--overlay") + 1] == "a:ro"


def test_variables_of_a_container_are_those_of_the_node(tmp_path: Path) -> None:
    site = Site(name="s", container="apptainer", image="$S/a b'c.sif", overlay="~/o", binds=("${S}/d:/d", "`x`:/y"))
    words = _container(tmp_path, site, {"S": "/scr atch"})
    assert words[-6] == "/scr atch/a b'c.sif" and "/home/me/o:ro" in words and "/scr atch/d:/d" in words and "`x`:/y" in words
    done = _run(tmp_path, site)
    assert done.returncode and "S: is not set on this node" in done.stderr and "SRUN" not in done.stdout


def test_a_container_sees_sweep_data_cache_and_what_the_launcher_names_once_each(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    site = Site(name="s", container="apptainer", image="x", data_dir=f"{tmp_path}/data", cache_dir=f"{tmp_path}/sweep/cache")
    words = _container(tmp_path, site, visible=[tmp_path / "elsewhere", tmp_path / "data" / "digits"])
    binds = [words[index + 1] for index, word in enumerate(words) if word == "--bind"]
    assert binds == [f"{tmp_path}/{name}" for name in ("sweep", "data", "elsewhere")]
    # A source that is missing would stop the container.
    assert (tmp_path / "data").is_dir() and (tmp_path / "sweep" / "cache").is_dir()


@pytest.mark.parametrize(
    ("bind", "is_shown"),
    [("{0}", True), ("{0}:{0}", True), ("{0}:{0}:rw", True), ("{0}:/elsewhere", False), ("{0}:{0}:ro", False), ("{0}/data", False)],
)
def test_a_folder_is_bound_unless_a_bind_shows_it_in_its_place(tmp_path: Path, bind: str, is_shown: bool) -> None:
    words = _container(tmp_path, Site(name="s", container="apptainer", image="x", binds=(bind.format(tmp_path),)))
    assert (words.count("--bind") == 1) == is_shown, words


def test_a_sweep_behind_a_link_is_seen_under_both_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "sweep").symlink_to(tmp_path / "real")
    words = _container(tmp_path, Site(name="s", container="apptainer", image="x"))
    assert [words[index + 1] for index, word in enumerate(words) if word == "--bind"] == [f"{tmp_path}/sweep", f"{tmp_path}/real"]


def test_a_folder_that_a_container_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    folder, site = tmp_path / "a,b" / "logs", Site(name="s", container="apptainer", image="x")
    with pytest.raises(ConfigError, match=r"a,b: a container cannot be shown a folder with"):
        slurm.check_script(folder, tmp_path / "a,b" / "code", site, TaskShape())
    slurm.check_script(folder, tmp_path, Site(name="s"), TaskShape())
    assert not (tmp_path / "a,b").exists()


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
