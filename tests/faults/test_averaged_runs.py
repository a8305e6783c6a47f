"""Runs that keep averaged weights: killed and resumed with the same bits, evaluated on rank 0's averages, forked with and without them."""

import re
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks as ring
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from seresnet.assembly import open_data
from seresnet.augment import normalise
from seresnet.checkpoint import main
from seresnet.checkpoint_files import list_checkpoints
from seresnet.config_file import read_run_config
from seresnet.data import load_splits
from seresnet.fork import import_parent, plan_fork
from seresnet.models import build_model
from seresnet.run_folder import RunFolder, TrainResult
from seresnet.world import World

CPU = torch.device("cpu")


def averaging(folder: Path, digits_dir: Path, ranks: int, decay: float = 0.9, **train: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = ring.tiny_config(folder, digits_dir, ranks, **train)
    config.write_text(config.read_text().replace("optim:\n", f"optim:\n  ema_decay: {decay}\n  schedule_epochs: 5\n"))
    return config


def final_tensors(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    name = max(name for name in list_checkpoints(RunFolder(path=run_dir)) if name.step == step)
    return load_file(run_dir / "ckpt" / str(name))


def average_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("ema/"): value for name, value in tensors.items() if name.startswith("ema/")}


def killed_and_resumed(folder: Path, digits_dir: Path, ranks: int, plan: str) -> Generator[None, None, TrainResult]:
    config, run_dir = averaging(folder, digits_dir, ranks), folder / "run"
    how = {"hook": "traces:steps"}
    codes = yield from ring.attend(ring.start(config, run_dir, ranks, environ={"TRACE_ATTEMPT": "1", "TRACE_DO": plan}, **how))
    assert -9 in codes, f"{plan}: nobody was killed, {codes}\n{ring.output(run_dir)[-3000:]}"
    return (yield from ring.finishing(config, run_dir, ranks, environ={"TRACE_ATTEMPT": "2"}, **how))


@pytest.fixture(scope="module")
def whole(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, TrainResult]]:
    """Folder and result of an averaging run of so many ranks that nobody touched, trained when it is first asked for."""

    @cache
    def train(ranks: int) -> tuple[Path, TrainResult]:
        folder = tmp_path_factory.mktemp("whole")
        return folder / "run", ring.finish(averaging(folder, digits_dir, ranks), folder / "run", ranks)

    return train


