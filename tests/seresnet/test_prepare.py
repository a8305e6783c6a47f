"""A source becomes one verified array file: found again, built again when purged or damaged, built once by many processes."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from hashlib import md5
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from prepare_sources import BATCHES, image_folder, official_folder, pack, python2_pickle

from seresnet import cifar10, digits, download, prepare
from seresnet.config import DataConfig
from seresnet.errors import DataError
from seresnet.prepare import find_prepared, load_arrays
from seresnet.published import PUBLISHED, PublishedFile

DIGITS = DataConfig(name="digits")


def images_at(path):
    return DataConfig(name="images", path=str(path))


def build(config, folder):
    return load_arrays(prepare.prepare(config, folder, workers=2))


# Digits


def test_digits_are_scikit_learns_images_in_blocks_of_4x4(tmp_path):
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    found = build(DIGITS, tmp_path)
    count = np.bincount(bunch.target)
    assert found.classes == tuple("0123456789")
    assert np.bincount(found.test_labels).tolist() == [-(-int(n) // 5) for n in count]  # stratified: a fifth of each, rounded up
    seen, kept = {}, {"train": [], "test": []}
    for image, label in zip(bunch.images, bunch.target, strict=True):
        split = "train" if seen.setdefault(int(label), 0) % 5 else "test"
        seen[int(label)] += 1
        grey = np.floor(image * 255 / 16 + 0.5)
        kept[split].append((np.kron(grey, np.ones((4, 4))), label))
    for split, images, labels in (("train", found.train_images, found.train_labels), ("test", found.test_images, found.test_labels)):
        assert labels.tolist() == [label for _, label in kept[split]], split
        for channel in range(3):
            assert np.array_equal(images[..., channel], np.stack([image for image, _ in kept[split]])), split


def test_digits_have_the_same_digest_everywhere(tmp_path):
    # Runs that were started elsewhere compare against it: a change here is a change of results.
    assert build(DIGITS, tmp_path).digest == "0347d590cce887efb40c4046fbd5a7974e712719237b87ee07b03e9d3252fd80"


def test_digits_without_scikit_learn_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"not installed here\. Say the same with the Python of the training environment"):
        build(DIGITS, tmp_path)


def test_digits_by_import_are_the_digits_by_file():
    pytest.importorskip("sklearn")
    assert np.array_equal(digits._table(), digits._table_by_import())


# Official CIFAR-10


def assert_official(found, made):
    assert found.title == "CIFAR-10" and found.classes == cifar10.CLASSES
    assert np.array_equal(found.train_images, np.concatenate([made[batch][0] for batch in BATCHES[:5]]))
    assert found.train_labels.tolist() == [label for batch in BATCHES[:5] for label in made[batch][1]]
    assert np.array_equal(found.test_images, made["test_batch"][0])
    assert found.test_labels.tolist() == made["test_batch"][1]


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_official_files_in_a_folder(tmp_path, inner):
    made = official_folder(tmp_path / "given" / inner)
    assert_official(build(DataConfig(name="cifar10", path=str(tmp_path / "given")), tmp_path / "d"), made)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_official_files_in_an_archive(tmp_path, kind):
    made = official_folder(tmp_path / "given")
    archive = pack(tmp_path / "given", tmp_path / f"a.{kind}", prefix="cifar-10-batches-py/", reverse=True)
    assert_official(build(DataConfig(name="cifar10", path=str(archive)), tmp_path / "d"), made)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A web server with the archive in the official layout, whose MD5 stands for the published one; gives its folder and content."""
    made = official_folder(tmp_path / "given")
    (tmp_path / "www").mkdir()
    archive = pack(tmp_path / "given", tmp_path / "www" / "cifar-10-python.tar.gz", prefix="cifar-10-batches-py/")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    file = PublishedFile(name=cifar10.ARCHIVE, md5=md5(archive.read_bytes()).hexdigest(), size=archive.stat().st_size)
    monkeypatch.setitem(PUBLISHED, "cifar10", replace(PUBLISHED["cifar10"], files=(file,)))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HPC_CIFAR10_URL", f"http://127.0.0.1:{server.server_address[1]}/")
        yield tmp_path / "www", made
        server.shutdown()
        thread.join()


def test_official_archive_is_downloaded_where_no_path_is_given(tmp_path, published):
    assert_official(build(DataConfig(), tmp_path / "d"), published[1])


def test_purged_array_file_is_built_from_the_kept_download(tmp_path, published):
    first = prepare.prepare(DataConfig(), tmp_path / "d")
    first.unlink()
    (published[0] / cifar10.ARCHIVE).unlink()
    assert find_prepared(DataConfig(), tmp_path / "d") is None
    assert_official(build(DataConfig(), tmp_path / "d"), published[1])


def test_archive_given_once_serves_runs_that_name_no_path(tmp_path, published):
    given = shutil.move(published[0] / cifar10.ARCHIVE, tmp_path / "mine.tgz")
    made = prepare.prepare(DataConfig(path=str(given)), tmp_path / "d")
    assert find_prepared(DataConfig(), tmp_path / "d") == made


