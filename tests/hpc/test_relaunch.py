"""Launching an edited sweep: the diff, another file of the same name, dropped runs, edited code, runs that are trained again."""

from collections.abc import Callable
from pathlib import Path

import pytest
from launch_bench import SWEEP, Bench, attempt, finish

from hpc import code_snapshot, relaunch, slurm_control
from hpc.gather import gather
from hpc.mirror_rows import wandb_id
from hpc.paths import Plan, Submissions, SweepFolder
from seresnet.errors import ConfigError

WITHOUT_SE = SWEEP.replace("  se: {model.attention: se}\n", "")
WITH_ECA = SWEEP.replace("seeds: 2", "seeds: 4").replace("  se: {model.attention: se}\n", "  eca: {model.width: 8}\n")


@pytest.fixture
def edit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """The code that is launched is a small tree of its own, which a test may edit."""
    root = tmp_path / "work"
    for package in code_snapshot.PACKAGES:
        (root / package).mkdir(parents=True)
        (root / package / "a.py").write_text("x = 1\n")
    for function in (code_snapshot.peek, code_snapshot.snapshot_code, code_snapshot.changes):
        monkeypatch.setattr(function, "__defaults__", (root,))

    def edit(name: str, text: str) -> None:
        (root / name).write_text(text)

    return edit


def start_all(bench: Bench, *finished: str) -> None:
    """Every run has been started once; the named ones are finished, the others were stopped."""
    bench.launch()
    bench.listed = {}
    for slug in bench.slugs():
        attempt(bench.run(slug), "finished" if slug in finished else "stopped")
        if slug in finished:
            finish(bench.run(slug))


# --- the diff ---


def test_an_edited_sweep_prints_what_was_added_kept_and_removed(bench: Bench) -> None:
    bench.launch()
    bench.file.write_text(WITH_ECA)
    _, text = bench.launch()
    assert "edited: +6 (arm eca; seeds 2,3)  =2  -2 no longer asked\n" in text
    assert [slug for (slug,) in bench.tasks_sent()] == ["baseline-s2", "baseline-s3", "eca-s0", "eca-s1", "eca-s2", "eca-s3"]


def test_a_sweep_that_was_not_edited_has_no_diff(bench: Bench) -> None:
    bench.launch()
    bench.file.write_text(f"# a remark\n{SWEEP}")
    assert "edited:" not in bench.launch()[1]


def test_only_removed_runs_are_a_diff_without_anything_added(bench: Bench) -> None:
    bench.launch()
    bench.file.write_text(WITHOUT_SE)
    _, text = bench.launch()
    assert "edited: +0  =2  -2 no longer asked\n" in text
    assert "edited:" not in bench.launch()[1], "the same edit was reported twice"


# --- another file ---


def test_another_file_with_the_same_sweep_name_is_refused_unless_it_was_renamed(bench: Bench) -> None:
    bench.launch()
    bench.file = bench.file.rename(bench.file.with_name("other.yaml"))
    with pytest.raises(ConfigError) as caught:
        bench.launch()
    assert str(caught.value) == (
        "other.yaml: name: 'demo' is the sweep of demo.yaml, which has runs/demo. Give this one another name:, or say --renamed if it is "
        "the same sweep and its file, or its folder, was moved or renamed. Nothing was sent."
    )
    bench.launch(renamed=True)
    bench.launch()
    assert Plan.read(bench.sweep).source == "../../other.yaml"


def test_a_sweep_of_an_earlier_version_takes_any_file(bench: Bench) -> None:
    bench.launch()
    text = bench.sweep.plan.read_text()
    assert '"source": "../../demo.yaml"' in text
    bench.sweep.plan.write_text(text.replace('"source": "../../demo.yaml"', '"source": null'))
    bench.file = bench.file.rename(bench.file.with_name("other.yaml"))
    assert bench.launch()[0] == 0


def test_where_one_launches_from_makes_no_other_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.launch()
    (bench.file.parent / "below").mkdir()
    monkeypatch.chdir(bench.file.parent / "below")
    assert bench.launch(runs_dir=Path("../runs"))[0] == 0


# --- dropped runs ---


@pytest.fixture
def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    jobs: list[str] = []

    def cancel(names: str) -> list[str]:
        jobs.append(names)
        return []

    monkeypatch.setattr(slurm_control, "cancel", cancel)
    return jobs