@pytest.fixture(scope="module")
def parent(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An averaging run of 2 of its 5 epochs, for forks, which leave it as it is."""
    folder = tmp_path_factory.mktemp("parent")
    ring.finish(averaging(folder, digits_dir, 1, epochs=2), folder / "run", 1)
    return folder / "run"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_killed_and_resumed_the_averages_have_the_same_bits(digits_dir: Path, tmp_path: Path, whole, ranks: int, amount, report) -> None:
    undisturbed = whole(ranks)[1]
    assert undisturbed.averaged
    plans = [f"KILL before 13 {ranks - 1}", "KILL after 18 0", "KILL before 29 0"][: amount(1, 3, 3)]
    legs = [killed_and_resumed(tmp_path / plan.replace(" ", "-"), digits_dir, ranks, plan) for plan in plans]
    for plan, result in zip(plans, ring.together(legs, width=2), strict=True):
        assert result.state_digest == undisturbed.state_digest, f"{plan}: the state differs"
        assert (result.last_test_loss, result.confusion) == (undisturbed.last_test_loss, undisturbed.confusion), plan
    report(f"runs with averaged weights killed, {ranks} ranks", f"{len(plans)} kills", "digests and evaluations equal")


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_result_is_that_of_the_averages_in_the_final_checkpoint(digits_dir: Path, tmp_path: Path, whole, ranks: int) -> None:
    config, (run_dir, result) = averaging(tmp_path, digits_dir, ranks), whole(ranks)
    tensors = final_tensors(run_dir, result.step)
    raw = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    found, unaveraged = (loss_on_test(config, weights) for weights in (average_of(tensors), raw))
    assert result.last_test_loss == pytest.approx(found, rel=1e-5), f"the raw weights give {unaveraged}"
    assert abs(found - unaveraged) > 1e-3, "both weights are alike: this test tests nothing"


def loss_on_test(config_file: Path, weights: dict[str, torch.Tensor]) -> float:
    """By torch alone, batch norm not folded."""
    config = read_run_config(config_file, []).config
    arrays = open_data(config, World(rank=0, local_rank=0, size=1, device=CPU))
    test = load_splits(config, arrays, CPU).test
    model = build_model(config.model, len(arrays.classes), 0).eval()
    model.load_state_dict(weights)
    mean, std = (torch.tensor(np.asarray(value), dtype=torch.float32).view(1, 3, 1, 1) for value in (arrays.mean, arrays.std))
    with torch.no_grad():
        return float(F.cross_entropy(model(normalise(test.images, mean, std)), test.labels))


def test_the_checkpoints_of_an_averaging_run_verify(whole, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, _ = whole(1)
    assert main(["verify", str(run_dir)]) == 0 == main(["list", str(run_dir)]), capsys.readouterr().out


def forked(config: Path, run_dir: Path, parent: Path) -> TrainResult:
    return ring.finish(config, run_dir, 1, environ={"RING_ARGUMENTS": f"--fork {parent}"})


def test_a_fork_that_begins_to_average_begins_with_its_parents_weights(digits_dir: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent" / "run"
    ring.finish(averaging(tmp_path / "parent", digits_dir, 1, decay=0.0, epochs=2), parent, 1)
    config = averaging(tmp_path / "fork", digits_dir, 1)
    result = forked(config, tmp_path / "fork" / "run", parent)
    assert result.averaged and "fork_average begins with the parent's weights" in ring.output(tmp_path / "fork" / "run")
    again, values = RunFolder(path=tmp_path / "again"), read_run_config(config).config  # a fork deletes the file when newer ones are there
    imported, of_parent = load_file(again.checkpoints / import_parent(again, plan_fork(parent, values), values)), final_tensors(parent, 12)
    expected = {**of_parent, **{f"ema/{name[6:]}": value for name, value in of_parent.items() if name.startswith("model/")}}
    assert imported.keys() == expected.keys()
    assert not [name for name, value in imported.items() if not torch.equal(value, expected[name])]


def test_a_fork_that_stops_averaging_has_the_bits_of_a_run_without(digits_dir: Path, tmp_path: Path, parent: Path) -> None:
    plain = ring.finish(averaging(tmp_path / "plain", digits_dir, 1, decay=0.0, epochs=2), tmp_path / "plain" / "run", 1)
    assert not plain.averaged
    config = averaging(tmp_path / "a", digits_dir, 1, decay=0.0)
    ours = forked(config, tmp_path / "a" / "run", parent)
    theirs = forked(averaging(tmp_path / "b", digits_dir, 1, decay=0.0), tmp_path / "b" / "run", tmp_path / "plain" / "run")
    assert "fork_average of the parent is left behind" in ring.output(tmp_path / "a" / "run")
    one, two = (final_tensors(tmp_path / side / "run", 30) for side in "ab")
    assert one.keys() == two.keys() and not [name for name in one if not torch.equal(one[name], two[name])]
    assert (ours.last_test_loss, theirs.run_id) == (theirs.last_test_loss, theirs.run_id)


def test_a_fork_that_goes_on_averaging_has_the_bits_of_going_on(digits_dir: Path, tmp_path: Path, parent: Path, whole) -> None:
    run_dir, result = whole(1)
    fork = forked(averaging(tmp_path / "fork", digits_dir, 1), tmp_path / "fork" / "run", parent)
    assert not re.search("fork_average", ring.output(tmp_path / "fork" / "run"))
    names = [name for name, value in final_tensors(tmp_path / "fork" / "run", 30).items()
             if not torch.equal(value, final_tensors(run_dir, 30)[name])]  # fmt: skip
    assert not names and fork.last_test_loss == result.last_test_loss, names
