"""A fork: the same bits where nothing was changed, an id of its own, refused where it cannot fit, and whole wherever it is interrupted."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks as ring
from safetensors.numpy import load_file

from seresnet import attempts
from seresnet.checkpoint_files import list_checkpoints, newest_trusted, read_metadata
from seresnet.config import run_id
from seresnet.config_file import read_run_config
from seresnet.run_folder import CheckpointName, Parent, RunFolder, RunRecord, TrainResult
from seresnet.tensor_file import state_digest_of

Amount = Callable[[int, int, int], int]
Report = Callable[[str, str, str], None]


def edit(config: Path, old: str, new: str) -> Path:
    text = config.read_text()
    assert old in text, f"{old!r} is not in\n{text}"
    config.write_text(text.replace(old, new))
    return config


def tiny(folder: Path, digits_dir: Path, ranks: int = 1, *, lr: float = 0.05, val_images: int = 0, **train: Any) -> Path:
    """As in every ring, with the horizon fixed at 5 epochs, so that fewer or as many can be trained."""
    folder.mkdir(parents=True, exist_ok=True)
    config = ring.tiny_config(folder, digits_dir, ranks, **train)
    edit(config, "lr: 0.05\n", f"lr: {lr}\n  schedule_epochs: 5\n")
    return edit(config, "val_images: 32\n", f"val_images: {val_images}\n")


def fork(config: Path, run_dir: Path, parent: Path, ranks: int = 1, **how: Any) -> TrainResult:
    return ring.finish(config, run_dir, ranks, environ={"RING_ARGUMENTS": f"--fork {parent}"}, **how)


def refused(config: Path, run_dir: Path, *more: str) -> str:
    """What a start says that is not let in; it must change nothing."""
    command = [sys.executable, "-m", "seresnet.train", "--config", str(config), "--run-dir", str(run_dir), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    said = done.stderr + done.stdout
    assert done.returncode in (2, 78) and "Traceback" not in said, f"{done.returncode}\n{said}"
    assert not (run_dir / "run.yaml").exists() or RunRecord.read(RunFolder(path=run_dir)).parent is not None
    return said


@pytest.fixture(scope="module")
def parent(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 of its 5 epochs of 6 steps."""
    folder = tmp_path_factory.mktemp("parent")
    ring.finish(tiny(folder, digits_dir, epochs=2), folder / "run", 1)
    return folder / "run"