def test_archive_put_into_data_dir_with_another_md5_is_refused(tmp_path, published):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / cifar10.ARCHIVE).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: MD5 is .*Delete it"):
        build(DataConfig(), tmp_path / "d")


def test_no_network_gives_the_command_and_the_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HPC_CIFAR10_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(DataError) as caught:
        build(DataConfig(), tmp_path)
    assert "curl -fL -C - -o cifar-10-python.tar.gz http://127.0.0.1:9/cifar-10-python.tar.gz" in str(caught.value)
    assert f"copy the file to {tmp_path}/cifar-10-python.tar.gz" in str(caught.value)


def test_published_address_and_checksum_are_torchvisions():
    spec = find_spec("torchvision") or pytest.skip("torchvision is not installed")
    text = (Path(spec.origin).parent / "datasets" / "cifar.py").read_text()  # read: importing it takes 5 s
    assert f'url = "{cifar10.BASE_URL}/{cifar10.ARCHIVE}"' in text
    assert f'tgz_md5 = "{cifar10.ARCHIVE_MD5}"' in text


def test_missing_batch_is_named(tmp_path):
    official_folder(tmp_path / "given")
    (tmp_path / "given" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3\. Unpack"):
        build(DataConfig(path=str(tmp_path / "given")), tmp_path / "d")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, r"data is uint8 \(2, 3071\), not uint8 \(N, 3072\)"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "labels are not 2 numbers from 0 to 9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, "labels are not 2 numbers from 0 to 9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [-1, 1]}, "labels are not 2 numbers from 0 to 9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": ["cat", "dog"]}, "labels are not 2 numbers from 0 to 9"),
        ({"data": [1], "labels": [0]}, "data is list"),
        ({"labels": [0]}, "has no 'data'"),
    ],
)
def test_batch_of_another_form_is_refused_and_named(tmp_path, content, message):
    official_folder(tmp_path / "given")
    (tmp_path / "given" / "data_batch_2").write_bytes(python2_pickle(content))
    with pytest.raises(DataError, match=f"data_batch_2: {message}"):
        build(DataConfig(path=str(tmp_path / "given")), tmp_path / "d")


def test_images_called_cifar10_must_have_its_classes(tmp_path):
    image_folder(tmp_path / "cats")
    with pytest.raises(DataError, match=r"its classes are cat, dog, not those of CIFAR-10. Use data\.name=images"):
        build(DataConfig(path=str(tmp_path / "cats")), tmp_path / "d")
    image_folder(tmp_path / "cifar", classes=cifar10.CLASSES, count=1)
    assert build(DataConfig(path=str(tmp_path / "cifar")), tmp_path / "d").title == "CIFAR-10 (PNG)"


# Finding, building again, building once


def test_prepared_source_is_found_and_not_built_again(tmp_path):
    image_folder(tmp_path / "i")
    assert find_prepared(images_at(tmp_path / "i"), tmp_path / "d") is None
    made = prepare.prepare(images_at(tmp_path / "i"), tmp_path / "d")
    before = made.stat()
    assert prepare.prepare(images_at(tmp_path / "i"), tmp_path / "d") == made == find_prepared(images_at(tmp_path / "i"), tmp_path / "d")
    assert made.stat() == before
    assert [path.name for path in (tmp_path / "d").iterdir()] == [made.name]


def test_other_content_under_the_same_name_is_another_file(tmp_path):
    image_folder(tmp_path / "i")
    archive = pack(tmp_path / "i", tmp_path / "a.tar.gz")
    first = prepare.prepare(images_at(archive), tmp_path / "d")
    image_folder(tmp_path / "i", count=4)
    second = prepare.prepare(images_at(pack(tmp_path / "i", archive)), tmp_path / "d")
    assert first != second and load_arrays(first).digest != load_arrays(second).digest


def test_image_added_to_a_folder_makes_another_file(tmp_path):
    image_folder(tmp_path / "i")
    first = prepare.prepare(images_at(tmp_path / "i"), tmp_path / "d")
    shutil.copy(tmp_path / "i" / "train" / "cat" / "0.png", tmp_path / "i" / "train" / "cat" / "9.png")
    os.utime(tmp_path / "i" / "train" / "cat", (time.time() + 5,) * 2)  # the test runs within a second
    assert prepare.prepare(images_at(tmp_path / "i"), tmp_path / "d") != first


def test_copied_archive_and_moved_folder_are_the_same_file(tmp_path):
    image_folder(tmp_path / "i")
    archive = pack(tmp_path / "i", tmp_path / "a.tar.xz")
    (tmp_path / "elsewhere").mkdir()
    for path in (archive, tmp_path / "i"):
        first = prepare.prepare(images_at(path), tmp_path / "d")
        assert find_prepared(images_at(shutil.move(path, tmp_path / "elsewhere" / path.name)), tmp_path / "d") == first


