"""What a sweep of somebody else's making can hold: names that lead elsewhere, pipes, numbers without end, words that steer a terminal."""

import json
import os
from pathlib import Path

import pytest
from fake_sweep import FakeSweep

from hpc import collect
from hpc.comparison import compare
from hpc.gather import gather
from hpc.mirror_cursor import Cursor


def changed_plan(made: FakeSweep, **changes: object) -> None:
    plan = json.loads(made.folder.plan.read_text())
    made.folder.plan.write_text(json.dumps({**plan, **changes}))


def refused(sweep: FakeSweep, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert collect.main([str(sweep.folder.path), "--no-figures", *more]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "..", "\x1b[31mred"])
def test_a_sweeps_name_leads_nowhere(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = FakeSweep(tmp_path / "deep" / "er").finish_all()
    changed_plan(sweep, sweep=name)
    assert "is not a name" in refused(sweep, capsys, "--tensorboard", str(tmp_path / "out" / "in"))
    assert not (tmp_path / "out").exists() and not (tmp_path / "elsewhere").exists()


def test_an_arm_that_only_a_run_names_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    runs = json.loads(sweep.folder.plan.read_text())["runs"]
    changed_plan(sweep, runs={run_id: {**entry, "arms": ["nowhere"]} for run_id, entry in runs.items()})
    assert "is in arm 'nowhere', which is not in it" in refused(sweep, capsys)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("place", ["journal", "cache"])
def test_a_pipe_in_a_sweep_is_named_or_passed_over_and_never_waited_for(place: str, tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    if place == "journal":
        os.mkfifo(sweep.of("se", 0).journal(9))
    else:
        sweep.folder.collect_cache.mkdir()
        os.mkfifo(sweep.folder.collect_cache / "a.layer")
    gathered = gather([sweep.folder.path])
    assert [row.state for row in gathered.rows] == ["finished"] * 4
    assert any("not a plain file" in line for line in gathered.skipped) == (place == "journal")


def test_losses_near_the_largest_number_do_not_break_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = FakeSweep(tmp_path)
    for arm, seed in sweep.ids:
        sweep.finish(arm, seed, last_test_loss=1.7e308)
    command = [str(sweep.folder.path), "--no-figures", "--format", "json", "--metric", "last_test_loss,last_test_top1_pct"]
    assert collect.main(command) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_csv_neither_steers_a_terminal_nor_holds_formulas(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    for arm, seed in sweep.ids:
        sweep.finish(arm, seed, device="cpu: \x1b[31mred", data_name='=cmd("x")')
    collect.collect([sweep.folder.path], with_figures=False)
    text = (sweep.folder.path / "runs.csv").read_text()
    assert "\x1b" not in text and "red" in text
    assert ",=cmd" not in text and ',"=cmd' not in text


def test_each_sweep_pays_for_its_own_attempts_of_a_run_that_both_have(tmp_path: Path) -> None:
    """Equal runs count once in the means; 1 hour an attempt in a, 10 in b, two cores' worth of nothing else."""
    a, b = (FakeSweep(tmp_path / name, name).finish_all() for name in "ab")
    for sweep, hours in ((a, 1.0), (b, 10.0)):
        for arm, seed in sweep.ids:
            sweep.lasted(arm, seed, hours)
    for order in ([a, b], [b, a]):
        gathered = gather([sweep.folder.path for sweep in order])
        hours = {arm.arm: round(arm.device_hours["cpu"], 6) for arm in compare(gathered, "a/baseline").arms}
        assert (hours["a/baseline"], hours["b/baseline"]) == (2, 20)
        grouped = compare(gathered, by=["model.attention"])
        assert [round(arm.device_hours["cpu"], 6) for arm in grouped.arms] == [22, 22]
        assert {row.device_hours for row in gathered.rows} == {11.0}


def test_a_cursor_with_a_number_without_end_is_an_empty_one(tmp_path: Path) -> None:
    folder = FakeSweep(tmp_path).of("se", 0)
    (folder.path / "wandb").mkdir()
    (folder.path / "wandb/cursor.json").write_text('{"schema": 1, "epoch": 1e400, "segments": [], "complete": null}')
    assert Cursor.read(folder) == Cursor()
