"""A run folder that has lost a part, or whose part cannot be read: every command says so, and no start begins anew in silence."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from seresnet import checkpoint, fork, train, train_arguments
from seresnet.checkpoint_files import Header, digest_of, metadata, newest_trusted, read_metadata
from seresnet.config_file import config_from_dict
from seresnet.durable import Files
from seresnet.errors import CheckpointError, ToolkitError
from seresnet.run_folder import RunFolder, RunRecord
from seresnet.tensor_file import with_metadata

FIXTURE = Path(__file__).resolve().parents[1] / "golden" / "formats" / "1" / "run"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of two epochs of two steps that lost its result, so that it can go on."""
    path = Path(shutil.copytree(FIXTURE, tmp_path / "parent"))
    (path / "result.json").unlink()
    return path


@pytest.fixture
def parent_config(run_dir: Path, tmp_path: Path) -> Path:
    """What the run was started with, able to train on."""
    write_config(tmp_path / "parent.yaml", RunRecord.read(RunFolder(path=run_dir)))
    return tmp_path / "parent.yaml"


@pytest.fixture
def forked(run_dir: Path, tmp_path: Path) -> RunFolder:
    """A fork of the run's first epoch, as its first start leaves it."""
    folder = RunFolder(path=tmp_path / "fork")
    record = RunRecord.read(RunFolder(path=run_dir))
    config = config_from_dict(record.config, "run.yaml")
    config = replace(config, optim=replace(config.optim, lr=0.01))
    planned = fork.plan_fork(checkpoints(run_dir)[0], config)
    folder.create()
    fork._write(folder, planned, config)
    fork.fork_record(planned.origin, "fork", config).write(folder)
    write_config(tmp_path / "fork.yaml", fork.fork_record(planned.origin, "fork", config))
    return folder


def write_config(path: Path, record: RunRecord) -> None:
    lines = [f"{section}.{key}: {value}" for section, keys in record.config.items() for key, value in keys.items() if value is not None]
    path.write_text("\n".join(lines) + "\n")


def checkpoints(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "ckpt").glob("g*.safetensors"))


def verify(run_dir: Path, capsys: Capture) -> tuple[int, str]:
    code = checkpoint.main(["verify", str(run_dir)])
    return code, " ".join(capsys.readouterr().out.split())


def test_a_fork_without_checkpoints_never_begins_at_step_0(forked: RunFolder, capsys: Capture) -> None:
    assert newest_trusted(forked) is not None
    for place in (forked.checkpoints, forked.attempts):
        place.rename(place.with_name(f"{place.name}-old"))
    code, said = verify(forked.path, capsys)
    assert code == 1 and "--fork" in said and "begins at step 0" not in said, said
    with pytest.raises(CheckpointError, match=r"fork of run dffdc3e822a5 .*--fork PARENT/ckpt/g0001-s000000002"):
        newest_trusted(forked)


def test_a_fork_without_checkpoints_can_be_forked_again(forked: RunFolder, run_dir: Path, tmp_path: Path) -> None:
    known = RunRecord.read(forked)
    shutil.rmtree(forked.checkpoints)
    words = ["--config", str(tmp_path / "fork.yaml"), "--run-dir", str(forked.path), "--fork", str(run_dir)]
    args = train_arguments.parser().parse_args(words)
    config = config_from_dict(known.config, "run.yaml")
    planned = train._fork(args, forked, config)
    assert planned is not None and planned.origin.parent == known.parent
    assert fork.import_parent(forked, planned, config).startswith("g0000-s000000002-")


