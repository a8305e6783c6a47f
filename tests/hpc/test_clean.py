"""`python -m hpc.clean`: frees what finished runs need no more, asks first, and leaves every record and every unfinished run alone."""

import io
import json
import time
from pathlib import Path

import pytest
from checkpoints import finish_with_checkpoints, save
from fake_sweep import FakeSweep

from hpc import clean, clean_plan, collect, locks, status
from hpc.paths import Submission, Submissions
from seresnet import checkpoint, cleaned, provenance
from seresnet.checkpoint_files import Header, list_checkpoints, newest_trusted
from seresnet.durable import json_bytes
from seresnet.errors import CheckpointError
from seresnet.run_folder import CheckpointName


@pytest.fixture
def sweep(tmp_path: Path) -> FakeSweep:
    made = FakeSweep(tmp_path / "runs", seeds=1).finish_all()
    entry = Submission(id="0001", created=0, code="0001", mode="local", tasks=tuple(made.plan.tasks), state="done")
    Submissions().with_entry(entry).write(made.folder)
    return made


@pytest.fixture
def names(sweep: FakeSweep) -> dict[str, CheckpointName]:
    """The checkpoints of se-seed0; those of baseline-seed0 cannot be read, and so it keeps everything."""
    return finish_with_checkpoints(sweep, "se", 0)


def records(sweep: FakeSweep) -> dict[str, bytes]:
    files = [path for path in sweep.folder.path.rglob("*") if path.is_file() and path.suffix in (".json", ".yaml", ".jsonl", ".txt")]
    return {path.name + str(path.parent): path.read_bytes() for path in files if path.name != "cleaned.json"}


