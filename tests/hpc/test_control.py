"""What --alter, --hold, --release, --cancel and --max-gpus ask of Slurm, write down and say; a stand-in keeps Slurm's books."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from launch_bench import Bench, attempt, finish
from rich.console import Console

from hpc import control, gpu_cap, hold, limits, renewal, slurm
from hpc.control import Changes
from hpc.gpu_cap import Need, Share
from hpc.launcher import Request
from hpc.paths import Submissions
from hpc.shapes import TaskShape
from seresnet.errors import ConfigError, SubmissionError

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


class Desk:
    """A launched sweep of four runs, and the Slurm that has it: what it was asked, and what it refuses."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench, self.asked = bench, list[str]()
        self.refuses: dict[str, str] = {}  # a command's beginning -> stderr
        bench.launch()
        monkeypatch.setattr(slurm, "call", self._call)
        monkeypatch.setattr(limits, "live_limits", lambda site: limits.Limits())
        monkeypatch.setattr(control, "read_site", lambda *args, **kwargs: control_site())
        monkeypatch.setattr("hpc.queues.this_cluster", lambda: None)

    def _call(self, *args: str, **_: object) -> slurm.Reply:
        command = " ".join(args)
        if args[0] == "squeue" or args[:2] == ("scontrol", "show"):
            return slurm.Reply(returncode=0, stdout="JobId=1 JobState=PENDING" if args[0] == "scontrol" else "", stderr="")
        self.asked.append(command)
        refusal = next((text for start, text in self.refuses.items() if command.startswith(start)), None)
        return slurm.Reply(returncode=1 if refusal else 0, stdout="", stderr=refusal or "")

    def change(self, max_gpus: int | None = None, **changes: object) -> tuple[int, str]:
        text = StringIO()
        request = Request(sweep_file=self.bench.file, max_gpus=max_gpus)
        code = control.change_queued(request, Changes(**changes), Console(file=text, width=160))  # type: ignore[arg-type]
        return code, text.getvalue()

    def runs(self, index: int) -> None:
        self.bench.list_job(f"101_{index}", "RUNNING")

    @property
    def site(self) -> dict[str, object]:
        return dict(Submissions.read(self.bench.sweep).submissions[0].site)


def control_site() -> object:
    from hpc.site import Site

    return Site(name="slurm")


@pytest.fixture
def desk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    yield Desk(bench, monkeypatch)


def golden(name: str, text: str) -> None:
    assert text == (GOLDEN / name).read_text(), text


# --- alter ---


def test_only_tasks_that_wait_are_asked_and_one_before_the_rest(desk: Desk) -> None:
    desk.runs(1)
    code, said = desk.change(alter=("site.walltime_min=240", "site.constraint=a100|h200"))
    assert desk.asked == [
        "scontrol update JobId=101_0 TimeLimit=240 Features=a100|h200",
        "scontrol update JobId=101_[2-3] TimeLimit=240 Features=a100|h200",
    ]
    assert code == 0 and "3 tasks that wait; 1 task that runs at the next requeue (101_1)" in said
    assert (desk.site["walltime_min"], desk.site["constraint"]) == (240, "a100|h200")


def test_a_value_that_slurm_refuses_is_taken_back_asked_of_no_other_and_not_written_down(desk: Desk) -> None:
    desk.refuses["scontrol update JobId=101_0 Features=typo"] = "101_0: Invalid feature specification"
    code, said = desk.change(alter=("site.constraint=typo",))
    assert desk.asked == ["scontrol update JobId=101_0 Features=typo", "scontrol update JobId=101_0 Features="]
    assert code == 1 and "refused: 101_0: Invalid feature specification" in said and "nothing was altered" in said
    assert desk.site["constraint"] is None


def test_tasks_that_started_meanwhile_are_listed_and_left_for_their_requeue(desk: Desk) -> None:
    desk.refuses["scontrol update JobId=101_[1-3]"] = "101_1: Access/permission denied\n101_2-3: No error"
    code, said = desk.change(alter=("site.walltime_min=240",))
    assert code == 1 and "refused: 101_1: Access/permission denied" in said and "No error" not in said
    assert renewal.left(desk.bench.sweep)["101"].tasks == (1,)
    assert desk.site["walltime_min"] == 240


