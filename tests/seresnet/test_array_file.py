"""An array file gives back exactly what was written, or an error: no flipped bit, cut or foreign header gets through."""

import hashlib
import json

import numpy as np
import pytest

from seresnet.array_file import LabelledImages, channel_statistics, load_arrays, read_header, write_array_file
from seresnet.errors import DataError


def small_data(seed=0, title="Small"):
    draw = np.random.default_rng(seed)
    return LabelledImages(
        title=title,
        classes=("cat", "köter"),
        train_images=draw.integers(0, 256, (5, 2, 3, 3), dtype=np.uint8),
        train_labels=np.array([0, 1, 1, 0, 1], dtype=np.int64),
        test_images=draw.integers(0, 256, (2, 2, 3, 3), dtype=np.uint8),
        test_labels=np.array([1, 0], dtype=np.int64),
    )


@pytest.fixture
def small_file(tmp_path):
    path = tmp_path / "small.arrays"
    write_array_file(path, name="images", source="/somewhere", data=small_data())
    return path


def test_what_is_loaded_is_what_was_written(small_file):
    found, written = load_arrays(small_file), small_data()
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        assert np.array_equal(getattr(found, key), getattr(written, key)), key
        assert getattr(found, key).dtype == getattr(written, key).dtype, key
    assert (found.name, found.title, found.classes) == ("images", "Small", ("cat", "köter"))
    assert read_header(small_file).source == "/somewhere"


def test_digest_is_sha256_over_sorted_names_types_shapes_and_bytes(small_file):
    found = load_arrays(small_file)
    values = {
        "classes": ("|u1", [len(rb'["cat","k\u00f6ter"]')], rb'["cat","k\u00f6ter"]'),
        "mean": ("<f8", [3], found.mean.tobytes()),
        "std": ("<f8", [3], found.std.tobytes()),
        "test_images": ("|u1", [2, 2, 3, 3], small_data().test_images.tobytes()),
        "test_labels": ("<i8", [2], bytes([1] + [0] * 15)),
        "train_images": ("|u1", [5, 2, 3, 3], small_data().train_images.tobytes()),
        "train_labels": ("<i8", [5], np.array([0, 1, 1, 0, 1], "<i8").tobytes()),
    }
    by_hand = b"".join(json.dumps([k, t, s], separators=(",", ":")).encode() + b"\0" + raw for k, (t, s, raw) in values.items())
    assert found.digest == hashlib.sha256(by_hand).hexdigest()


def test_every_flipped_byte_is_caught(small_file):
    whole = small_file.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        small_file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"small\.arrays"):
            load_arrays(small_file)


def test_every_cut_and_every_surplus_byte_is_caught(small_file):
    whole = small_file.read_bytes()
    for content in [whole[:length] for length in range(len(whole))] + [whole + b"\0"]:
        small_file.write_bytes(content)
        with pytest.raises(DataError, match="Delete it"):
            load_arrays(small_file)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [5, 2, 3, -3]},
        {"shape": [5, 2, 3, 10**15]},
        {"shape": [5, 2, 3, 3.0]},
        {"dtype": "|O"},
        {"name": "other"},
        {},
    ],
)
def test_header_with_a_right_checksum_and_wrong_content_is_refused(small_file, change):
    first, rest = small_file.read_bytes().split(b"\n", 1)
    length = int(first.split()[2])
    header = json.loads(rest[:length])
    header["entries"][5] = header["entries"][5] | change if change else "no mapping"
    text = json.dumps(header).encode()
    small_file.write_bytes(f"seresnet-arrays 1 {len(text):08d} {hashlib.sha256(text).hexdigest()}\n".encode() + text + rest[length:])
    with pytest.raises(DataError, match="not a whole array file"):
        load_arrays(small_file)


def test_labels_that_index_no_class_are_refused(tmp_path):
    data = small_data()
    data.train_labels[2] = 2
    write_array_file(tmp_path / "x", name="images", source="", data=data)
    with pytest.raises(DataError, match="do not index 2 classes"):
        load_arrays(tmp_path / "x")


def test_digest_follows_the_content_and_not_title_or_source(tmp_path):
    one = write_array_file(tmp_path / "a", name="images", source="/x", data=small_data(title="A"))
    same = write_array_file(tmp_path / "b", name="cifar10", source="/y", data=small_data(title="B"))
    other = write_array_file(tmp_path / "c", name="images", source="/x", data=small_data(seed=1))
    assert one == same != other


def test_arrays_of_another_memory_layout_or_byte_order_give_the_same_file(tmp_path):
    data = small_data()
    turned = LabelledImages(
        title="Small",
        classes=data.classes,
        train_images=np.asfortranarray(data.train_images),
        train_labels=data.train_labels.astype(">i8"),
        test_images=data.test_images[::-1][::-1],
        test_labels=data.test_labels,
    )
    for name, value in (("a", data), ("b", turned)):
        write_array_file(tmp_path / name, name="images", source="", data=value)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_digest_than_expected_names_both(small_file):
    digest = load_arrays(small_file).digest
    assert load_arrays(small_file, expect_digest=digest).digest == digest
    with pytest.raises(DataError, match=f"{digest[:16]}, but 0000000000000000 is expected"):
        load_arrays(small_file, expect_digest="0" * 64)


def test_missing_file_says_how_to_build_it(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.arrays: no such array file.*seresnet\.prepare"):
        load_arrays(tmp_path / "nothing.arrays")


def test_existing_file_is_never_written_over(small_file):
    with pytest.raises(FileExistsError):
        write_array_file(small_file, name="images", source="", data=small_data())


def test_statistics_agree_with_numpy_over_more_than_one_block():
    images = np.random.default_rng(3).integers(0, 256, (2500, 3, 2, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    assert np.allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-13, atol=0), mean
    assert np.allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-12, atol=0), std


def test_a_constant_channel_has_standard_deviation_one():
    images = np.random.default_rng(4).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    images[..., 1] = 51
    mean, std = channel_statistics(images)
    assert mean[1] == 0.2 and std[1] == 1.0 and 0 < std[0] < 1