@pytest.mark.parametrize(("keep", "left"), [(None, {"final", "best"}), ("final", {"final"}), ("best", {"best"})])
def test_what_is_kept_stays_and_the_rest_goes(
    sweep: FakeSweep, names: dict[str, CheckpointName], keep: clean_plan.Keep, left: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = records(sweep)
    assert clean.clean(sweep.folder.path, keep, is_sure=True) == 0
    said = capsys.readouterr().out
    assert ("--weights best" in said, "--weights last" in said) == (keep == "final", keep == "best"), said
    assert set(list_checkpoints(sweep.of("se", 0))) == {names[word] for word in left}
    assert records(sweep) == before, "a record was touched"
    record = cleaned.read(sweep.of("se", 0))
    assert record is not None and set(record.files) == {str(name) for word, name in names.items() if word not in left}


def test_it_prints_what_it_frees_by_kind(sweep: FakeSweep, names: dict[str, CheckpointName], capsys: pytest.CaptureFixture[str]) -> None:
    size = (sweep.of("se", 0).checkpoints / str(names["base"])).stat().st_size / 1e6
    (sweep.of("se", 0).path / "profile").mkdir()
    (sweep.of("se", 0).path / "profile" / "trace.json").write_text("x" * 3_000_000)
    clean.main([str(sweep.folder.path), "--dry-run"])
    rows = {line[2:46].strip(): line[46:].split() for line in capsys.readouterr().out.splitlines() if line.endswith(" MB")}
    assert rows == {
        "older checkpoints": ["1", "files", f"{size:.1f}", "MB"],
        "checkpoints that a later attempt began with": ["1", "files", f"{size:.1f}", "MB"],
        "traces (profile/)": ["1", "files", "3.0", "MB"],
        "together": ["3", "files", "3.0", "MB"],
    }
    assert len(list_checkpoints(sweep.of("se", 0))) == 4 and not sweep.of("se", 0).cleaned.exists()


def test_without_a_terminal_and_yes_it_prints_and_removes_nothing(
    sweep: FakeSweep, names: dict[str, CheckpointName], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert clean.main([str(sweep.folder.path)]) == 2
    said = capsys.readouterr()
    assert "older checkpoints" in said.out and "Say --yes" in said.err and len(list_checkpoints(sweep.of("se", 0))) == 4


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 2), ("", 1, 4), ("no", 1, 4)])
def test_it_asks_and_no_answer_is_a_no(
    sweep: FakeSweep, names: dict[str, CheckpointName], monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: int
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert clean.clean(sweep.folder.path, None) == code
    assert len(list_checkpoints(sweep.of("se", 0))) == left


# --- who keeps everything ---


def test_an_unfinished_run_keeps_everything(sweep: FakeSweep, names: dict[str, CheckpointName]) -> None:
    sweep.of("se", 0).result.unlink()
    sweep.attempt("se", 0, "preempted", generation=2)
    before = list_checkpoints(sweep.of("se", 0))
    Submissions().write(sweep.folder)
    sweep.plan = sweep.plan.__class__(**{**sweep.plan.__dict__, "tasks": {}})
    sweep.plan.write(sweep.folder)
    (sweep.of("se", 0).path / "profile").mkdir()
    assert clean.clean(sweep.folder.path, "final", is_sure=True) == 0
    assert list_checkpoints(sweep.of("se", 0)) == before and (sweep.of("se", 0).path / "profile").is_dir()


@pytest.mark.parametrize("harm", ["flip", "other result"])
def test_a_final_checkpoint_that_is_not_what_it_should_be_keeps_all_the_others(
    sweep: FakeSweep, names: dict[str, CheckpointName], harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep.of("se", 0).checkpoints / str(names["final"])
    if harm == "flip":
        payload = path.read_bytes()
        path.write_bytes(payload[:-1] + bytes([payload[-1] ^ 1]))
    else:
        result = json.loads(sweep.of("se", 0).result.read_text())
        sweep.of("se", 0).result.write_bytes(json_bytes({**result, "state_digest": "0" * 64}))
    assert clean.clean(sweep.folder.path, "final", is_sure=True) == 0
    assert len(list_checkpoints(sweep.of("se", 0))) == 4
    assert f"{path}: " in capsys.readouterr().out


def test_the_checkpoint_that_a_fork_began_with_stays(sweep: FakeSweep, names: dict[str, CheckpointName], tmp_path: Path) -> None:
    fork = tmp_path / "runs" / "single" / "fork-0123456789ab"
    fork.mkdir(parents=True)
    (fork / "run.yaml").write_text(f"schema: 1\nparent:\n  run_id: x\n  checkpoint: {names['older']}\n")
    clean.clean(sweep.folder.path, "final", is_sure=True)
    assert set(list_checkpoints(sweep.of("se", 0))) == {names["final"], names["older"]}


def test_it_is_refused_while_somebody_may_write(
    sweep: FakeSweep, names: dict[str, CheckpointName], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.folder.logs.mkdir()
    with locks.holding(sweep.folder.local_lock("0001")):
        assert clean.main([str(sweep.folder.path), "--yes"]) == 2
    assert "Nothing was removed" in capsys.readouterr().err and len(list_checkpoints(sweep.of("se", 0))) == 4


def test_a_run_that_is_begun_while_the_question_stands_keeps_everything(
    sweep: FakeSweep, names: dict[str, CheckpointName], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(question: str) -> str:
        sweep.attempt("se", 0, generation=3)
        return "y"

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", begin)
    clean.clean(sweep.folder.path, "final")
    assert len(list_checkpoints(sweep.of("se", 0))) == 4 and "somebody has begun" in capsys.readouterr().out


# --- what else goes ---


def snapshot_of(sweep: FakeSweep, number: str, text: str) -> str:
    package = sweep.folder.code(number) / "seresnet"
    package.mkdir(parents=True)
    (package / "x.py").write_text(text)
    return provenance.code_digest(package)


def test_code_goes_unless_a_result_or_the_next_launch_needs_it(sweep: FakeSweep) -> None:
    digests = {number: snapshot_of(sweep, number, f"{number}\n") for number in ("0001", "0002", "0003", "0004")}
    sweep.finish("se", 0, code_digest=digests["0002"])
    entries = [Submission(id=f"{at:04d}", created=0, code=f"{at:04d}", mode="local", tasks=(), state="done") for at in (1, 2, 3)]
    Submissions(submissions=tuple(entries)).write(sweep.folder)
    clean.clean(sweep.folder.path, None, is_sure=True)
    # 0002 made a result, 0003 is what the last launch goes on with, 0004 is the newest.
    assert sorted(path.name for path in sweep.folder.codes.iterdir()) == ["0002", "0003", "0004"]
    assert json.loads(sweep.folder.cleaned.read_text())["entries"][0]["code"] == ["0001"]


def test_trials_lose_their_checkpoints_and_uploaded_segments_go(sweep: FakeSweep) -> None:
    trial = sweep.folder.trials / "se-0" / "ckpt"
    trial.mkdir(parents=True)
    (trial / "g0001-x.safetensors").write_bytes(b"x")
    (sweep.folder.trials / "calibrate-0001.json").write_text("{}")
    for name, is_uploaded in (("offline-run-1", True), ("offline-run-2", False)):
        segment = sweep.of("se", 0).path / "wandb" / name
        segment.mkdir(parents=True)
        (segment / "run-a.wandb").write_bytes(b"x")
        if is_uploaded:
            (segment / "run-a.wandb.synced").touch()
    clean.clean(sweep.folder.path, None, is_sure=True)
    assert [path.name for path in (sweep.of("se", 0).path / "wandb").iterdir()] == ["offline-run-2"]
    assert not [*trial.iterdir()] and (sweep.folder.trials / "calibrate-0001.json").exists()


# --- afterwards ---


def test_a_cleaned_sweep_gives_the_same_table_and_verify_says_what_is_gone(
    sweep: FakeSweep, names: dict[str, CheckpointName], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for place in ("before", "after"):
        assert collect.main([str(sweep.folder.path), "--no-figures", "--output", str(tmp_path / place)]) == 0
        tables.append((tmp_path / place / "table.md").read_text())
        clean.clean(sweep.folder.path, "final", is_sure=True)
    assert tables[0] == tables[1]
    capsys.readouterr()
    checkpoint.main(["verify", str(sweep.of("se", 0).path)])
    said = capsys.readouterr().out
    assert "3 checkpoints are gone by intention" in said and "and kept the final" in said, said
    status.main([str(sweep.folder.path)])
    assert "checkpoints are gone on purpose" in capsys.readouterr().out


def test_cleaning_twice_removes_nothing_more(
    sweep: FakeSweep, names: dict[str, CheckpointName], capsys: pytest.CaptureFixture[str]
) -> None:
    clean.clean(sweep.folder.path, None, is_sure=True)
    first = sweep.of("se", 0).cleaned.read_bytes()
    capsys.readouterr()
    assert clean.clean(sweep.folder.path, None, is_sure=True) == 0
    assert "nothing to remove" in capsys.readouterr().out and sweep.of("se", 0).cleaned.read_bytes() == first


def test_from_both_to_one_the_record_holds_both_cleanings(sweep: FakeSweep, names: dict[str, CheckpointName]) -> None:
    clean.clean(sweep.folder.path, None, is_sure=True)
    clean.clean(sweep.folder.path, "best", is_sure=True)
    record = cleaned.read(sweep.of("se", 0))
    assert list_checkpoints(sweep.of("se", 0)) == [names["best"]] and record is not None
    assert set(record.files) == {str(names[word]) for word in ("base", "older", "final")} and record.kept == "best"
    assert clean.clean(sweep.folder.path, "best", is_sure=True) == 0


def test_going_on_says_from_where_and_what_is_missing(sweep: FakeSweep, names: dict[str, CheckpointName]) -> None:
    folder = sweep.of("se", 0)
    clean.clean(sweep.folder.path, "best", is_sure=True)
    assert newest_trusted(folder) == names["best"]
    words = cleaned.going_on(folder, names["best"].step)
    assert words is not None and words.endswith(
        f"step {names['final'].step} is gone on purpose, so it goes on at step {names['best'].step}"
    )
    (folder.checkpoints / str(names["best"])).unlink()
    with pytest.raises(CheckpointError, match=r"removed 3 checkpoints .* so nothing is left"):
        newest_trusted(folder)


def test_where_the_final_is_kept_going_on_has_lost_nothing(sweep: FakeSweep, names: dict[str, CheckpointName]) -> None:
    clean.clean(sweep.folder.path, "final", is_sure=True)
    assert newest_trusted(sweep.of("se", 0)) == names["final"]
    assert cleaned.going_on(sweep.of("se", 0), names["final"].step) is None


def test_a_run_without_validation_keeps_its_final_as_the_best(sweep: FakeSweep, names: dict[str, CheckpointName]) -> None:
    folder = sweep.of("se", 0)
    for name in list_checkpoints(folder):
        (folder.checkpoints / str(name)).unlink()
    step = json.loads(folder.result.read_text())["step"]
    save(folder, Header(generation=2, step=step - 10, epoch_boundary=True))
    final = save(folder, Header(generation=2, step=step, epoch_boundary=True, final=True))
    digest = clean_plan.state_digest_of((folder.checkpoints / str(final)).read_bytes())
    folder.result.write_bytes(json_bytes({**json.loads(folder.result.read_text()), "state_digest": digest}))
    clean.clean(sweep.folder.path, "best", is_sure=True)
    assert list_checkpoints(folder) == [final]


def test_a_record_that_was_torn_counts_as_none(sweep: FakeSweep, names: dict[str, CheckpointName]) -> None:
    sweep.of("se", 0).cleaned.write_text('{"schema": 1, "files": {"a": ')
    assert cleaned.read(sweep.of("se", 0)) is None
    assert clean.clean(sweep.folder.path, "final", is_sure=True) == 0
    record = cleaned.read(sweep.of("se", 0))
    assert record is not None and len(record.files) == 3 and abs(record.time - time.time()) < 60
