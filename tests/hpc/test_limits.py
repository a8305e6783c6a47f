"""Limits of a cluster: what is read from Slurm's words, of 22.05 as it was recorded and of 24.11 in its form, and what is refused."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpc import cluster_text, limits, slurm
from hpc.limit_faults import alternatives
from hpc.limits import Limits, Room
from hpc.shapes import TaskShape
from hpc.site import Site, read_site
from seresnet.exits import Exit

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("limits_*.yaml"))


def answers(cluster: str) -> dict[str, str]:
    """What the three clients print, by client; "slurm_22.05+RequeueExit=3" has another value in one line of its configuration."""
    name, _, other = cluster.partition("+")
    text = (GOLDEN / f"cluster_{name}.txt").read_text()
    key, _, value = other.partition("=")
    if key:
        text, found = re.subn(rf"^({key} *= *).*$", rf"\g<1>{value}", text, flags=re.MULTILINE)
        assert found == 1, other
    sections = text.split("$ ")[1:]
    return {section.partition("\n")[0]: section.partition("\n")[2] for section in sections}


def limits_of(cluster: str, user: str, site: Site) -> Limits:
    said = answers(cluster)
    return limits.read_limits(site, user, said["scontrol"], said["sacctmgr"], said["squeue"])


def message(path: Path) -> str:
    """The faults of a site, whose first line says the cluster, the user and the shapes of its tasks."""
    cluster, user, *shapes = path.read_text().partition("\n")[0].removeprefix("# ").split()
    site = read_site(str(path), environ={"PATH": "/nonexistent", "HOME": "/nonexistent"})
    tasks = [(TaskShape(**{name: int(count) for name, count in (word.split("=") for word in shape.split(","))}), 3) for shape in shapes]
    found = limits.faults(limits_of(cluster, user, site), site, tasks)
    return "\n".join(found).replace(f"{path.parent}/", "").replace(f"{path.parents[2]}/", "")


def test_golden_cases_are_all_there() -> None:
    assert len(CASES) >= 14, CASES


@pytest.mark.parametrize("case", CASES)
def test_message_of_a_broken_limit_is_the_golden_one(case: str) -> None:
    assert message(GOLDEN / f"{case}.yaml") + "\n" == (GOLDEN / f"{case}.txt").read_text()


# --- reading ---


def test_recorded_words_of_22_05_are_read() -> None:
    found = limits_of("slurm_22.05", "hpctest", Site(name="s", qos="gpu48"))
    assert (found.version, found.max_array_size, found.max_job_count, found.requeue_exit) == ("22.05.8", 51, 300, {3})
    assert found.enforced == {"associations", "limits", "qos"} and found.is_routed is False and found.preempt_mode == "REQUEUE"
    assert found.partitions is not None and [*found.partitions] == ["low", "cancel", "abrupt", "high", "short"]
    short = found.partitions["short"]
    assert (short.max_time_min, short.max_nodes, short.allow_accounts, short.deny_qos) == (30, 1, {"lab"}, {"gpu48"})
    assert found.nodes is not None and [(node.cpus, node.mem_mb, node.gpus) for node in found.nodes] == [(4, 8000, {"": 2})] * 2
    assert found.qos is not None and found.qos["gpu48"].max_wall_min == 2879 and found.qos["gpu48"].max_tres_user["gres/gpu"] == 1
    (charged,) = found.associations or ()
    assert (charged.account, charged.caps.max_submit, charged.caps.max_wall_min) == ("lab", 25, 4320)


def test_words_of_24_11_are_read() -> None:
    found = limits_of("slurm_24.11", "me", Site(name="s", partition="h200", account="lab_h200", qos="gpu48"))
    assert (found.cluster, found.is_routed, found.requeue_exit, found.max_array_tasks) == ("big", True, frozenset(), 1000)
    assert found.partitions is not None and found.partitions["h200"].qos == "part_h200" and found.partitions["h200"].grace_s == 30
    nodes = {node.name: node for node in found.nodes or ()}
    assert nodes["ga001"].gpus == {"a100": 4} and nodes["gh001"].gpus == {"h200": 8} and nodes["ga001"].features == {"a100", "nvme"}
    assert nodes["ga001"].cpus == 62, "CPUEfctv, not CPUTot"
    assert [(row.account, row.default_qos) for row in found.associations or ()] == [("lab", "gpu48"), ("lab_h200", None)]
    assert found.qos is not None and found.qos["gpu48"].max_tres_user == {"gres/gpu": 24, "mem": 3 * 1024**2}
    assert found.rooms == (
        Room(name="MaxJobCount of this cluster", limit=100000, queued=4),
        Room(name="MaxSubmit of QOS part_h200", limit=100, queued=0),
        Room(name="MaxSubmitPA of QOS gpu48", limit=500, queued=1),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2-00:00:00", 2880),
        ("1-23:59:00", 2879),
        ("04:00:00", 240),
        ("30:00", 30),
        ("90", 90),
        ("UNLIMITED", None),
        ("", None),
        (None, None),
    ],
)
def test_times_are_whole_minutes(text: str | None, expected: int | None) -> None:
    assert cluster_text.minutes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu:2", {"": 2}),
        ("gpu:h100:4(S:0-1)", {"h100": 4}),
        ("gpu:a100:4(IDX:0-3),gpu:v100:2,nvme:1", {"a100": 4, "v100": 2}),
        ("gpu:nvidia_a100_1g.10gb:7", {"nvidia_a100_1g.10gb": 7}),
        ("(null)", {}),
    ],
)
def test_gpus_of_a_node(text: str, expected: dict[str, int]) -> None:
    assert cluster_text.gpus(text) == expected


def test_amounts_and_codes() -> None:
    assert cluster_text.tres("cpu=8,mem=16G,gres/gpu:h200=4,license/x=1") == {"cpu": 8, "mem": 16384, "gres/gpu:h200": 4, "license/x": 1}
    assert cluster_text.codes("3,75-77") == {3, 75, 76, 77} and cluster_text.codes("(null)") == frozenset()


def test_constraints_that_are_more_than_words_are_not_judged() -> None:
    assert alternatives("a|b&c") == [{"a"}, {"b", "c"}] and alternatives("a,b") == [{"a", "b"}]
    assert alternatives("[rack1*2]") is None and alternatives("(a|b)&c") is None and alternatives(None) is None


# --- what is not known refuses nothing ---


@pytest.mark.parametrize("said", ["", "slurm_load_partitions: Unable to contact slurm controller", "Name|"])
def test_a_cluster_that_does_not_answer_refuses_nothing(said: str) -> None:
    site = Site(name="s", partition="x", qos="y", account="z", walltime_min=10**6, constraint="c")
    found = limits.read_limits(site, "me", said, None, None)
    assert found == Limits() and limits.faults(found, site, [(TaskShape(ranks=99, gpus=99), 10**6)]) == []
    assert limits.room(found) is None and limits.room_text(found) is None and limits.array_sizes(found, 5000) == [5000]


def test_without_sacctmgr_partitions_and_nodes_still_count() -> None:
    site = Site(name="s", partition="short", qos="nonsense", walltime_min=60)
    found = limits.read_limits(site, "hpctest", answers("slurm_22.05")["scontrol"], None, None)
    (fault,) = limits.faults(found, site, [])
    assert "30 for partition short" in fault


def test_limits_that_are_not_enforced_refuse_nothing() -> None:
    site = Site(name="s", qos="gpu48", walltime_min=99999)
    found = replace(limits_of("slurm_22.05", "hpctest", site), enforced=frozenset({"none"}))
    assert limits.faults(found, site, [(TaskShape(ranks=2, gpus=2), 1)]) == []
    assert limits.faults(replace(found, enforced=frozenset({"limits"})), site, []) != []


def test_a_task_that_fits_one_partition_of_a_list_is_not_refused() -> None:
    task = [(TaskShape(ranks=4, gpus=2, nodes=2), 1)]
    found = limits_of("slurm_22.05", "hpctest", Site(name="s"))
    wide = Site(name="s", partition=("short", "low"), walltime_min=60, cpus_per_rank=1)
    assert limits.faults(found, wide, task) == []
    assert len(limits.faults(found, replace(wide, partition="short"), task)) == 2


def test_codes_that_slurm_requeues_are_those_of_exits() -> None:
    from hpc.limit_faults import OUR_CODES

    assert {int(code) for code in Exit} - {0, 1} <= {*OUR_CODES}


def test_gpus_that_are_not_asked_for_are_not_limited() -> None:
    task = [(TaskShape(ranks=2, gpus=9), 1)]
    site = Site(name="s", gpu_request="none", cpus_per_rank=1)
    assert limits.faults(limits_of("slurm_22.05", "hpctest", site), site, task) == []
    assert limits.faults(limits_of("slurm_22.05", "hpctest", site), replace(site, gpu_request="gres"), task) != []


# --- arrays and room ---


@pytest.mark.parametrize(
    ("tasks", "most", "expected"), [(120, 26, [26, 26, 26, 26, 16]), (26, 26, [26]), (27, 26, [26, 1]), (0, 26, []), (5, None, [5])]
)
def test_arrays_are_cut_at_max_array_size(tasks: int, most: int | None, expected: list[int]) -> None:
    sizes = limits.array_sizes(Limits(max_array_size=most), tasks)
    assert sizes == expected and sum(sizes) == tasks


def test_an_array_is_never_larger_than_what_may_ever_be_queued() -> None:
    found = Limits(max_array_size=1001, max_array_tasks=500, rooms=(Room(name="MaxSubmit of QOS q", limit=200, queued=150),))
    assert limits.array_sizes(found, 450) == [200, 200, 50]
    assert limits.room(found) == 50 and limits.room_text(found) == "MaxSubmit of QOS q is 200 and 150 are queued"


def test_room_counts_own_tasks_of_the_limit_that_counts() -> None:
    site = Site(name="s", account="lab", partition="a100", qos="gpu48")
    rooms = {room.name: room for room in limits_of("slurm_24.11", "me", site).rooms}
    # The QOS sets a limit, so that of the association (5000) does not count; another user's task is not mine.
    assert rooms["MaxSubmit of QOS gpu48"] == Room(name="MaxSubmit of QOS gpu48", limit=200, queued=3)
    assert rooms["MaxSubmitPA of QOS gpu48"].queued == 3 and len(rooms) == 3


# --- asking ---


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Write a client that notes each call in `asked`; returns that file."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name: str, body: str) -> Path:
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/asked\n{body}\n')
        (tmp_path / name).chmod(0o755)
        return tmp_path / "asked"

    return write


def test_a_cluster_is_asked_three_times_and_each_has_its_limit(
    clients: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TIMEOUT_S", 1.0)
    clients("scontrol", f"cat > /dev/null; sed -n '/^. sacctmgr/q;p' {GOLDEN}/cluster_slurm_22.05.txt")
    clients("sacctmgr", "exec sleep 30")
    asked = clients("squeue", "echo 'me|lab|normal|low'")
    before = time.monotonic()
    found = limits.live_limits(Site(name="s"))
    assert time.monotonic() - before < 5 and sorted(line.split()[0] for line in asked.read_text().splitlines()) == [
        "sacctmgr",
        "scontrol",
        "squeue",
    ]
    assert found.max_array_size == 51 and found.qos is None and found.associations is None
    assert found.rooms == (Room(name="MaxJobCount of this cluster", limit=300, queued=1),)


def test_a_machine_without_slurm_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert limits.live_limits(Site(name="s")) == Limits()


def test_a_client_reads_its_questions(clients: Callable[[str, str], Path]) -> None:
    clients("scontrol", "cat")
    assert slurm.call("scontrol", asked="show config\nshow node\n").stdout == "show config\nshow node\n"
