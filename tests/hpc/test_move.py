"""`python -m hpc.move`: an idle sweep goes as a whole, and launching goes on where it is now."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from fake_sweep import FakeSweep
from launch_bench import Bench
from moving import refusal, refuse_renames_of, snapshot

from hpc import collect, launch, move, status
from hpc.paths import Plan, SweepFolder
from seresnet.errors import ConfigError, SubmissionError
from seresnet.run_folder import RunFolder


@pytest.fixture(params=["same file system", "another file system"])
def sweep(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    """A finished sweep; for the second leg rename says what it says between file systems."""
    if request.param == "another file system":
        refuse_renames_of(tmp_path / "demo", monkeypatch)
    return FakeSweep(tmp_path).finish_all()


@pytest.fixture
def away(tmp_path: Path) -> Path:
    (tmp_path / "away").mkdir()
    return tmp_path / "away"


def test_a_finished_sweep_goes_whole_and_leaves_nothing(sweep: FakeSweep, away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = sweep.of("se", 0).path / "latest"
    link.symlink_to(sweep.of("se", 0).metrics)
    before, times = snapshot(sweep.folder.path), sweep.of("se", 0).claim(1).stat().st_mtime_ns
    assert move.main([str(sweep.folder.path), str(away / "other")]) == 0
    assert snapshot(away / "other") == before
    assert [path.name for path in sweep.folder.path.parent.iterdir() if "demo" in path.name] == []
    assert [path.name for path in away.iterdir()] == ["other"] and not (away / "other/.moved.json").exists()
    moved = RunFolder(path=away / "other" / sweep.of("se", 0).path.name)
    assert moved.claim(1).stat().st_mtime_ns == times, "batch words are judged by age"
    said = capsys.readouterr().out
    assert f"--runs-dir {away / 'other'}\n" in said and "begins all runs anew" in said


def test_links_into_the_sweep_do_not_name_the_old_place(tmp_path: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_renames_of(tmp_path / "demo", monkeypatch)
    sweep = FakeSweep(tmp_path).finish_all()
    (sweep.of("se", 0).path / "latest").symlink_to(sweep.of("se", 0).metrics)
    move.move(sweep.folder.path, away / "demo")
    link = away / "demo" / sweep.of("se", 0).path.name / "latest"
    assert (str(link.readlink()), link.is_dir()) == ("metrics", True)


def test_a_relative_link_out_of_the_sweep_would_break_and_is_refused(sweep: FakeSweep, away: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    link = sweep.of("se", 0).path / "big"
    link.symlink_to("../../big")
    assert f"{link}: leads out of the sweep by a relative way, ../../big" in refusal(sweep, away / "demo")
    link.unlink()
    link.symlink_to(tmp_path / "big")
    move.move(sweep.folder.path, away / "demo")
    assert (away / "demo" / link.parent.name / "big").is_dir()


def test_real_file_systems(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    target = Path(tempfile.mkdtemp(dir=shm))
    try:
        sweep = FakeSweep(tmp_path).finish_all()
        before = snapshot(sweep.folder.path)
        move.move(sweep.folder.path, target / "demo")
        assert snapshot(target / "demo") == before and not sweep.folder.path.exists()
    finally:
        shutil.rmtree(target)


# --- names ---


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("taken", "exists. Give a name that is free"),
        ("none/demo", "mkdir -p"),
        ("demo/inside", "lies in"),
        ("demo/not/there", "lies in"),
        ("demo", "is where the sweep is. Give another place"),
        ("file.txt/demo", "file.txt is a file, no folder can be in it"),
    ],
)
def test_bad_targets_are_refused(tmp_path: Path, target: str, said: str) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    (tmp_path / "taken").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(SubmissionError, match=said):
        move.move(sweep.folder.path, tmp_path / target)
    assert sweep.folder.plan.exists()


def test_what_is_no_sweep_or_a_link_to_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    (tmp_path / "link").symlink_to(sweep.folder.path)
    assert move.main([str(tmp_path / "link"), str(tmp_path / "new")]) == 2
    assert "is a link" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="Is this the folder of a sweep"):
        move.move(tmp_path / "nothing", tmp_path / "new")


def test_a_source_that_ends_in_dots_is_the_folder_it_means(sweep: FakeSweep, away: Path) -> None:
    run = sweep.of("se", 0).path
    assert move.main([f"{run}/..", f"{away}/demo/"]) == 0
    assert (away / "demo/plan.json").exists() and not sweep.folder.path.exists()


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", os.fsdecode(b"\xff")])
def test_a_name_that_no_record_could_hold_is_refused(sweep: FakeSweep, away: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert move.main([str(sweep.folder.path), str(away / name)]) == 2
    assert "cannot be printed" in capsys.readouterr().err and sweep.folder.plan.exists() and not [*away.iterdir()]


def test_a_loop_of_links_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert move.main([str(tmp_path / "loop/demo"), str(tmp_path / "new")]) == 2
    assert "Nothing was moved" in capsys.readouterr().err


def test_typed_again_after_it_was_done_it_says_where_the_sweep_is(sweep: FakeSweep, away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(sweep.folder.path), str(away / "demo")]
    assert (move.main(words), move.main(words)) == (0, 0)
    said = capsys.readouterr().out
    assert f"the sweep is in {away / 'demo'} already" in said and said.count(f"--runs-dir {away}\n") == 2, said
    assert move.main([f"{sweep.folder.path}o", str(away / "demo")]) == 2
    assert f"A sweep is in {away / 'demo'}: if it is this one, it was moved already" in capsys.readouterr().err


def test_an_empty_word_is_not_the_working_directory(
    sweep: FakeSweep, away: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(away)
    for main, words in ((move.main, [str(sweep.folder.path), ""]), (collect.main, [""]), (launch.main, ["--sweep", "x", "--runs-dir", ""])):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2 and "is a variable not set?" in capsys.readouterr().err
    assert sweep.folder.plan.exists()


def test_a_place_that_holds_no_files_is_named(tmp_path: Path) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    sweep = FakeSweep(tmp_path).finish_all()
    before = snapshot(sweep.folder.path)
    said = refusal(sweep, Path("/proc/demo"))
    assert "/proc: belongs to a file system that holds no files of yours" in said
    assert snapshot(sweep.folder.path) == before and not (sweep.folder.path / ".moving.lock").exists()


def test_a_run_is_no_sweep_and_its_sweep_is_named(sweep: FakeSweep, away: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sweep.of("se", 0).path
    for main, words in ((move.main, [str(away / "x")]), (collect.main, []), (status.main, [])):
        assert main([str(run), *words]) == 2
        assert f"the folder of a run, not of a sweep. Its sweep is {sweep.folder.path}: give that" in (err := capsys.readouterr().err), err
    single = shutil.copytree(run, away / "single")
    assert status.main([str(single)]) == 2
    assert "It belongs to no sweep" in (err := capsys.readouterr().err) and f"seresnet.checkpoint verify {single}" in err, err


# --- launching where it is now ---


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("name", ["demo", "other"])
def test_a_relaunch_at_the_new_place_sends_what_is_missing_and_nothing_at_the_old_one(
    bench: Bench, tmp_path: Path, by_hand: bool, name: str
) -> None:
    bench.launch()
    bench.listed = {}
    target = tmp_path / "deep" / "er" / name
    target.parent.mkdir(parents=True)
    if by_hand:
        shutil.move(bench.sweep.path, target)
    else:
        move.move(bench.sweep.path, target)
    if name == "other":
        with pytest.raises(ConfigError, match=f"this sweep is in {target}. To go on with it say --runs-dir {target}"):
            bench.launch(runs_dir=target.parent)
        assert len(bench.sent) == 1
    code, text = bench.launch(runs_dir=target.parent if name == "demo" else target)
    assert (code, len(bench.sent)) == (0, 2), text
    assert bench.sent[1]["folder"] == target / "logs" and Plan.read(SweepFolder(target)).sweep == "demo"
    assert not bench.sweep.path.exists()


def test_an_edited_file_needs_renamed_after_a_move_by_hand(bench: Bench, tmp_path: Path) -> None:
    bench.launch()
    (tmp_path / "far/away").mkdir(parents=True)
    shutil.move(bench.sweep.path, tmp_path / "far/away/demo")
    bench.file.write_text(bench.file.read_text() + "# edited\n")
    with pytest.raises(ConfigError, match="or its folder, was moved"):
        bench.launch(runs_dir=tmp_path / "far/away")


def test_a_relaunch_leaves_alone_what_jobs_of_the_old_place_may_have(bench: Bench, tmp_path: Path) -> None:
    bench.launch()
    shutil.move(bench.sweep.path, tmp_path / "demo")
    _, text = bench.launch(runs_dir=tmp_path)
    assert len(bench.sent) == 1 and "4 of 4 runs are on their way" in text, text
    bench.listed = None
    with_silence = bench.launch(runs_dir=tmp_path)[1]
    assert len(bench.sent) == 1, with_silence


def test_status_names_the_folder_that_a_launch_would_not_find(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hpc import status

    bench.launch("site.runs_dir=runs")
    bench.listed = {}
    move.move(bench.sweep.path, tmp_path / "other")
    status.main([str(tmp_path / "other")])
    assert "--runs-dir other" in capsys.readouterr().out


def test_the_move_prints_the_command_that_goes_on(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.launch("train.epochs=3")
    bench.listed = {}
    assert move.main([str(bench.sweep.path), str(tmp_path / "other")]) == 0
    said = capsys.readouterr().out
    wanted = f"go on there: python -m hpc.launch --sweep demo.yaml train.epochs=3 site=slurm --runs-dir {tmp_path / 'other'}\n"
    assert wanted in said, said


def test_a_launch_beside_a_sweep_under_another_name_says_so_and_another_sweep_is_no_matter(bench: Bench, tmp_path: Path) -> None:
    bench.launch()
    bench.listed = {}
    os.rename(bench.sweep.path, "runs/old")
    assert "note: this sweep is also in runs/old" in (text := bench.launch(dry_run=True)[1]), text
    (tmp_path / "else").mkdir()
    bench.file = Path(shutil.copy(bench.file, tmp_path / "else"))
    assert "this sweep is also in" not in (text := bench.launch(dry_run=True)[1]), text


def test_a_file_as_the_folder_of_sweeps_is_one_line(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"demo.yaml: is a file. --runs-dir takes the folder"):
        bench.launch(runs_dir=tmp_path / "demo.yaml")


def test_the_record_holds_no_absolute_path(sweep: FakeSweep, away: Path) -> None:
    move.move(sweep.folder.path, away / "demo")
    assert str(sweep.folder.path) not in json.dumps(json.loads((away / "demo/plan.json").read_text()))