def test_removed_runs_are_left_alone(bench: Bench, cancelled: list[str]) -> None:
    bench.launch()
    bench.file.write_text(WITHOUT_SE)
    _, text = bench.launch()
    assert cancelled == []
    assert "2 earlier runs no longer asked for, left alone; --drop-removed cancels what is queued of them" in text
    assert not any(entry.dropped for entry in Plan.read(bench.sweep).runs.values())


def test_drop_removed_cancels_tasks_that_hold_nothing_else(bench: Bench, cancelled: list[str]) -> None:
    bench.file.write_text(SWEEP + "pack: {runs_per_task: 3}\n")
    bench.launch()  # baseline-s0 baseline-s1 se-s0 | se-s1
    bench.list_job("101_1", "RUNNING")
    bench.file.write_text(WITHOUT_SE + "pack: {runs_per_task: 3}\n")
    _, text = bench.launch(drop_removed=True)
    assert cancelled == ["101_1"], "task 0 still holds runs that are asked for"
    assert "edited: +0  =2  -2 dropped\n" in text
    assert {entry.slug for entry in Plan.read(bench.sweep).runs.values() if entry.dropped} == {"se-s0", "se-s1"}


def test_an_edit_may_be_dropped_by_a_later_launch(bench: Bench, cancelled: list[str]) -> None:
    bench.launch()
    bench.file.write_text(WITHOUT_SE)
    bench.launch()
    bench.launch(drop_removed=True)
    assert cancelled == ["101_[2-3]"]


def test_a_dropped_run_that_is_asked_for_again_is_sent_again(bench: Bench, cancelled: list[str]) -> None:
    bench.launch()
    bench.file.write_text(WITHOUT_SE)
    bench.launch(drop_removed=True)
    attempt(bench.run("se-s1"), "cancelled")
    bench.listed = {}
    bench.file.write_text(SWEEP)
    bench.launch()
    assert [slug for (slug,) in bench.tasks_sent()] == ["baseline-s0", "baseline-s1", "se-s0", "se-s1"]
    assert not any(entry.dropped for entry in Plan.read(bench.sweep).runs.values())


# --- edited code ---


def test_edited_code_is_refused_with_its_files_until_told(bench: Bench, edit_code: Callable[[str, str], None]) -> None:
    start_all(bench, "se-s0")
    edit_code("hpc/a.py", "x = 2\n")
    edit_code("seresnet/b.py", "")
    with pytest.raises(ConfigError) as caught:
        bench.launch()
    assert str(caught.value) == (
        "runs/demo/code/0001: the code was edited since this sweep was launched:\n"
        "  changed hpc/a.py\n"
        "  added seresnet/b.py\n"
        "Say which code the runs go on with. Nothing was sent.\n"
        "  --code snapshot       the old one, code/0001\n"
        "  --code new            this one, as code/0002; unfinished runs go on from their checkpoints\n"
        "  --rerun all, or RUN   this one; finished runs are set aside and trained again"
    )
    assert len(bench.sent) == 1


def test_many_edited_files_are_counted(tmp_path: Path) -> None:
    code = relaunch.Code(
        number="0002", is_taken=False, before="0001", working="0002", changes=tuple(f"changed hpc/{n}.py" for n in range(25))
    )
    text = relaunch.code_refusal(SweepFolder(tmp_path), code)
    assert text.count("changed hpc/") == 20
    assert "  and 5 more\n" in text


@pytest.mark.parametrize(("code", "number"), [("snapshot", "0001"), ("new", "0002")])
def test_told_which_code_the_missing_runs_are_sent_with_it(
    bench: Bench, edit_code: Callable[[str, str], None], code: str, number: str
) -> None:
    start_all(bench, "se-s0")
    edit_code("hpc/a.py", "x = 2\n")
    text = bench.launch(code=code)[1]
    assert ("(1 file): go on with code/0002" in text) == (code == "new"), text
    assert Submissions.read(bench.sweep).submissions[-1].code == number
    assert [slug for (slug,) in bench.tasks_sent()] == ["baseline-s0", "baseline-s1", "se-s1"]
    assert (bench.sweep.code(number) / "hpc" / "a.py").read_text() == ("x = 1\n" if code == "snapshot" else "x = 2\n")


def test_after_a_launch_with_new_code_it_is_no_longer_an_edit(bench: Bench, edit_code: Callable[[str, str], None]) -> None:
    start_all(bench)
    edit_code("hpc/a.py", "x = 2\n")
    bench.launch(code="new")
    bench.listed = {}
    assert bench.launch()[0] == 0
    assert len(bench.sent) == 3


