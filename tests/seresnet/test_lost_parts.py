"""A run folder that has lost a part, or whose part cannot be read: every command says so, and no start begins anew in silence."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from seresnet import checkpoint, fork, train
from seresnet.checkpoint_files import Header, digest_of, metadata, newest_trusted, read_metadata
from seresnet.config_file import config_from_dict
from seresnet.durable import Files
from seresnet.errors import CheckpointError
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
def forked(run_dir: Path, tmp_path: Path) -> RunFolder:
    """A fork of the run's first epoch, as its first start leaves it."""
    folder = RunFolder(path=tmp_path / "fork")
    record = RunRecord.read(RunFolder(path=run_dir))
    config = config_from_dict(record.config, "run.yaml")
    config = replace(config, optim=replace(config.optim, lr=0.01))
    planned = fork.plan_fork(checkpoints(run_dir)[0], config)
    folder.create()
    fork._write(folder, planned)
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
    args = train._parser().parse_args(["--config", str(tmp_path / "fork.yaml"), "--run-dir", str(forked.path), "--fork", str(run_dir)])
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
    assert code == (1 if command == "verify" else 0) or place == "ckpt", (code, said)
    if place == "ckpt":
        assert code == 1 and "cannot be read (Permission denied)" in said and "begins at step 0" not in said, (code, said)


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
    header = Header(generation=1, step=9, best_so_far=name)
    scalars = {**read_metadata(newest.read_bytes())[1], "step": 9}
    payload = with_metadata(newest.read_bytes(), metadata(header, scalars), {})
    (run_dir / "ckpt" / f"g0001-s000000009-{digest_of(payload)}.safetensors").write_bytes(payload)


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
    checkpoints(run_dir)[0].rename(run_dir / "ckpt" / "my-best.safetensors")
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