def test_source_that_is_gone_is_no_obstacle_while_the_array_file_is_there(tmp_path):
    image_folder(tmp_path / "i")
    made = prepare.prepare(images_at(tmp_path / "i"), tmp_path / "d")
    shutil.rmtree(tmp_path / "i")
    assert find_prepared(images_at(tmp_path / "i"), tmp_path / "d") == prepare.prepare(images_at(tmp_path / "i"), tmp_path / "d") == made
    with pytest.raises(DataError, match=r"data\.path: .*other does not exist"):
        prepare.prepare(images_at(tmp_path / "other"), tmp_path / "d")


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_array_file_is_set_aside_and_built_again(tmp_path, damage):
    image_folder(tmp_path / "i")
    made = prepare.prepare(images_at(tmp_path / "i"), tmp_path / "d")
    whole = made.read_bytes()
    bad = {"flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "cut": whole[:-9], "empty": b""}[damage]
    made.write_bytes(bad)
    assert prepare.prepare(images_at(tmp_path / "i"), tmp_path / "d") == made
    assert made.read_bytes() == whole and made.with_name(made.name + ".bad").read_bytes() == bad


@pytest.mark.parametrize("count", [1, 5])
def test_digest_does_not_depend_on_workers_or_packing(tmp_path, count):
    image_folder(tmp_path / "i", count=40)
    digests = {
        load_arrays(prepare.prepare(images_at(source), tmp_path / f"d{i}", workers=count)).digest
        for i, source in enumerate([tmp_path / "i", *(pack(tmp_path / "i", tmp_path / f"a.{k}", reverse=True) for k in ("tar", "zip"))])
    }
    one_worker = load_arrays(prepare.prepare(images_at(tmp_path / "i"), tmp_path / "d", workers=1)).digest
    assert digests == {one_worker}


def test_build_that_fails_leaves_nothing_behind(tmp_path):
    image_folder(tmp_path / "i")
    (tmp_path / "i" / "test" / "dog" / "2.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"test/dog/2\.png"):
        prepare.prepare(images_at(tmp_path / "i"), tmp_path / "d")
    assert not list((tmp_path / "d").iterdir())


def command(*arguments):
    return [sys.executable, "-m", "seresnet.prepare", *map(str, arguments)]


def test_two_jobs_at_once_build_one_file(tmp_path):
    image_folder(tmp_path / "i", count=150)
    archive = pack(tmp_path / "i", tmp_path / "a.tar.xz")
    line = command(archive, "--name", "images", "--data-dir", tmp_path / "d")
    jobs = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], texts
    assert sum("prepared data=images" in errors for _, errors in texts) == 1, texts
    assert len({out.split("digest")[1].split()[0] for out, _ in texts}) == 1
    assert len(list((tmp_path / "d").iterdir())) == 1


def test_killed_build_is_built_by_the_next(tmp_path):
    image_folder(tmp_path / "i", count=400)
    with subprocess.Popen(command(tmp_path / "i", "--name", "images", "--data-dir", tmp_path / "d"), stderr=subprocess.DEVNULL) as job:
        while not list(tmp_path.glob("d/.building-*")):
            assert job.poll() is None, "the build ended before it could be killed"
            time.sleep(0.005)
        job.kill()
    assert not list(tmp_path.glob("d/*.arrays"))
    assert len(build(images_at(tmp_path / "i"), tmp_path / "d").train_images) == 800


# The real thing


def real_archive():
    beside = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"
    path = Path(os.environ.get("HPC_CIFAR10_JPEG") or beside)
    return path if path.exists() else pytest.skip("set HPC_CIFAR10_JPEG to cifar10-jpeg.tar.xz to run this")


@pytest.mark.slow
def test_real_cifar10_as_jpeg(tmp_path):
    found = build(DataConfig(name="cifar10", path=str(real_archive())), tmp_path)
    assert found.title == "CIFAR-10 (JPEG)" and found.classes == cifar10.CLASSES
    assert np.bincount(found.train_labels).tolist() == [5000] * 10 and np.bincount(found.test_labels).tolist() == [1000] * 10
    assert found.train_images.shape == (50_000, 32, 32, 3) and found.test_images.shape == (10_000, 32, 32, 3)
    assert np.allclose(found.mean, (0.4914, 0.4822, 0.4465), atol=0.001), found.mean
    assert np.allclose(found.std, (0.2470, 0.2435, 0.2616), atol=0.003), found.std
    scaled = found.train_images.reshape(-1, 3)[::7] / 255
    assert np.allclose(found.mean, scaled.mean(axis=0), atol=0.001) and np.allclose(found.std, scaled.std(axis=0), atol=0.001)


def test_labels_that_unfold_without_end_are_refused_at_once(tmp_path):
    from seresnet.cifar10 import read_batch

    nested = [0]
    for _ in range(200):
        nested = [nested] * 2  # shared: small in a pickle, 2^200 numbers once unfolded
    with pytest.raises(DataError, match="labels are not 2 numbers from 0 to 9"):
        read_batch("data_batch_1", {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": nested}, 10, "labels")
