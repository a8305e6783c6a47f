"""Sites and limits on a real Slurm whose accounting enforces limits: what we refuse Slurm would refuse too, or leave pending for good."""

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import USER, Cluster, up, why_not

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]

REPO = Path(__file__).resolve().parents[2]
EXTRA = """\
AccountingStorageEnforce=limits,qos
AccountingStorageTRES=gres/gpu
MaxJobCount=300
KillOnBadExit=1
WaitTime=2
MailProg={mail}
PartitionName=short Nodes=n1 MaxTime=30 DefaultTime=10 MaxNodes=1 AllowAccounts=lab DenyQos=gpu48
"""
ACCOUNTING = (
    "add qos gpu48 MaxWall=47:59:00 MaxSubmitJobsPerUser=10 MaxTRESPerUser=gres/gpu=1,cpu=6 MaxTRESPerJob=cpu=3",
    "add qos vip",
    "add account other Description=test Organization=test",
    f"modify user {USER} set qos=normal,gpu48",
    "modify account lab set MaxSubmitJobs=80 MaxWall=3-00:00:00",
)
#: Runs as the ordinary user: the faults, room and array sizes of a site that is told as JSON.
_LOOK = """
import json, sys
from hpc import limits, site
from hpc.shapes import TaskShape
told = json.loads(sys.argv[1])
asked = site.read_site({"extends": "slurm", "cpus_per_rank": 1, **told["site"]})
found = limits.live_limits(asked)
tasks = [(TaskShape(**told["shape"]), told["tasks"])]
print(json.dumps([limits.faults(found, asked, tasks), limits.room(found), limits.array_sizes(found, told["tasks"])]))
"""


@pytest.fixture(scope="module")
def strict() -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(f"no private Slurm cluster: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="hpc-site-"))
    (folder / "mail").write_text(f'#!/bin/sh\necho "$*" >> {folder}/mails\n')
    (folder / "mail").chmod(0o755)
    started = up(folder, max_array_size=51, extra=EXTRA.format(mail=folder / "mail"))
    try:
        for line in ACCOUNTING:
            started.command("sacctmgr", "-i", *line.split())
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder)


@pytest.fixture
def quiet(strict: Cluster) -> Iterator[Cluster]:
    yield strict
    strict.cancel_everything()


def look(cluster: Cluster, site: dict[str, Any], shape: dict[str, int] | None = None, tasks: int = 1) -> tuple[list[str], int, list[int]]:
    told = json.dumps({"site": site, "shape": shape or {}, "tasks": tasks})
    done = cluster.run_as_user([sys.executable, "-c", _LOOK, told], env={"PYTHONPATH": str(REPO)})
    return tuple(json.loads(done.stdout))  # type: ignore[return-value]


def sbatch(cluster: Cluster, *args: str, must_run: bool = False) -> tuple[str, str]:
    """Submit a job; its id or "", and what Slurm said of it: the error, or the reason why it is pending (or "" if it runs).

    must_run: the first reason is not the last word, e.g. of a job that may start in one of two partitions.
    """
    done = cluster.run_as_user(["sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 60", *args], check=False)
    job = done.stdout.strip()
    limit = time.monotonic() + (20 if must_run else 6)
    reason = ""
    while job and time.monotonic() < limit:
        facts = cluster.show_job(job.split(";")[0])
        if facts["JobState"] == "RUNNING":
            return job, ""
        reason = facts["Reason"]
        if reason not in ("None", "Priority") and not must_run:
            break
        time.sleep(0.2)
    return job, reason or done.stderr


#: site, shape, the same for sbatch, what Slurm says, what we say.
BEYOND = [
    ({"qos": "gpu48", "walltime_min": 2880}, {}, "-q gpu48 -t 2880", "QOSMaxWall", "limit of 2879 for QOS gpu48"),
    ({"walltime_min": 4321}, {}, "-t 4321", "AssocMaxWall", "limit of 4320 for account lab"),
    (
        {"partition": "short", "walltime_min": 31},
        {},
        "-p short -t 31",
        "PartitionTimeLimit|PartitionConfig",
        "limit of 30 for partition short",
    ),
    (
        {"partition": "short", "walltime_min": 30},
        {"ranks": 2, "nodes": 2},
        "-p short -N 2 -t 30",
        "PartitionNodeLimit|PartitionConfig",
        "1 node at most",
    ),
    ({"qos": "gpu48"}, {"ranks": 2, "gpus": 2}, "-q gpu48 -c2 --gres=gpu:2", "QOSMaxGRESPerUser", "MaxTRESPerUser of QOS gpu48"),
    ({"qos": "gpu48"}, {"ranks": 4}, "-q gpu48 -c4", "QOSMaxCpuPerJobLimit", "MaxTRES of QOS gpu48 is 3 CPUs"),
    ({}, {"ranks": 3, "gpus": 3}, "-c3 --gres=gpu:3", "node configuration is not available", "has more than 2 GPUs"),
    ({}, {"ranks": 5}, "-c5", "node configuration is not available", "has more than 4 CPUs"),
    ({"mem_gb_per_rank": 9}, {}, "--mem=9G", "Memory specification can not be satisfied|not available", "more than 8000 MB"),
    ({"constraint": "h200"}, {}, "-C h200", "Invalid feature", "no node of partition low has h200"),
    ({"gpu_type": "h200"}, {"gpus": 1}, "--gres=gpu:h200:1", "node configuration is not available", "GPU of type h200"),
    ({"account": "labb"}, {}, "-A labb", "Invalid account", "'labb' is no account of yours"),
    ({"account": "other"}, {}, "-A other", "Invalid account", "'other' is no account of yours"),
    ({"qos": "nope"}, {}, "-q nope", "Invalid qos", "'nope' is no QOS"),
    ({"qos": "vip"}, {}, "-q vip", "Invalid qos", "may not use vip"),
    ({"partition": "lo"}, {}, "-p lo", "invalid partition", "Did you mean low?"),
    (
        {"partition": "short", "qos": "gpu48", "walltime_min": 9},
        {},
        "-p short -q gpu48 -t 9",
        "InvalidQOS|not permitted|QOS",
        "is closed to gpu48",
    ),
]


