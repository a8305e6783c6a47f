"""A result of fewer epochs than are asked for is not the end: what launch, status, collect, ranks and the mirror make of such a run."""

from typing import Any

import pytest
from fake_sweep import FakeSweep
from launch_bench import Bench, attempt, finish

from hpc import mirror, status
from hpc.gather import gather
from hpc.mirror import Mirror
from hpc.mirror_end import Stop
from hpc.ranks import Outcome, describe
from hpc.states import State, decide
from seresnet.run_folder import RunRecord, is_finished

SHORT, LONG = ("optim.schedule_epochs=10", "train.epochs=2"), ("optim.schedule_epochs=10", "train.epochs=4")


def finish_short(bench: Bench) -> None:
    """Every run finished with 2 of its 10 epochs, and no job is left."""
    bench.launch(*SHORT)
    bench.listed = {}
    for slug in bench.slugs():
        attempt(bench.run(slug), "finished")
        finish(bench.run(slug), epochs=2)


def test_a_queued_extension_is_not_sent_again(bench: Bench) -> None:
    finish_short(bench)
    bench.launch(*LONG)
    _, text = bench.launch(*LONG)
    assert [len(entry["tasks"]) for entry in bench.sent] == [4, 4], "the extension was sent twice"
    assert "4 queued" in text


def test_status_calls_a_short_result_an_extension_to_come(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    finish_short(bench)
    assert status.main([str(bench.sweep.path)]) == 0
    bench.launch(*LONG)
    bench.listed = {}
    capsys.readouterr()
    assert status.main([str(bench.sweep.path)]) == 3
    assert "4 runs: 4 extend" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["crashed", "diverged"])
def test_an_extension_that_failed_needs_retry(bench: Bench, ending: str) -> None:
    finish_short(bench)
    bench.launch(*LONG)
    bench.listed = {}
    attempt(bench.run("se-s1"), ending)
    bench.launch(*LONG)
    assert bench.tasks_sent() == [("baseline-s0",), ("baseline-s1",), ("se-s0",)]


@pytest.mark.parametrize(
    ("ending", "state"), [("finished", "extend"), ("preempted", "extend"), ("crashed", "failed"), ("cancelled", "cancelled")]
)
def test_a_short_result_is_extended_unless_the_last_attempt_says_otherwise(ending: str, state: State) -> None:
    assert decide(has_result=False, has_short_result=True, attempts=2, ending=ending, is_beating=False, listed=None) == state


def short_run(sweep: FakeSweep, *endings: str) -> None:
    """se, seed 0: a result of 4 of 6 epochs, and how attempts ended since."""
    sweep.finish("se", 0, epochs=4)
    for generation, ending in enumerate(endings, start=2):
        sweep.attempt("se", 0, ending, "why", generation=generation)


def test_the_number_of_epochs_that_run_yaml_asks_for_decides(tmp_path: Any) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    assert not is_finished(sweep.of("se", 0))
    short_run(sweep)
    assert not is_finished(sweep.of("se", 0)) and is_finished(sweep.of("se", 0), epochs=4)
    sweep.finish("se", 0)
    assert is_finished(sweep.of("se", 0)) and not is_finished(sweep.of("se", 0), epochs=7)


@pytest.mark.parametrize(("ending", "state"), [("preempted", "extend"), ("crashed", "failed"), ("diverged", "failed")])
def test_the_table_names_a_failed_extension(tmp_path: Any, ending: str, state: str) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    short_run(sweep, ending)
    row = gather([sweep.folder.path]).rows[1]
    assert (row.state, row.ending, row.result) == (state, ending, None)
    assert "has a result of 4 epochs, run.yaml asks for 6" in row.reason


def test_ranks_that_leave_with_an_old_result_have_not_finished(tmp_path: Any) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    short_run(sweep)
    outcome = Outcome(statuses=(0,), culprit=None, stop_reason=None, was_killed_by_us=False)
    ended = describe(sweep.of("se", 0), 2, outcome)
    assert (ended.ending, ended.code) == ("crashed", 1) and "fewer epochs" in ended.reason
    sweep.finish("se", 0)
    assert describe(sweep.of("se", 0), 2, outcome).ending == "finished"


class FakeRun:
    """What the mirror needs of a W&B run."""

    starting_step = 0
    id = "an-id"
    url = None

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.is_preempting = False

    def log(self, values: dict[str, float], step: int, commit: bool) -> None:
        self.steps.append(step)

    def status(self) -> None:
        """Answers: the core lives."""

    def mark_preempting(self) -> None:
        self.is_preempting = True

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_the_mirror_of_an_extension_does_not_end_with_the_old_result(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, run = FakeSweep(tmp_path, seeds=1), FakeRun()
    short_run(sweep)
    monkeypatch.setattr(Mirror, "_init", lambda self, published: run)
    follower = mirror.Mirror(sweep.folder, sweep.plan, [sweep.ids["se", 0]], "offline", Stop(), tmp_path)
    follower.publish(follower.runs[0])
    assert not follower.runs[0].is_done and run.exit_code is None
    follower._close_early(follower.runs[0])
    assert (run.exit_code, run.is_preempting) == (1, True)
    sweep.finish("se", 0)
    follower.publish(follower.runs[0])
    assert follower.runs[0].is_done and run.exit_code == 0


# --- files that cannot be read ---


def test_a_torn_result_is_one_failed_run_and_stops_no_other(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.launch()
    bench.listed = {}
    finish(bench.run("baseline-s0"))
    path = bench.run("se-s1").result
    path.write_text('{"schema": 1, "epo')
    _, text = bench.launch()
    assert bench.tasks_sent() == [("baseline-s1",), ("se-s0",)]
    assert "se-s1 (unreadable)" in text
    bench.listed = {}
    assert status.main([str(bench.sweep.path)]) == 1
    out = capsys.readouterr().out
    assert "se-s1: failed: unreadable: " in out and str(path) in out and "Move it away to train the run again." in out
    assert [row.state for row in gather([bench.sweep.path]).rows if row.slug == "se-s1"] == ["failed"]


def test_a_result_whose_run_yaml_is_damaged_is_one_failed_run(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    sweep.of("se", 0).run_yaml.write_text("a: [")
    assert status.main([str(sweep.folder.path)]) == 1
    assert "1 finished, 1 failed" in (out := capsys.readouterr().out)
    assert str(sweep.of("se", 0).run_yaml) in out


def test_ranks_that_leave_a_torn_result_have_crashed(tmp_path: Any) -> None:
    sweep = FakeSweep(tmp_path, seeds=1)
    sweep.of("se", 0).result.write_text("{")
    ended = describe(sweep.of("se", 0), 1, Outcome(statuses=(0,), culprit=None, stop_reason=None, was_killed_by_us=False))
    assert ended.ending == "crashed" and "result.json: not a result" in ended.reason


def test_run_yaml_without_epochs_is_named(tmp_path: Any) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    RunRecord(run_id=sweep.ids["se", 0], slug="se", config={"train": {}}).write(sweep.of("se", 0))
    assert status.main([str(sweep.folder.path)]) == 1
