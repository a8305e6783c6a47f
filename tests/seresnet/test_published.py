"""CIFAR-100, SVHN and Tiny ImageNet from small files in their official layouts, and what a user is told where files are not right."""

import hashlib
import http.server
import pickle
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepare_sources import pack, python2_pickle, random_image
from scipy.io import savemat

from seresnet import published
from seresnet.array_file import Arrays, load_arrays
from seresnet.config import DataConfig
from seresnet.errors import DataError
from seresnet.prepare import main, prepare
from seresnet.sources import config_for

FINE = [f"class{number:03d}" for number in range(100)]


def cifar100_folder(folder: Path) -> dict[str, tuple[np.ndarray, list[int]]]:
    folder.mkdir(parents=True)
    made = {}
    for seed, (split, count) in enumerate({"train": 12, "test": 5}.items()):
        images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels = [(7 * number + seed) % 100 for number in range(count)]
        rows = np.stack([np.concatenate([image[:, :, c].ravel() for c in range(3)]) for image in images])
        content = {"filenames": ["x.png"] * count, "fine_labels": labels, "coarse_labels": [0] * count, "data": rows}
        (folder / split).write_bytes(python2_pickle(content))
        made[split] = (images, labels)
    (folder / "meta").write_bytes(python2_pickle({"fine_label_names": FINE, "coarse_label_names": ["a", "b"]}))
    return made