@pytest.fixture(scope="module")
def whole(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The same run, gone on with to its fifth epoch."""
    folder = tmp_path_factory.mktemp("whole")
    return ring.finish(tiny(folder, digits_dir), folder / "run", 1)


def test_a_fork_at_the_same_keys_has_the_bits_of_going_on(digits_dir: Path, parent: Path, whole: TrainResult, tmp_path: Path) -> None:
    config = tiny(tmp_path, digits_dir)
    before = {path: path.read_bytes() for path in sorted(parent.rglob("*")) if path.is_file()}
    result = fork(config, tmp_path / "fork", parent)
    assert result.state_digest == whole.state_digest
    assert {path: path.read_bytes() for path in sorted(parent.rglob("*")) if path.is_file()} == before, "the parent's folder was changed"


def test_a_fork_says_whose_child_it_is_and_never_has_an_unforked_runs_id(digits_dir: Path, parent: Path, tmp_path: Path) -> None:
    config = tiny(tmp_path, digits_dir)
    result, record = fork(config, tmp_path / "fork", parent), RunRecord.read(RunFolder(path=tmp_path / "fork"))
    base = newest_trusted(RunFolder(path=parent))
    expected = Parent(
        run_id=RunRecord.read(RunFolder(path=parent)).run_id,
        slug="run",
        step=12,
        checkpoint=str(base),
        state_digest=state_digest_of((parent / "ckpt" / str(base)).read_bytes()),
    )
    assert record.parent == result.parent == expected
    own = run_id(read_run_config(config).config)
    assert own not in (record.run_id, result.run_id) and record.run_id == result.run_id


def test_a_forks_journal_and_best_begin_after_the_fork(digits_dir: Path, tmp_path: Path) -> None:
    whole = ring.finish(tiny(tmp_path / "a", digits_dir, val_images=32), tmp_path / "a" / "run", 1)
    boundary = max(name for name in list_checkpoints(RunFolder(path=tmp_path / "a" / "run")) if name.step in (6, 12, 18, 24))
    source = tmp_path / "a" / "run" / "ckpt" / str(boundary)
    result = fork(tiny(tmp_path / "b", digits_dir, val_images=32), tmp_path / "b" / "run", source)
    epochs = [line["epoch"] for line in ring.journal_lines(tmp_path / "b" / "run")]
    assert epochs == list(range(boundary.step // 6 + 1, 6)), epochs
    assert result.val_chosen_epoch in epochs and result.best_on_test_epoch in epochs
    ours, theirs = (final_tensors(tmp_path / side / "run", 30) for side in "ab")
    assert ours.keys() == theirs.keys() and [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()] == []
    assert result.last_val_top1_pct == whole.last_val_top1_pct


def final_tensors(run_dir: Path, step: int) -> dict[str, Any]:
    name = max(name for name in list_checkpoints(RunFolder(path=run_dir)) if name.step == step)
    return load_file(run_dir / "ckpt" / str(name))


def test_the_fork_of_a_fork_keeps_the_chain_and_another_rate_is_another_run(digits_dir: Path, parent: Path, tmp_path: Path) -> None:
    first = fork(tiny(tmp_path / "a", digits_dir, epochs=3), tmp_path / "a" / "run", parent)
    second = fork(tiny(tmp_path / "b", digits_dir, lr=0.01, epochs=4), tmp_path / "b" / "run", tmp_path / "a" / "run")
    assert second.parent is not None and second.parent.run_id == first.run_id and second.parent.parent == first.parent
    assert len({first.run_id, second.run_id, first.parent.run_id if first.parent else None}) == 3
    record = RunRecord.read(RunFolder(path=tmp_path / "b" / "run"))
    assert record.parent == second.parent and TrainResult.read(RunFolder(path=tmp_path / "b" / "run")) == second


def test_a_parent_that_lost_its_tier_hands_that_down(digits_dir: Path, parent: Path, tmp_path: Path) -> None:
    shutil.copytree(parent, tmp_path / "copy")
    folder = RunFolder(path=tmp_path / "copy")
    replace(RunRecord.read(folder), marks=("world_size: 1 -> 2 at attempt 2",)).write(folder)
    result = fork(tiny(tmp_path, digits_dir, epochs=3), tmp_path / "fork", folder.path)
    marks = RunRecord.read(RunFolder(path=tmp_path / "fork")).marks
    assert result.tier == "T2" and len(marks) == 1 and "world_size: 1 -> 2" in marks[0], marks


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train.global_batch_size=16", "train.micro_batch_size=16"), "  train.global_batch_size: 32 -> 16\nRestore"),
        (("data.train_images=90",), "  data.train_images: 180 -> 90\nRestore"),
        (("data.name=cifar10", "data.target=own_sets:other"), "  data.target: None -> own_sets:other\nRestore"),
        (("model.width=8",), "  model/head.weight: float32 (10, 16) -> float32 (10, 32)\n"),
        (("optim.momentum=0.0",), "  momentum/head.bias: float32 (10,) -> none\n"),
        (("train.epochs=2",), "nothing is left to train. Raise train.epochs"),
    ],
)
def test_a_fork_that_cannot_fit_is_refused_with_a_diff_and_a_fix(
    digits_dir: Path, parent: Path, tmp_path: Path, overrides: tuple[str, ...], said: str
) -> None:
    text = refused(tiny(tmp_path, digits_dir), tmp_path / "fork", "--fork", str(parent), *overrides)
    assert said in text, text
    assert not (tmp_path / "fork").exists(), "debris of a fork that never was"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nothing-there", "there is no such file or folder"),
        ("", "neither the folder of a run"),
        ("run/run.yaml", "neither the folder of a run"),
    ],
)
def test_a_parent_that_is_none_is_refused(digits_dir: Path, parent: Path, tmp_path: Path, source: str, said: str) -> None:
    text = refused(tiny(tmp_path, digits_dir), tmp_path / "fork", "--fork", str(parent.parent / source) if source else "/dev/null")
    assert said in text, text


def test_a_folder_of_another_run_or_another_parent_is_refused(digits_dir: Path, parent: Path, tmp_path: Path) -> None:
    config = tiny(tmp_path, digits_dir, epochs=3)
    shutil.copytree(parent, tmp_path / "own")
    command = [sys.executable, "-m", "seresnet.train", "--config", str(config), "--run-dir", str(tmp_path / "own"), "--fork", str(parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "holds a run that is no fork" in done.stderr, done.stderr
    first = fork(config, tmp_path / "fork", parent)
    other = tmp_path / "own"
    record = RunRecord.read(RunFolder(path=other))
    replace(record, run_id="0" * 12).write(RunFolder(path=other))
    text = refused(config, tmp_path / "fork", "--fork", str(other))
    assert f"was forked from run {record.run_id}" in text and "0" * 12 in text, text
    assert TrainResult.read(RunFolder(path=tmp_path / "fork")) == first


def test_other_keys_in_a_folder_name_the_fork_as_a_way(digits_dir: Path, parent: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "seresnet.train", "--config", str(tiny(tmp_path, digits_dir, lr=0.2)), "--run-dir", str(parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "optim.lr: 0.05 -> 0.2" in done.stderr and f"--fork {parent}" in done.stderr, done.stderr


def test_two_ranks_fork_as_one_does(digits_dir: Path, tmp_path: Path) -> None:
    whole = ring.finish(tiny(tmp_path / "whole", digits_dir, 2), tmp_path / "whole" / "run", 2)
    ring.finish(tiny(tmp_path / "a", digits_dir, 2, epochs=2), tmp_path / "a" / "run", 2)
    result = fork(tiny(tmp_path / "b", digits_dir, 2), tmp_path / "b" / "run", tmp_path / "a" / "run", 2)
    assert result.state_digest == whole.state_digest


def test_a_fork_that_is_killed_anywhere_goes_on_with_or_without_fork(
    digits_dir: Path, parent: Path, whole: TrainResult, tmp_path: Path, amount: Amount, report: Report
) -> None:
    points = start_points(digits_dir, parent, tmp_path / "count")
    chosen = points[:: max(1, len(points) // amount(2, 12, len(points)))]
    for at in chosen:
        work = tmp_path / str(at)
        config, run_dir = tiny(work, digits_dir), work / "run"
        environ = {"FORK_KILL_AT": str(at), "RING_ARGUMENTS": f"--fork {parent}"}
        codes = ring.join_all(ring.start(config, run_dir, 1, hook="fork_killer:install", environ=environ))
        assert codes == [-9], f"call {at}: exit codes {codes}"
        is_imported = any(run_dir.glob("ckpt/g0000-*"))
        # Before the import is durable nothing can know of it: then only --fork goes on.
        again = ring.finish(config, run_dir, 1) if is_imported and at % 2 else fork(config, run_dir, parent)
        assert again.state_digest == whole.state_digest and again.parent is not None, f"killed at call {at}: {again}"
        assert again.run_id == RunRecord.read(RunFolder(path=run_dir)).run_id != whole.run_id
    report("a fork killed at every durable call of its start, started again with or without --fork", f"{len(chosen)} kills", "all equal")


def start_points(digits_dir: Path, parent: Path, folder: Path) -> list[int]:
    """The durable calls from the first one to the first save of the fork's own."""
    config = tiny(folder, digits_dir)
    environ = {"FORK_KILL_AT": "-1", "RING_ARGUMENTS": f"--fork {parent}"}
    ring.finish(config, folder / "run", 1, hook="fork_killer:install", environ=environ)
    calls = (folder / "calls.txt").read_text().splitlines()
    return list(range(next(number for number, call in enumerate(calls) if "g0001-s" in call) + 3))


def test_the_forks_first_claim_names_the_imported_file(digits_dir: Path, parent: Path, tmp_path: Path) -> None:
    fork(tiny(tmp_path, digits_dir, epochs=3), tmp_path / "fork", parent)
    folder = RunFolder(path=tmp_path / "fork")
    claim = attempts.read_claim(folder, 1)
    name = CheckpointName.parse(claim.base or "")
    assert name is not None and (name.generation, name.step) == (0, 12)
    header, scalars = read_metadata((folder.checkpoints / str(name)).read_bytes())
    assert header.epoch_boundary and scalars["best_value"] is None
    assert json.loads(folder.result.read_text())["parent"]["step"] == 12


def test_a_parent_that_cannot_be_read_is_an_error_for_people(digits_dir: Path, parent: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(parent, tmp_path / "broken"))
    shutil.rmtree(broken / "ckpt")
    (broken / "ckpt").write_text("no folder")
    said = refused(tiny(tmp_path, digits_dir), tmp_path / "new", "--fork", str(broken))
    assert said.startswith(f"--fork {broken}: {broken / 'ckpt'}: Not a directory"), said


def test_a_fork_that_lost_its_state_is_refused_and_can_be_forked_again(digits_dir: Path, parent: Path, tmp_path: Path) -> None:
    config = tiny(tmp_path, digits_dir, epochs=3)
    first = fork(config, tmp_path / "fork", parent)
    for place in ("ckpt", "attempts"):
        shutil.rmtree(tmp_path / "fork" / place)
    (tmp_path / "fork" / "result.json").unlink()
    said = refused(config, tmp_path / "fork")
    assert f"fork of {first.parent}" in said and "--fork PARENT/ckpt/" in said, said
    again = fork(config, tmp_path / "fork", parent)
    assert (again.state_digest, again.parent, again.run_id) == (first.state_digest, first.parent, first.run_id)