@pytest.mark.parametrize(("site", "shape", "options", "slurm_says", "we_say"), BEYOND, ids=[entry[2] for entry in BEYOND])
def test_what_is_refused_slurm_would_not_run_either(
    quiet: Cluster, site: dict[str, Any], shape: dict[str, int], options: str, slurm_says: str, we_say: str
) -> None:
    found, _, _ = look(quiet, site, shape)
    _, reason = sbatch(quiet, *options.split())
    print(f"{options}: Slurm: {reason.strip()} | we: {found}")
    assert re.search(slurm_says, reason), f"Slurm: {reason}"
    assert len(found) == 1 and we_say in found[0], found


@pytest.mark.parametrize(
    ("site", "shape", "options"),
    [
        ({"qos": "gpu48", "walltime_min": 2879}, {"ranks": 3, "gpus": 1}, "-q gpu48 -t 2879 -c3 --gres=gpu:1"),
        ({"partition": ["short", "low"], "walltime_min": 60}, {"ranks": 2, "nodes": 2}, "-p short,low -t 60 -N 2"),
        ({"walltime_min": 4320, "mem_gb_per_rank": 7}, {}, "-t 4320 --mem=7G"),
        ({"partition": "short", "walltime_min": 30}, {"ranks": 4, "gpus": 2}, "-p short -t 30 -c4 --gres=gpu:2"),
    ],
)
def test_what_slurm_runs_is_not_refused(quiet: Cluster, site: dict[str, Any], shape: dict[str, int], options: str) -> None:
    _, reason = sbatch(quiet, *options.split(), must_run=True)
    assert reason == "", reason
    assert look(quiet, site, shape)[0] == []


def test_the_largest_array_is_legal_and_one_task_more_is_not(quiet: Cluster) -> None:
    _, room, sizes = look(quiet, {}, tasks=60)
    assert (room, sizes) == (80, [51, 9])
    assert "Invalid job array" in sbatch(quiet, "--array=0-51")[1]
    assert sbatch(quiet, f"--array=0-{sizes[0] - 1}")[0]
    assert look(quiet, {}, tasks=60)[1] == 80 - 51


def test_room_is_what_slurm_still_takes(quiet: Cluster) -> None:
    assert sbatch(quiet, "-q", "gpu48", "--array=0-3")[0]
    _, room, sizes = look(quiet, {"qos": "gpu48"}, tasks=25)
    assert (room, sizes) == (6, [10, 10, 5])
    assert "QOSMaxSubmitJobPerUserLimit" in sbatch(quiet, "-q", "gpu48", f"--array=0-{room}")[1]
    assert sbatch(quiet, "-q", "gpu48", f"--array=0-{room - 1}")[0]
    assert look(quiet, {"qos": "gpu48"})[1] == 0


#: Runs as the ordinary user: an array whose tasks run the site's `python`.
_SUBMIT = """
import json, sys
from pathlib import Path
from hpc import slurm
from hpc.shapes import TaskShape
from hpc.site import read_site
from hpc.worker import Worker
site, shape, tasks = map(json.loads, sys.argv[1:])
where = {"folder": Path("logs").absolute(), "code_dir": Path.cwd()}
print(slurm.submit_array(Worker("/x"), ["0001/0"] * tasks, **where, site=read_site(site), shape=TaskShape(**shape), job_name="keys"))
"""


def submit(cluster: Cluster, folder: Path, site: dict[str, Any], tasks: int = 1, **shape: int) -> str:
    """Send an array from a folder that holds nothing of the toolkit but the batch script's rule."""
    (folder / "hpc").mkdir(parents=True, exist_ok=True)
    shutil.copy(REPO / "hpc" / "requeue.sh", folder / "hpc")
    cluster.give_to_user(folder)
    told = [json.dumps(entry) for entry in ({"extends": "slurm", "cpus_per_rank": 1, "walltime_min": 90, **site}, shape, tasks)]
    return cluster.run_as_user([sys.executable, "-c", _SUBMIT, *told], cwd=folder, env={"PYTHONPATH": str(REPO)}).stdout.strip()