def svhn_folder(folder: Path) -> dict[str, tuple[np.ndarray, list[int]]]:
    folder.mkdir(parents=True)
    made = {}
    for seed, (split, count) in enumerate({"train": 11, "test": 4}.items()):
        images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        written = [number % 10 + 1 for number in range(count)]  # 10 stands for the digit 0
        savemat(folder / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": np.array(written)[:, None]}, do_compression=True)
        made[split] = (images, [0 if label == 10 else label for label in written])
    return made


def tiny_imagenet_folder(folder: Path) -> dict[str, np.ndarray]:
    """Relative name -> pixels; one training image is grey, as some of the real ones are."""
    made: dict[str, np.ndarray] = {}
    names = [f"train/{wnid}/images/{wnid}_{number}.JPEG" for wnid in ("n02", "n01") for number in range(3)]
    names += [f"val/images/val_{number}.JPEG" for number in range(4)] + ["test/images/test_0.JPEG"]
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(random_image(seed, 64, 64))
        image = image.convert("L") if seed == 1 else image
        image.save(folder / name, format="JPEG")
        made[name] = np.asarray(Image.open(folder / name).convert("RGB"))
    for wnid in ("n01", "n02"):
        (folder / f"train/{wnid}/{wnid}_boxes.txt").write_text("n01_0.JPEG\t0\t0\t62\t63\n")
    (folder / "val/val_annotations.txt").write_text("".join(f"val_{i}.JPEG\tn0{1 + i % 2}\t0\t32\t44\t62\n" for i in range(4)))
    (folder / "wnids.txt").write_text("n01\nn02\nn03\n")
    return made


def prepared(name: str, source: Path, tmp_path: Path) -> Arrays:
    return load_arrays(prepare(DataConfig(name=name, path=str(source)), tmp_path / "data"))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_cifar100_is_read_with_its_fine_labels(form: str, tmp_path: Path) -> None:
    made = cifar100_folder(tmp_path / "cifar-100-python")
    source = tmp_path / "cifar-100-python"
    if form == "archive":
        source = pack(source, tmp_path / "cifar-100-python.tar.gz", prefix="cifar-100-python/")
    arrays = prepared("cifar100", source, tmp_path)
    assert (arrays.title, arrays.classes) == ("CIFAR-100", tuple(FINE))
    assert np.array_equal(arrays.train_images, made["train"][0]) and arrays.train_labels.tolist() == made["train"][1]
    assert np.array_equal(arrays.test_images, made["test"][0]) and arrays.test_labels.tolist() == made["test"][1]


def test_svhn_is_read_and_its_ten_is_the_digit_zero(tmp_path: Path) -> None:
    made = svhn_folder(tmp_path / "svhn")
    arrays = prepared("svhn", tmp_path / "svhn", tmp_path)
    assert (arrays.title, arrays.classes) == ("SVHN", tuple("0123456789"))
    assert np.array_equal(arrays.train_images, made["train"][0]) and arrays.train_labels.tolist() == made["train"][1]
    assert np.array_equal(arrays.test_images, made["test"][0]) and arrays.test_labels.tolist() == made["test"][1]


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_tiny_imagenet_takes_its_validation_images_by_the_annotations(form: str, tmp_path: Path) -> None:
    made, source = tiny_imagenet_folder(tmp_path / "tiny-imagenet-200"), tmp_path / "tiny-imagenet-200"
    if form == "archive":
        source = pack(source, tmp_path / "tiny-imagenet-200.zip", prefix="tiny-imagenet-200/", reverse=True)
    arrays = prepared("tiny_imagenet", source, tmp_path)
    assert (arrays.title, arrays.classes, arrays.test_labels.tolist()) == ("Tiny ImageNet", ("n01", "n02"), [0, 0, 1, 1])
    train = [f"train/{wnid}/images/{wnid}_{number}.JPEG" for wnid in ("n01", "n02") for number in range(3)]
    assert np.array_equal(arrays.train_images, np.stack([made[name] for name in train]))
    assert np.array_equal(arrays.test_images, np.stack([made[f"val/images/val_{number}.JPEG"] for number in (0, 2, 1, 3)]))


def test_statistics_are_those_of_the_training_pixels(tmp_path: Path) -> None:
    made = svhn_folder(tmp_path / "svhn")
    arrays = prepared("svhn", tmp_path / "svhn", tmp_path)
    pixels = made["train"][0].astype(np.float64) / 255
    assert arrays.mean == pytest.approx(pixels.mean((0, 1, 2))) and arrays.std == pytest.approx(pixels.std((0, 1, 2)))


@pytest.mark.parametrize(("make", "name"), [(cifar100_folder, "cifar100"), (svhn_folder, "svhn"), (tiny_imagenet_folder, "tiny_imagenet")])
def test_a_path_tells_which_data_set_it_is(make, name: str, tmp_path: Path) -> None:
    make(tmp_path / "source")
    assert config_for(str(tmp_path / "source"), None, tmp_path / "data", lambda *_: None).name == name


def broken(name: str, tmp_path: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepared(name, tmp_path / "source", tmp_path)
    return str(caught.value)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    cifar100_folder(tmp_path / "source")
    (tmp_path / "source/meta").unlink()
    assert "lacks meta. Unpack cifar-100-python.tar.gz again." in broken("cifar100", tmp_path)


def test_one_file_of_svhn_alone_is_refused_with_the_place_of_the_other(tmp_path: Path) -> None:
    svhn_folder(tmp_path / "source")
    (tmp_path / "source/test_32x32.mat").unlink()
    assert "lacks test_32x32.mat. Get it from http" in broken("svhn", tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 600])
def test_half_a_file_of_svhn_is_named(keep: int, tmp_path: Path) -> None:
    svhn_folder(tmp_path / "source")
    path = tmp_path / "source/train_32x32.mat"
    path.write_bytes(path.read_bytes()[:keep])
    assert "train_32x32.mat: not an SVHN file" in broken("svhn", tmp_path)


def test_a_matlab_file_of_something_else_is_named(tmp_path: Path) -> None:
    svhn_folder(tmp_path / "source")
    savemat(tmp_path / "source/test_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.zeros((3, 1))})
    assert "X is (32, 32, 3, 2) and y (3, 1), not (32, 32, 3, N) and (N, 1)" in broken("svhn", tmp_path)


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    svhn_folder(tmp_path / "source")
    savemat(tmp_path / "source/test_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[0], [1]])})
    assert "labels are not 1 to 10" in broken("svhn", tmp_path)


def test_an_image_of_tiny_imagenet_that_is_missing_is_named_with_its_line(tmp_path: Path) -> None:
    tiny_imagenet_folder(tmp_path / "source")
    (tmp_path / "source/val/images/val_2.JPEG").unlink()
    assert "val_annotations.txt:3: val/images/val_2.JPEG is not there" in broken("tiny_imagenet", tmp_path)


def test_a_validation_image_without_a_line_is_named(tmp_path: Path) -> None:
    tiny_imagenet_folder(tmp_path / "source")
    annotations = tmp_path / "source/val/val_annotations.txt"
    annotations.write_text("".join(annotations.read_text().splitlines(keepends=True)[:3]))
    assert "val/images/val_3.JPEG has no line" in broken("tiny_imagenet", tmp_path)


def test_half_an_archive_is_named(tmp_path: Path) -> None:
    cifar100_folder(tmp_path / "unpacked")
    archive = pack(tmp_path / "unpacked", tmp_path / "source.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-2000])
    archive.rename(tmp_path / "source")
    assert str(tmp_path / "source") in broken("cifar100", tmp_path)


def test_the_files_of_another_data_set_are_told_by_name(tmp_path: Path) -> None:
    cifar100_folder(tmp_path / "source")
    assert "holds CIFAR-100, and data.name is cifar10. Say data.name=cifar100." in broken("cifar10", tmp_path)


def test_a_folder_of_images_is_no_published_set(tmp_path: Path) -> None:
    (tmp_path / "source/train/a").mkdir(parents=True)
    Image.fromarray(random_image(0)).save(tmp_path / "source/train/a/0.png")
    assert "holds no official files of SVHN" in broken("svhn", tmp_path)


def test_a_hostile_batch_of_cifar100_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    cifar100_folder(tmp_path / "source")
    (tmp_path / "source/train").write_bytes(pickle.dumps(Evil()))
    assert "Nothing in it was run" in broken("cifar100", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def mirror(tmp_path: Path):
    """A folder that is served on loopback; its address."""
    (tmp_path / "served").mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_several_files_are_downloaded_checked_and_read(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = svhn_folder(tmp_path / "made")
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / "made").iterdir()}
    for path in (tmp_path / "made").iterdir():
        path.rename(tmp_path / "served" / path.name)
    files = tuple(published.PublishedFile(name=name, md5=sums[name]) for name in ("train_32x32.mat", "test_32x32.mat"))
    monkeypatch.setitem(published.PUBLISHED, "svhn", replace(published.PUBLISHED["svhn"], files=files))  # type: ignore[arg-type]
    monkeypatch.setenv("HPC_SVHN_URL", mirror)
    arrays = load_arrays(prepare(DataConfig(name="svhn"), tmp_path / "data"))
    assert np.array_equal(arrays.test_images, made["test"][0])


def test_without_a_network_the_message_has_the_command_and_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPC_TINY_IMAGENET_URL", "http://127.0.0.1:9/none")
    monkeypatch.setattr("seresnet.download.TRIES", 1)
    assert main(["tiny_imagenet", "--data-dir", str(tmp_path / "data")]) == 2
    said = capsys.readouterr().err
    assert "curl -fL -C - -o tiny-imagenet-200.zip http://127.0.0.1:9/none/tiny-imagenet-200.zip" in said
    assert f"copy the file to {tmp_path / 'data' / 'tiny-imagenet-200.zip'}" in said
