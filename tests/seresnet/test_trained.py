"""A run's classifier gives the very numbers that the run itself wrote down; exports give the classifier's; nothing foreign is taken."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import seresnet
from seresnet.errors import CheckpointError, ConfigError
from seresnet.export import main as export
from seresnet.export import write_weights
from seresnet.run_folder import RunFolder, TrainResult
from seresnet.trained import load_run


def test_the_classifier_of_a_run_makes_the_confusion_matrix_of_its_result(two_runs: list[Path]) -> None:
    classifier, arrays = load_run(RunFolder(path=two_runs[0]), torch.device("cpu"))
    result = TrainResult.read(RunFolder(path=two_runs[0]))
    from seresnet.data import split_indices

    assert result is not None and result.averaged
    chosen = split_indices(classifier.config.data, arrays.train_labels, arrays.test_labels).test
    predicted = classifier.logits(arrays.test_images[chosen]).argmax(1).numpy()
    found = np.zeros((10, 10), int)
    np.add.at(found, (arrays.test_labels[chosen], predicted), 1)
    assert found.tolist() == result.confusion


def test_three_lines_of_python_classify(two_runs: list[Path]) -> None:
    classifier = seresnet.load(two_runs[0])
    found = classifier.probabilities(np.zeros((2, 32, 32, 3), np.uint8))
    assert found.shape == (2, 10) and torch.allclose(found.sum(1), torch.ones(2))


def test_reading_a_run_changes_nothing_in_it(two_runs: list[Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in two_runs[0].rglob("*")}
    seresnet.load(two_runs[0])
    assert {path: path.stat().st_mtime_ns for path in two_runs[0].rglob("*")} == before


def test_best_and_last_weights_are_those_of_their_steps(two_runs: list[Path]) -> None:
    result = json.loads((two_runs[0] / "result.json").read_text())
    last, best = (seresnet.load(two_runs[0], weights=which) for which in ("last", "best"))
    assert f"step {result['step']}," in last.origin
    assert f"step {result['val_chosen_epoch'] * result['step'] // result['epochs']}," in best.origin


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), r"float32 \(2, 32, 32, 3\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"uint8 \(2, 3, 32, 32\)"),
        (np.zeros((32, 32, 3), np.uint8), r"uint8 \(32, 32, 3\)"),
    ],
)
def test_images_of_another_form_are_refused(two_runs: list[Path], images: np.ndarray, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"images are {found}; this network takes uint8 \(N, 32, 32, 3\)"):
        seresnet.load(two_runs[0]).logits(images)


def test_a_sweep_is_no_classifier(two_runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"holds 2 runs. Give one of them"):
        seresnet.load(two_runs[0].parent)


def test_a_run_without_a_checkpoint_is_named(two_runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.yaml").write_text((two_runs[0] / "run.yaml").read_text())
    with pytest.raises(CheckpointError, match=r"has not a whole checkpoint. Train it first"):
        seresnet.load(tmp_path / "run")


def test_a_flipped_bit_is_passed_over_for_an_older_checkpoint(two_runs: list[Path], tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(two_runs[0], run)
    newest = max((run / "ckpt").glob("*.safetensors"), key=lambda path: path.name)
    payload = bytearray(newest.read_bytes())
    payload[-5] ^= 1
    newest.write_bytes(payload)
    assert newest.name[6:16] not in seresnet.load(run).origin and newest.exists()


def test_exports_give_the_runs_logits(two_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert export([str(two_runs[0]), str(tmp_path)]) == 0, capsys.readouterr().err
    classifier, pixels = seresnet.load(two_runs[0]), np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    expected = classifier.logits(pixels)
    assert torch.equal(seresnet.load(tmp_path / "weights.safetensors").logits(pixels), expected)
    images = classifier.prepared(torch.from_numpy(pixels).permute(0, 3, 1, 2)).contiguous()
    torch.testing.assert_close(torch.export.load(tmp_path / "network.pt2").module()(images), expected, rtol=1e-4, atol=1e-4)
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    torch.testing.assert_close(torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), expected, rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["network.onnx", "network.pt2", "weights.safetensors"]


def test_an_export_needs_neither_run_nor_data(two_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(seresnet.load(two_runs[0]), tmp_path / "w.safetensors")
    monkeypatch.setattr("seresnet.trained.open_arrays", lambda config: pytest.fail("asked for the data"))
    found = seresnet.load(tmp_path / "w.safetensors")
    assert found.classes == tuple("0123456789") and "se-s0" in found.origin


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{}", b"x" * 400])
def test_a_file_that_is_no_export_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"w.safetensors: not a file of `python -m seresnet.export`"):
        seresnet.load(tmp_path / "w.safetensors")