def test_what_ran_gets_its_values_once_it_waits_again(desk: Desk) -> None:
    desk.runs(1)
    desk.change(alter=("site.walltime_min=240",))
    desk.asked.clear()
    assert renewal.renew(desk.bench.sweep) == [] and desk.asked == []
    desk.bench.list_job("101_1", "PENDING")
    assert "altered 101_1 to TimeLimit=240" in desk.bench.launch()[1].splitlines(), "a launch looks, too"
    assert desk.asked == ["scontrol update JobId=101_1 TimeLimit=240"]
    assert not (desk.bench.sweep.path / "altered.json").exists()


def test_a_second_alteration_joins_the_first_for_what_runs(desk: Desk) -> None:
    desk.runs(1)
    desk.change(alter=("site.walltime_min=240",))
    desk.change(alter=("site.exclude=n7",))
    assert renewal.left(desk.bench.sweep)["101"].values == {"TimeLimit": "240", "ExcNodeList": "n7"}


def test_what_is_gone_from_the_queue_is_struck_out(desk: Desk) -> None:
    desk.runs(1)
    desk.change(alter=("site.walltime_min=240",))
    assert desk.bench.listed is not None
    del desk.bench.listed["101_1"]
    assert renewal.renew(desk.bench.sweep) == [] and renewal.left(desk.bench.sweep) == {}


def test_the_array_as_a_whole_is_throttled(desk: Desk) -> None:
    code, _ = desk.change(alter=("site.array_parallelism=2",))
    assert (code, desk.asked) == (0, ["scontrol update JobId=101 ArrayTaskThrottle=2"])
    assert desk.site["array_parallelism"] == 2


@pytest.mark.parametrize("name", ["control_keys", "control_values", "control_limits", "control_twice"])
def test_faulty_wishes_are_refused_before_slurm_is_asked(desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(limits, "faults", lambda limits, site, tasks: [f"site.walltime_min: {site.walltime_min} is over the limit of 99."])
    words = {
        "control_keys": ("site.walltime=240", "optim.lr=1", "site.setup=x"),
        "control_values": ("site.walltime_min=soon", "site.comment=x"),
        "control_limits": ("site.walltime_min=100",),
        "control_twice": ("site.qos=a", "site.qos=b", "site.partition=null"),
    }[name]
    with pytest.raises(ConfigError) as error:
        desk.change(alter=words)
    golden(f"{name}.txt", f"{error.value}\n")
    assert desk.asked == [] and desk.site["walltime_min"] == 60


def test_a_sweep_that_has_nothing_queued_says_so(desk: Desk) -> None:
    desk.bench.listed = {}
    code, said = desk.change(alter=("site.walltime_min=240",))
    assert code == 1 and "nothing of this sweep is queued" in said


def test_a_queue_that_does_not_answer_changes_nothing(desk: Desk) -> None:
    desk.bench.listed = None
    with pytest.raises(SubmissionError, match="squeue does not answer, so nothing was changed"):
        desk.change(hold=True)
    assert hold.why_held(desk.bench.sweep) is None and desk.asked == []


def test_a_sweep_that_was_never_launched_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="never launched"):
        control.change_queued(Request(sweep_file=bench.file), Changes(hold=True))


# --- hold, release, cancel ---


def test_hold_is_written_down_and_told_to_slurm_once_an_array(desk: Desk) -> None:
    desk.runs(0)
    code, said = desk.change(hold=True)
    assert (code, desk.asked) == (0, ["scontrol hold 101"])
    assert "held: 3 tasks waiting; 1 running task may end" in said and "by user" in str(hold.why_held(desk.bench.sweep))


def test_release_says_what_a_launch_would_send(desk: Desk) -> None:
    desk.change(hold=True)
    assert desk.bench.listed is not None
    del desk.bench.listed["101_3"]
    code, said = desk.change(release=True)
    assert (code, desk.asked[-1]) == (0, "scontrol release 101") and hold.why_held(desk.bench.sweep) is None
    assert "a launch would send 1 run that nobody has: python -m hpc.launch" in said


def test_hold_and_release_together_are_refused(desk: Desk) -> None:
    with pytest.raises(ConfigError, match="undo each other"):
        desk.change(hold=True, release=True)


