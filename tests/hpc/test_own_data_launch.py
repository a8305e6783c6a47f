"""Launching a sweep with a data set of somebody else's: the launcher reads its source, says who will call it, and never does."""

from pathlib import Path

import pytest
from launch_bench import SWEEP, Bench

from hpc import code_snapshot, launcher, login_data
from hpc.paths import Submissions
from seresnet.errors import ConfigError

#: Importing it would end the test.
MODULE = "raise SystemExit('imported')\ndef shapes(count=3): ...\n"
OWN = SWEEP.replace("data: {name: digits}", "data: {target: own_shapes:shapes, dir: prepared}")


@pytest.fixture
def own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The bench with a data set beside its sweep, and with the preparing of data that the bench leaves out."""
    (bench.file.parent / "own_shapes.py").write_text(MODULE)
    bench.file.write_text(OWN)
    monkeypatch.setattr(launcher, "ensure_prepared", login_data.ensure_prepared)
    return bench


def test_it_is_sent_without_being_called_and_the_plan_says_who_calls_it(own: Bench) -> None:
    code, text = own.launch()
    assert (code, len(own.sent)) == (0, 1)
    assert "data   own_shapes:shapes: called by the first run that needs it, not by the launcher, and kept in prepared\n" in text
    assert not Path("prepared").exists()
    (entry,) = Submissions.read(own.sweep).submissions
    assert (own.sweep.code(entry.code) / "user" / "own_shapes.py").read_text() == MODULE


def test_data_sets_of_other_arguments_are_other_lines_and_those_of_arms_alike_are_one(own: Bench) -> None:
    own.file.write_text(OWN.replace("se: {model", "se: {data.args.count: 4, model"))
    lines = [line for line in own.launch(dry_run=True)[1].splitlines() if "called by the first run" in line]
    assert len(lines) == 2 and "own_shapes:shapes {count: 4}: called" in lines[1], lines


def test_place_that_this_machine_does_not_have_is_said_and_not_refused(own: Bench) -> None:
    code, text = own.launch("data.path=/scratch/of/the/nodes/raw")
    assert code == 0 and "kept in prepared; data.path /scratch/of/the/nodes/raw is not there for this machine" in " ".join(text.split())


def test_wrong_name_is_refused_with_the_nearest_before_anything_is_written(own: Bench) -> None:
    own.file.write_text(OWN.replace(":shapes", ":shape"))
    with pytest.raises(ConfigError, match=r"demo.yaml:4: data.target: .*own_shapes.py defines no shape. Did you mean shapes\?"):
        own.launch()
    assert own.sent == [] and not own.sweep.path.exists()


def test_an_edit_of_it_is_named_when_the_sweep_is_launched_again(own: Bench) -> None:
    own.launch()
    own.listed = {}
    (own.file.parent / "own_shapes.py").write_text(MODULE + "# edited\n")
    _, text = own.launch(dry_run=True)
    assert "the code was edited since code/0001 (1 file)" in text
    assert code_snapshot.changes(own.sweep.code("0001"), user=own.file.parent) == ("changed user/own_shapes.py",)