def test_a_sweep_that_has_not_started_takes_the_new_code_and_says_so(bench: Bench, edit_code: Callable[[str, str], None]) -> None:
    bench.launch()
    del bench.listed["101_3"]  # type: ignore[union-attr]
    edit_code("hpc/a.py", "x = 2\n")
    _, text = bench.launch()
    assert (
        "note: the code was edited since code/0001 (1 file): nothing has started, so they start with code/0002; "
        "3 runs that somebody has keep theirs" in text
    )
    assert [entry.code for entry in Submissions.read(bench.sweep).submissions] == ["0001", "0002"]
    assert (bench.sweep.code("0001") / "hpc" / "a.py").read_text() == "x = 1\n", "what is queued must not see the edit"


def test_edited_code_with_nothing_to_send_is_no_reason_to_refuse(bench: Bench, edit_code: Callable[[str, str], None]) -> None:
    start_all(bench, "baseline-s0", "baseline-s1", "se-s0", "se-s1")
    assert "edited since" not in bench.launch()[1]
    edit_code("hpc/a.py", "x = 2\n")
    _, text = bench.launch()
    assert "nothing left: all 4 runs are finished" in text
    assert "note: the code was edited since (changed hpc/a.py); finished runs stay as they are" in text


# --- trained again ---


def test_rerun_sets_a_finished_run_aside_and_sends_it(bench: Bench, edit_code: Callable[[str, str], None]) -> None:
    start_all(bench, "baseline-s0", "baseline-s1", "se-s0", "se-s1")
    edit_code("hpc/a.py", "x = 2\n")
    folder = bench.run("se-s1")
    before = folder.result.read_bytes()
    _, text = bench.launch(rerun=("se-s1",))
    aside = folder.path.with_name(f"{folder.path.name}.set-aside-0001")
    assert (aside / "result.json").read_bytes() == before
    assert not folder.result.exists() and folder.run_yaml.exists()
    assert bench.tasks_sent() == [("se-s1",)]
    assert Submissions.read(bench.sweep).submissions[-1].code == "0002"
    assert "1 run set aside and trained again from the start" in text


def test_a_second_rerun_is_a_second_folder_and_neither_is_in_the_table(bench: Bench) -> None:
    start_all(bench, "se-s1")
    for _ in range(2):
        bench.listed = {}
        bench.launch(rerun=("se-s1",))
        attempt(bench.run("se-s1"), "finished")
        finish(bench.run("se-s1"))
    names = sorted(path.name.rpartition(".")[2] for path in bench.sweep.path.glob("se-s1-*.set-aside-*"))
    assert names == ["set-aside-0001", "set-aside-0002"]
    gathered = gather([bench.sweep.path])
    assert len(gathered.rows) == 4
    assert not [line for line in gathered.skipped if "set-aside" in line]


def test_rerun_of_all_or_an_arm_takes_its_finished_runs_beside_the_missing_ones(bench: Bench) -> None:
    start_all(bench, "baseline-s0", "se-s0", "se-s1")
    bench.launch(rerun=("se",))
    assert {slug for (slug,) in bench.tasks_sent()} == {"baseline-s1", "se-s0", "se-s1"}
    assert bench.run("baseline-s0").result.exists()
    bench.listed = {}
    bench.launch(rerun=("all",))
    assert {slug for (slug,) in bench.tasks_sent()} == {"baseline-s0", "baseline-s1", "se-s0", "se-s1"}
    assert not bench.run("baseline-s0").result.exists()


def test_a_run_whose_task_still_has_others_is_not_trained_again(bench: Bench) -> None:
    bench.file.write_text(SWEEP + "pack: {runs_per_task: 2}\n")
    bench.launch()
    attempt(bench.run("se-s0"), "finished")
    finish(bench.run("se-s0"))
    with pytest.raises(ConfigError, match="--rerun se-s0: task 0001/1, which also has other runs, is not over"):
        bench.launch(rerun=("se-s0",))
    assert bench.run("se-s0").result.exists()


def test_a_run_that_somebody_has_is_not_trained_again(bench: Bench) -> None:
    bench.launch()
    with pytest.raises(ConfigError, match="--rerun se-s0: this run is queued"):
        bench.launch(rerun=("se-s0",))


def test_a_run_that_is_trained_again_is_another_run_to_wandb(bench: Bench) -> None:
    start_all(bench, "se-s1")
    plan = Plan.read(bench.sweep)

    run_id, folder = plan.find("se-s1"), bench.run("se-s1")
    before = wandb_id(plan, run_id, folder)
    bench.launch(rerun=("se-s1",))
    assert wandb_id(plan, run_id, folder) == f"{before}-2"