def refuse_names(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """As another user's folder of mode 700."""
    names = Files.names

    def refusing(self: Files, folder: Path) -> list[str]:
        if folder.name == place:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return names(self, folder)

    monkeypatch.setattr(Files, "names", refusing)


@pytest.mark.parametrize("command", ["list", "verify"])
@pytest.mark.parametrize("place", ["ckpt", "attempts", "metrics"])
def test_a_folder_that_cannot_be_read_is_never_called_ok(
    run_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str, place: str
) -> None:
    refuse_names(monkeypatch, place)
    code = checkpoint.main([command, str(run_dir)])
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "begins at step 0" not in said and (command == "list" or "cannot be read (Permission denied)" in said), said
    assert code == (1 if command == "verify" or place == "ckpt" else 0), (code, said)


@pytest.mark.parametrize("place", ["ckpt", "attempts", "metrics"])
def test_a_start_in_a_folder_that_cannot_be_read_is_refused(
    run_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    refuse_names(monkeypatch, place)
    assert train.main(["--run-dir", str(run_dir)]) == 2
    said = capsys.readouterr().err
    assert f"{run_dir / place}: Permission denied" in said, said


def test_epochs_without_a_checkpoint_are_not_called_ok(run_dir: Path, capsys: Capture) -> None:
    for path in checkpoints(run_dir):
        path.unlink()
    code, said = verify(run_dir, capsys)
    assert code == 1 and "2 epochs are written down, and there is no checkpoint" in said and ": ok" not in said, said


def mentioned_in_log(run_dir: Path, name: str) -> None:
    with open(run_dir / "log.txt", "a") as file:
        file.write(f"2026-01-01 00:00:00 checkpoint_durable step=2 name={name} seconds=0.01\n")


def mentioned_by_a_claim(run_dir: Path, name: str) -> None:
    path = run_dir / "attempts" / "000001.json"
    path.write_text(path.read_text().replace('"base": null', f'"base": "{name}"'))


def mentioned_as_best(run_dir: Path, name: str) -> None:
    newest = checkpoints(run_dir)[-1]
    header = Header(generation=1, step=4, best_so_far=name)
    scalars = read_metadata(newest.read_bytes())[1]
    payload = with_metadata(newest.read_bytes(), metadata(header, scalars), {})
    (run_dir / "ckpt" / f"g0001-s000000004-{digest_of(payload)}.safetensors").write_bytes(payload)


@pytest.mark.parametrize("mention", [mentioned_in_log, mentioned_by_a_claim, mentioned_as_best])
def test_a_renamed_file_that_the_run_itself_names_gets_its_name_back(run_dir: Path, capsys: Capture, mention) -> None:
    (run_dir / "log.txt").write_text("")
    lost, name = run_dir / "ckpt" / "my-best.safetensors", checkpoints(run_dir)[0].name
    mention(run_dir, name)
    checkpoints(run_dir)[0].rename(lost)
    code, said = verify(run_dir, capsys)
    assert code == 1 and f"ckpt/my-best.safetensors: is {name} under another name" in said and "gives it its name" in said, said
    assert checkpoint.main(["repair", str(run_dir)]) == 0
    assert (run_dir / "ckpt" / name).exists() and not lost.exists(), capsys.readouterr().out


def test_a_file_that_nothing_names_stays_unproven(run_dir: Path, capsys: Capture) -> None:
    (run_dir / "log.txt").write_text("")
    checkpoints(run_dir)[-1].rename(run_dir / "ckpt" / "my-best.safetensors")
    code, said = verify(run_dir, capsys)
    assert code == 0 and "no digest that proves it" in said, said


def test_where_no_file_is_good_nobody_promises_that_repair_mends_it(run_dir: Path, capsys: Capture) -> None:
    for path in checkpoints(run_dir):
        path.write_bytes(path.read_bytes()[:-1] + b"\xff\xff")
    code, said = verify(run_dir, capsys)
    assert code == 1 and "sets it aside" not in said and "backup" in said, said


def test_foreign_files_are_named(run_dir: Path, capsys: Capture) -> None:
    (run_dir / "ckpt" / "notes.txt").write_text("x")
    code, said = verify(run_dir, capsys)
    assert code == 0 and "note: ckpt/notes.txt: not a checkpoint" in said, said


@pytest.mark.parametrize("seconds", ["0", "-5", "89", "nan", "inf"])
def test_a_watch_shorter_than_a_claims_is_refused(run_dir: Path, capsys: Capture, seconds: str) -> None:
    with pytest.raises(SystemExit) as caught:
        checkpoint.main(["repair", f"--watch-s={seconds}", str(run_dir)])
    assert caught.value.code == 2 and "Use 90 or more" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--run-dir", ""], ["--config", "x.yaml", "--run-dir", "x", "--fork", " "]])
def test_an_empty_folder_name_is_an_unset_variable(capsys: Capture, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(argv)
    assert caught.value.code == 2 and "a shell variable not set" in capsys.readouterr().err


def test_a_narrow_list_shows_whole_names(run_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert checkpoint.main(["list", str(run_dir)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [f"    {path.name}" for path in checkpoints(run_dir)] == [line for line in said if line.startswith("    g0")], said


def test_verify_wraps_on_a_narrow_screen_and_says_once_how_to_mend(run_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for number in (1, 2):
        (run_dir / "metrics" / f"g000{number}.jsonl").open("ab").write(b'{"epo')
    checkpoints(run_dir)[0].write_bytes(b"")
    checkpoint.main(["verify", str(run_dir)])
    said = capsys.readouterr().out
    long = [line for line in said.splitlines()[1:] if len(line) > 80 and str(run_dir) not in line]
    assert long == [] and said.count("python -m seresnet.checkpoint repair") == 1, said


def test_a_folder_of_sweeps_names_them(tmp_path: Path, capsys: Capture) -> None:
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "plan.json").write_text("{}")
    assert checkpoint.main(["verify", str(tmp_path / "runs")]) == 2
    assert "Sweeps in it: one, two." in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file.txt", "file.txt/below", "/proc/nothing-there/x"])
def test_a_run_dir_that_cannot_be_made_is_refused(
    forked: RunFolder, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file.txt").write_text("x")
    monkeypatch.setattr(train._Process, "run", lambda process: pytest.fail("it started"))
    target = tmp_path / place
    assert train.main(["--config", str(fresh(tmp_path)), "--run-dir", str(target)]) == 2
    said = capsys.readouterr().err
    assert "--run-dir must be a folder" in said and (tmp_path / "file.txt").read_text() == "x", said


def fresh(tmp_path: Path) -> Path:
    path = tmp_path / "fresh.yaml"
    path.write_text("train.epochs: 1\noptim.warmup_epochs: 0\n")
    return path


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train._Process, "run", lambda process: pytest.fail("it started"))
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    assert train.main(["--config", str(fresh(tmp_path)), "--run-dir", str(tmp_path / "run")]) == 2
    assert "log.txt: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--fork", "PARENT"], []])
def test_a_missing_config_is_what_is_said(run_dir: Path, tmp_path: Path, capsys: Capture, more: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert train.main(["--run-dir", str(tmp_path / "empty"), *(word.replace("PARENT", str(run_dir)) for word in more)]) == 2
    said = capsys.readouterr().err
    assert "--config is missing" in said and "launch the sweep" not in said, said
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("ckpt/nope.safetensors", "there is no such file or folder. There are: g0001-s000000004-"),
        (f"ckpt/g0001-s000000009-{'0' * 16}.safetensors", "there is no such file. There are: g0001-s000000004-"),
        (f"ckpt/bad/g0001-s000000009-{'0' * 16}.safetensors", "lies in ckpt/bad/"),
        ("../nowhere", "there is no such file or folder"),
    ],
)
def test_a_fork_of_a_file_that_is_not_there_names_those_that_are(run_dir: Path, source: str, said: str) -> None:
    config = config_from_dict(RunRecord.read(RunFolder(path=run_dir)).config, "run.yaml")
    with pytest.raises(ToolkitError) as caught:
        fork.plan_fork(run_dir / source, config)
    assert said in str(caught.value)


def test_a_fork_of_another_parent_is_not_told_to_fork_its_own_folder(
    forked: RunFolder, run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    config = tmp_path / "other.yaml"
    config.write_text((tmp_path / "fork.yaml").read_text().replace("optim.lr: 0.01", "optim.lr: 0.02"))
    assert train.main(["--config", str(config), "--run-dir", str(run_dir), "--fork", str(forked.path)]) == 2
    said = capsys.readouterr().err
    assert "holds a run that is no fork" in said and f"--fork {run_dir}" not in said, said


def test_a_fork_says_the_rate_that_it_goes_on_with(run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_from_dict(RunRecord.read(RunFolder(path=run_dir)).config, "run.yaml")
    planned = fork.plan_fork(checkpoints(run_dir)[0], replace(config, optim=replace(config.optim, schedule_epochs=10)))
    caplog.set_level("INFO", "seresnet")
    fork.import_parent(RunFolder(path=tmp_path / "new"), planned, replace(config, optim=replace(config.optim, schedule_epochs=10)))
    assert "step=2 epoch=2 lr=0.05 (cosine, epoch 2 of 10)" in caplog.text, caplog.text


def test_a_fork_with_another_network_is_refused_before_anything_is_written(
    forked: RunFolder, run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    argv = ["--config", str(tmp_path / "fork.yaml"), "--run-dir", str(tmp_path / "new"), "--fork", str(run_dir), "model.width=4"]
    assert train.main([*argv, "train.epochs=4"]) == 2
    said = capsys.readouterr().err
    assert "has other tensors" in said and not (tmp_path / "new").exists(), said


def test_a_run_yaml_that_is_no_mapping_is_called_that(run_dir: Path, capsys: Capture) -> None:
    (run_dir / "run.yaml").write_text("junk")
    code, said = verify(run_dir, capsys)
    assert code == 1 and "run.yaml: not a mapping of keys" in said, said


def test_a_fork_with_other_numeric_keys_is_refused_before_anything_is_written(
    parent_config: Path, run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    argv = ["--config", str(parent_config), "--run-dir", str(tmp_path / "new"), "--fork", str(run_dir), "train.epochs=4", "train.threads=2"]
    assert train.main(argv) == 2
    said = capsys.readouterr().err
    assert "train.threads: 1 -> 2" in said and not (tmp_path / "new").exists(), said
