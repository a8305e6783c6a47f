"""A submission has the right ids, header and labels from every kind of input, and nothing in an input is run."""

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import seresnet
from seresnet.digits import read_digits
from seresnet.errors import DataError
from seresnet.inputs import read_inputs
from seresnet.predict import main
from seresnet.tta import SHIFTS, probabilities, shifted


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return read_digits().test_images[:37]


def written(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_the_competitions_pickle_in_both_layouts_gives_ids_and_labels(two_runs: list[Path], pixels, layout: str, tmp_path: Path) -> None:
    array = pixels if layout == "NHWC" else pixels.transpose(0, 3, 1, 2)
    (tmp_path / "cifar_test_nolabel.pkl").write_bytes(pickle.dumps({b"data": np.ascontiguousarray(array), b"ids": list(range(37))}))
    out = tmp_path / "submission.csv"
    assert main([str(two_runs[0]), "--input", str(tmp_path / "cifar_test_nolabel.pkl"), "--output", str(out)]) == 0
    header, *rows = written(out)
    expected = seresnet.load(two_runs[0]).logits(pixels).argmax(1).tolist()
    assert header == ["ID", "Labels"] and [row[0] for row in rows] == [str(i) for i in range(37)]
    assert [int(row[1]) for row in rows] == expected


def test_a_malicious_pickle_is_refused_and_not_run(two_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({b"data": Evil()}))
    out = tmp_path / "out.csv"
    assert main([str(two_runs[0]), "--input", str(tmp_path / "evil.pkl"), "--output", str(out)]) == 2
    assert "Nothing in it was run" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not out.exists()


def test_a_npy_of_objects_is_refused_and_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"not a .npy file of numbers"):
        read_inputs(tmp_path / "evil.npy")


def test_a_npy_and_a_folder_give_the_same_labels(two_runs: list[Path], pixels, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", pixels)
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{number}.png")
    for name in ("images.npy", "pictures"):
        assert main([str(two_runs[0]), "--input", str(tmp_path / name), "--output", str(tmp_path / f"{name}.csv")]) == 0
    first, second = written(tmp_path / "images.npy.csv"), written(tmp_path / "pictures.csv")
    assert first == second, "9.png must come before 10.png"


def test_several_runs_are_averaged_by_probability(two_runs: list[Path], pixels, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", pixels)
    assert main([*map(str, two_runs), "--input", str(tmp_path / "images.npy"), "--output", str(tmp_path / "out.csv")]) == 0
    parts = [seresnet.load(run).logits(pixels).double().softmax(1) for run in two_runs]
    expected = ((parts[0] + parts[1]) / 2).argmax(1).tolist()
    assert [int(row[1]) for row in written(tmp_path / "out.csv")[1:]] == expected


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 32, 32, 3), np.float32), "holds float32, not uint8"),
        (np.zeros((4, 32, 32), np.uint8), r"has the shape \(4, 32, 32\)"),
        (np.zeros((4, 64, 64, 3), np.uint8), r"images are uint8 \(4, 64, 64, 3\)"),
    ],
)
def test_arrays_of_another_kind_are_told(two_runs: list[Path], array: np.ndarray, words: str, tmp_path: Path, capsys) -> None:
    import re

    np.save(tmp_path / "images.npy", array)
    assert main([str(two_runs[0]), "--input", str(tmp_path / "images.npy"), "--output", str(tmp_path / "out.csv")]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_a_pickle_without_data_names_its_keys(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({b"images": [1], b"labels": [2]}))
    with pytest.raises(DataError, match=r"no array under the key b'data'. Its keys: b'images', b'labels'"):
        read_inputs(tmp_path / "x.pkl")


def test_test_time_augmentation_is_the_mean_over_six_views(two_runs: list[Path], pixels) -> None:
    classifier = seresnet.load(two_runs[0])
    views = []
    for rows, columns in SHIFTS:
        moved = np.stack(
            [np.roll(np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="edge"), (rows, columns), (0, 1))[4:-4, 4:-4] for image in pixels]
        )
        assert np.array_equal(shifted(pixels, rows, columns), moved), (rows, columns)
        views += [moved, np.ascontiguousarray(moved[:, :, ::-1])]
    expected = torch.stack([classifier.probabilities(view) for view in views]).mean(0)
    torch.testing.assert_close(probabilities(classifier, pixels, tta=True), expected)