def task_program(folder: Path, text: str) -> str:
    """What a task runs in place of Python."""
    folder.mkdir(parents=True)
    (folder / "program").write_text(f"#!/bin/bash\n{text}\n")
    (folder / "program").chmod(0o755)
    return str(folder / "program")


def test_the_first_nodes_supervisor_outlives_the_failure_of_another(quiet: Cluster) -> None:
    # This cluster kills a step 2 s after its first task has ended, and at once after one that failed.
    folder = quiet.work / "nodes"
    program = task_program(folder, '[ "$SLURM_NODEID" = 0 ] || exit 1\nsleep 5\necho "node 0 of $SLURM_NNODES is done"\nexit 75')
    job = submit(quiet, folder, {"python": program}, ranks=2, nodes=2)
    facts = quiet.wait_for_state(f"{job}_0", "COMPLETED", "FAILED")
    assert facts["ExitCode"] == "75:0" and facts["NumNodes"] == "2", facts
    assert "node 0 of 2 is done" in (folder / "logs" / f"{job}_0_0_log.out").read_text()


def test_one_message_is_sent_when_an_array_has_ended(quiet: Cluster) -> None:
    folder, mails = quiet.work / "mail", quiet.path / "mails"
    mails.unlink(missing_ok=True)
    job = submit(quiet, folder, {"python": task_program(folder, "exit $SLURM_ARRAY_TASK_ID"), "mail": "me@example.org"}, tasks=2)
    for index, state in ((0, "COMPLETED"), (1, "FAILED")):
        quiet.wait_for_state(f"{job}_{index}", state)
    limit = time.monotonic() + 15
    while not mails.exists() and time.monotonic() < limit:
        time.sleep(0.2)
    time.sleep(2)
    assert len(mails.read_text().splitlines()) == 1 and mails.read_text().strip().endswith("me@example.org"), mails.read_text()


def test_slurm_takes_a_sites_keys_as_they_are_meant(quiet: Cluster) -> None:
    site = {
        "extends": "slurm", "partition": ["low", "high"], "partition_accounts": {"low": "lab", "high": "lab"}, "qos": "gpu48",
        "comment": {"preemption": "yes", "requeue": True}, "mps_comment": "gpu_mps=yes", "mail": "me@example.org", "walltime_min": 90,
        "cpus_per_rank": 1, "sbatch": {"nice": 7, "hold": True},
    }  # fmt: skip
    facts = quiet.show_job(submit(quiet, quiet.work / "keys", site, gpus=1, at_a_time=2))
    wanted = {
        "Partition": "low,high",
        "Account": "lab",
        "QOS": "gpu48",
        "TimeLimit": "01:30:00",
        "NumCPUs": "2",
        "MailUser": "me@example.org",
    }
    wanted |= {"Comment": "preemption=yes;requeue=true;gpu_mps=yes", "Requeue": "1", "TresPerNode": "gres:gpu:1", "MailType": "END,FAIL"}
    assert {key: facts.get(key) for key in wanted} == wanted
    assert facts["Nice"] == "7" and facts["JobState"] == "PENDING"


def test_a_new_site_is_what_the_cluster_says_and_can_be_used_at_once(quiet: Cluster) -> None:
    folder = quiet.work / "new"
    (folder / "configs" / "site").mkdir(parents=True)
    quiet.give_to_user(folder)
    env = {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "hpc.launch", "--new-site", "mine"]
    assert "wrote configs/site/mine.yaml" in quiet.run_as_user(command, cwd=folder, env=env).stdout
    text = (folder / "configs" / "site" / "mine.yaml").read_text()
    for expected in (
        "account: lab\n",
        "account_required: true\n",
        "partition: low ",
        "max_gpus_per_node: 2\n",
        "preemption: requeue",
        "short: MaxTime 30 min; 1 nodes; up to 4 CPUs and 7 GB; gpu:2",
        "gpu48: MaxTRES cpu=3; MaxTRESPerUser cpu=6,gres/gpu=1; MaxWall 2879 min",
        "MaxArraySize 51, MaxJobCount 300",
    ):
        assert expected in text, (expected, text)
    show = "from hpc.site import read_site; site = read_site('mine'); print(site.name, site.charged_account, site.partition)"
    assert quiet.run_as_user([sys.executable, "-c", show], cwd=folder, env=env).stdout.split() == ["mine", "lab", "low"]
    again = quiet.run_as_user(command, cwd=folder, env=env, check=False)
    assert again.returncode == 2 and "exists and is left alone" in again.stderr
    assert (folder / "configs" / "site" / "mine.yaml").read_text() == text