def test_cancelled_runs_leave_the_queue_and_no_plain_launch_sends_them(desk: Desk) -> None:
    desk.runs(0)
    attempt(desk.bench.run("baseline-s0"), None)
    code, said = desk.change(cancel=("baseline-s0", "se-s1"))
    assert (code, desk.asked) == (0, ["scancel 101_[0,3]"])
    assert "cancelled 2 runs: baseline-s0, se-s1" in said
    assert hold.cancelled(desk.bench.sweep).keys() == {"0001/0", "0001/3"}


def test_all_cancels_everything_that_is_not_finished(desk: Desk) -> None:
    finish(desk.bench.run("se-s0"))
    desk.change(cancel=("all",))
    assert desk.asked == ["scancel 101_[0-1,3]"]
    assert desk.change(cancel=("se-s0",))[0] == 1


def test_a_run_of_a_waiting_pack_is_left_out_by_its_task(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "launch", lambda self: _launch_packed(self))
    desk = Desk(bench, monkeypatch)
    code, _ = desk.change(cancel=("baseline-s0",))
    assert (code, desk.asked) == (0, [])
    assert [len(ids) for ids in hold.cancelled(bench.sweep).values()] == [1]
    desk.change(cancel=("all",))
    assert desk.asked == ["scancel 101_[0-1]"]


_launch = Bench.launch


def _launch_packed(bench: Bench) -> object:
    return _launch(bench, "pack.runs_per_task=2")


# --- the cap ---


@pytest.mark.parametrize(
    ("most", "needs", "expected"),
    [
        (4, [(1, 9)], [(4, False)]),
        (4, [(1, 2)], [(2, False)]),
        (5, [(2, 9)], [(2, False)]),
        (4, [(1, 9), (1, 9)], [(3, False), (1, False)]),
        (4, [(2, 9), (1, 9), (1, 9)], [(1, False), (1, False), (1, False)]),
        (2, [(1, 9), (1, 9), (1, 9)], [(1, False), (1, False), (2, True)]),
        (4, [(2, 9), (4, 9), (1, 9)], [(2, False), (1, True), (4, True)]),
        (1, [(0, 9), (1, 9)], [(0, False), (1, False)]),
    ],
)
def test_gpus_are_shared_by_all_arrays_oldest_first(most: int, needs: list[tuple[int, int]], expected: list[tuple[int, bool]]) -> None:
    shares = gpu_cap.shares(most, [Need(gpus_each=gpus, tasks=tasks) for gpus, tasks in needs])
    assert shares == tuple(Share(parallel=parallel, waits=waits) for parallel, waits in expected)
    at_once = sum(share.parallel * gpus for share, (gpus, _) in zip(shares, needs, strict=True) if not share.waits)
    assert at_once <= most


def test_a_task_larger_than_the_cap_is_refused() -> None:
    with pytest.raises(SubmissionError, match=r"a task takes 8 GPUs and would never start\. Use 8 or more"):
        gpu_cap.parallel_of(4, TaskShape(ranks=8, gpus=4, nodes=2))
    assert gpu_cap.parallel_of(5, TaskShape(ranks=2, gpus=2)) == 2
    assert gpu_cap.parallel_of(5, TaskShape(ranks=2)) is None


def test_an_array_that_does_not_fit_waits_for_the_others_and_keeps_its_own_dependency(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Submissions.read(desk.bench.sweep)
    first = replace(record.submissions[0], gpus=2)
    second = replace(first, id="0002", job_id="102", tasks=tuple(task.replace("0001", "0002") for task in first.tasks))
    monkeypatch.setattr("hpc.slurm_control.dependencies", lambda: {"102": "afterok:55"})
    listed = dict.fromkeys((*first.tasks, *second.tasks), "pending")
    said = gpu_cap.cap_arrays(gpu_cap.queued_arrays((first, second), listed), 3)
    assert desk.asked == [
        "scontrol update JobId=101 ArrayTaskThrottle=1",
        "scontrol update JobId=102 ArrayTaskThrottle=1",
        "scontrol update JobId=102_[0-3] Dependency=afterok:55,afterany:101",
    ]
    assert said == ["job 101: at most 1 task at a time (2 GPUs)", "job 102: at most 1 task at a time (2 GPUs), after job 101"]


def test_changes_leave_json_that_another_process_can_read(desk: Desk) -> None:
    desk.runs(1)
    desk.change(alter=("site.walltime_min=240",), hold=True)
    for name in ("hold.json", "altered.json", "submission.json"):
        assert json.loads((desk.bench.sweep.path / name).read_text())
