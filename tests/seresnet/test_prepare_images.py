"""Images in folders and archives become the arrays that their names say, or an error that names the file and what to change."""

import io
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from prepare_sources import image_folder, pack, random_image

from seresnet import archives
from seresnet.archives import open_tree
from seresnet.data_progress import silent
from seresnet.errors import DataError
from seresnet.images import plan_layout, read_images


def read(path, workers=2):
    tree = open_tree(path)
    return read_images(tree, plan_layout(path, tree.names(silent)), workers=workers, report=silent)


def expected(made, split):
    """Pixels and labels by hand: classes in order of name, in each the files in order of name."""
    names = sorted(name for name in made if name.split("/")[0] == split)
    return np.stack([made[name] for name in names]), [["cat", "dog"].index(name.split("/")[1]) for name in names]


def assert_holds(found, made, test="test"):
    assert found.classes == ("cat", "dog")
    for split, images, labels in (("train", found.train_images, found.train_labels), (test, found.test_images, found.test_labels)):
        pixels, numbers = expected(made, split)
        assert np.array_equal(images, pixels), split
        assert labels.tolist() == numbers and labels.dtype == np.int64, split


def test_folder_is_read_in_order_of_class_and_name(tmp_path):
    made = image_folder(tmp_path, count=12)
    assert_holds(read(tmp_path), made)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
@pytest.mark.parametrize("prefix", ["", "./", "set/deeper/"])
def test_archive_gives_what_the_folder_gives_in_whatever_order_it_is_packed(tmp_path, kind, prefix):
    made = image_folder(tmp_path / "images", count=3)
    assert_holds(read(pack(tmp_path / "images", tmp_path / f"a.{kind}", prefix=prefix, reverse=True)), made)


def test_an_archive_is_told_by_its_bytes_and_not_by_its_name(tmp_path):
    made = image_folder(tmp_path / "images")
    assert_holds(read(pack(tmp_path / "images", tmp_path / "a.tar.xz").rename(tmp_path / "b.zip")), made)


def test_number_of_workers_changes_nothing(tmp_path):
    image_folder(tmp_path, count=300)
    one, many = read(tmp_path, workers=1), read(tmp_path, workers=7)
    assert np.array_equal(one.train_images, many.train_images) and np.array_equal(one.test_images, many.test_images)


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_val_counts_as_test_where_there_is_no_test(tmp_path, name):
    made = image_folder(tmp_path, splits=("train", name))
    assert_holds(read(tmp_path), made, test=name)


def test_test_goes_before_val(tmp_path):
    made = image_folder(tmp_path, splits=("train", "test", "val"))
    assert_holds(read(tmp_path), made)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "JPEG", "png", "ppm", "tif", "tga", "webp"])
def test_formats_are_read_as_pillow_reads_them(tmp_path, suffix):
    image_folder(tmp_path, count=1)
    path = tmp_path / "train" / "cat" / f"00.{suffix}"
    Image.fromarray(random_image(99)).save(path)
    with Image.open(path) as image:
        assert np.array_equal(read(tmp_path).train_images[1], np.asarray(image.convert("RGB")))  # 0.png, 00.jpg


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_eight_bit_mode_becomes_rgb(tmp_path, mode):
    image_folder(tmp_path, count=1)
    image = Image.fromarray(random_image(5)).convert(mode)
    image.save(tmp_path / "train" / "cat" / "0.tif")
    (tmp_path / "train" / "cat" / "0.png").unlink()
    assert np.array_equal(read(tmp_path).train_images[0], np.asarray(image.convert("RGB")))


def test_deep_pixels_are_refused_instead_of_clipped(tmp_path):
    image_folder(tmp_path, count=1)
    Image.fromarray(np.full((6, 8), 30000, dtype=np.uint16)).save(tmp_path / "test" / "dog" / "9.png")
    with pytest.raises(DataError, match=r"test/dog/9\.png has pixels of more than 8 bits.*Convert"):
        read(tmp_path)


def test_other_files_and_hidden_ones_are_left_out(tmp_path):
    made = image_folder(tmp_path)
    for name in ("README.md", "train/list.csv", "train/cat/notes.txt", "train/cat/._0.png", "train/.cache/x/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("no image")
    assert_holds(read(tmp_path), made)
    assert_holds(read(pack(tmp_path, tmp_path.parent / "hidden.tar")), made)


def test_linked_folders_and_files_of_a_folder_count_and_loops_end(tmp_path):
    made = image_folder(tmp_path / "real")
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        (tmp_path / "set" / split).symlink_to(tmp_path / "real" / split)
    (tmp_path / "real" / "train" / "cat" / "loop").symlink_to(tmp_path / "set")
    assert_holds(read(tmp_path / "set"), made)


# What is wrong with a source, and what the message must say.


def test_missing_path(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder.*data\.path"):
        open_tree(tmp_path / "nowhere")


def test_file_that_is_no_archive(tmp_path):
    (tmp_path / "page.tar.gz").write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"page\.tar\.gz: neither a folder nor a tar.*b'<html>no'"):
        open_tree(tmp_path / "page.tar.gz")


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"holds no files\. Expected train/CLASS/IMAGE"):
        read(tmp_path)


def test_images_in_other_places(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.fromarray(random_image(0)).save(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match=r"holds 1 files, such as 'cat/1\.png', but no image in such a place. Expected train/CLASS"):
        read(tmp_path)


@pytest.mark.parametrize(("present", "absent"), [("train", "test/ or val/"), ("test", "train/"), ("val", "train/")])
def test_one_split_alone(tmp_path, present, absent):
    image_folder(tmp_path, splits=(present,))
    with pytest.raises(DataError, match=f"has {present}/ but no {absent}"):
        read(tmp_path)


def test_classes_that_differ_between_splits(tmp_path):
    image_folder(tmp_path, splits=("train",), classes=("cat", "cow", "dog"))
    image_folder(tmp_path, splits=("test",), classes=("cat", "dog", "eel"))
    with pytest.raises(DataError, match="train/ and test/ do not have the same classes: 'cow', 'eel'"):
        read(tmp_path)


def test_image_of_another_size_is_named_with_both_sizes(tmp_path):
    image_folder(tmp_path)
    Image.fromarray(random_image(0, width=9)).save(tmp_path / "test" / "cat" / "1.png")
    with pytest.raises(DataError, match=r"test/cat/1\.png is 9x6 pixels, train/cat/0\.png is 8x6. Resize"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_unreadable_image_is_named(tmp_path, content):
    image_folder(tmp_path)
    bad = tmp_path / "train" / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:-30] if content is None else content)
    with pytest.raises(DataError, match=r"train/dog/2\.png cannot be read as an image: .*Replace or remove it") as caught:
        read(tmp_path)
    assert "BytesIO" not in str(caught.value)
    with pytest.raises(DataError, match=r"a\.zip: train/dog/2\.png cannot be read"):
        read(pack(tmp_path, tmp_path.parent / "a.zip"))


def test_first_fault_is_the_same_with_any_number_of_workers(tmp_path):
    image_folder(tmp_path, count=200)
    for name in ("train/cat/150.png", "train/dog/7.png", "test/cat/3.png"):
        (tmp_path / name).write_bytes(b"x")
    for workers in (1, 5):
        with pytest.raises(DataError, match=r"train/cat/150\.png"):
            read(tmp_path, workers=workers)


def test_postscript_called_png_never_reaches_ghostscript(tmp_path):
    image_folder(tmp_path)
    Image.fromarray(random_image(0)).save(tmp_path / "train" / "cat" / "0.eps")
    (tmp_path / "train" / "cat" / "0.eps").rename(tmp_path / "train" / "cat" / "0.png")
    with Image.open(tmp_path / "train" / "cat" / "0.png") as image:
        assert image.format == "EPS", "the test's file is not PostScript"
    with pytest.raises(DataError, match=r"train/cat/0\.png cannot be read as an image: is in no image format that is read here"):
        read(tmp_path)


# Archives that are cut, damaged, or made to do harm.


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_every_cut_of_an_archive_is_an_error_before_decoding(tmp_path, kind):
    image_folder(tmp_path / "images", count=2)
    archive = pack(tmp_path / "images", tmp_path / f"a.{kind}")
    whole = archive.read_bytes()
    # A plain tar's content ends at the first zero block; what follows is padding.
    end = len(whole) if kind != "tar" else len(whole.rstrip(b"\0")) + 512
    for length in [*range(1, end, 97), *range(512, end, 512), end - 512]:
        archive.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\."):
            open_tree(archive).names(silent)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
def test_flipped_bits_in_a_compressed_archive_are_an_error_or_change_no_pixel(tmp_path, kind):
    made = image_folder(tmp_path / "images", count=2)
    archive = pack(tmp_path / "images", tmp_path / f"a.{kind}")
    whole = archive.read_bytes()
    caught = 0
    # A zip's directory, at its end, has no checksum: a flipped bit in a name there cannot be told from another name.
    end = whole.find(b"PK\x01\x02") if kind == "zip" else len(whole)
    for position in range(0, end, 53):
        archive.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        try:
            assert_holds(read(archive), made)
        except DataError:
            caught += 1
    assert caught > 10, "no damage was noticed"


def add(archive, name, content=b"", **facts):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


def test_members_that_point_outside_links_and_devices_are_left_out(tmp_path):
    made = image_folder(tmp_path / "images")
    png = (tmp_path / "images" / "train" / "cat" / "0.png").read_bytes()
    inside = tmp_path / "in"
    inside.mkdir()
    archive = pack(tmp_path / "images", inside / "a.tar")
    with tarfile.open(archive, "a") as tar:
        add(tar, "../train/cat/evil.png", png)
        add(tar, str(tmp_path / "train" / "cat" / "evil.png"), png)
        add(tar, "train/../train/cat/evil.png", png)
        add(tar, "train/cat/link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "train/cat/hard.png", type=tarfile.LNKTYPE, linkname="train/cat/0.png")
        add(tar, "train/cat/fifo.png", type=tarfile.FIFOTYPE)
    before = sorted(tmp_path.rglob("*"))
    assert_holds(read(archive), made)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_in_a_zip_are_left_out(tmp_path):
    made = image_folder(tmp_path / "images")
    archive = pack(tmp_path / "images", tmp_path / "a.zip")
    with zipfile.ZipFile(archive, "a") as target:
        info = zipfile.ZipInfo("train/cat/link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(info, "/etc/passwd")
        target.writestr("../train/cat/evil.png", "x")
    assert_holds(read(archive), made)


def test_a_name_that_stands_twice_is_refused(tmp_path):
    image_folder(tmp_path / "images")
    archive = pack(tmp_path / "images", tmp_path / "a.tar")
    with tarfile.open(archive, "a") as tar:
        tar.add(tmp_path / "images" / "train" / "dog" / "1.png", "train/cat/0.png")
    with pytest.raises(DataError, match=r"'train/cat/0\.png' stands in it twice"):
        read(archive)


def test_two_data_sets_in_one_archive_are_refused(tmp_path):
    image_folder(tmp_path / "one")
    image_folder(tmp_path / "two")
    with pytest.raises(DataError, match="holds more than one data set: 'one', 'two'"):
        read(tmp_path)


def test_encrypted_zip_says_so(tmp_path):
    image_folder(tmp_path / "images")
    archive = pack(tmp_path / "images", tmp_path / "a.zip")
    content = bytearray(archive.read_bytes())
    for magic, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = -1
        while (at := content.find(magic, at + 1)) >= 0:
            content[at + offset] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip: the archive cannot be read: .*(encrypted|password)"):
        read(archive)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_archive_that_unpacks_to_too_much_is_refused_from_its_headers(tmp_path, monkeypatch, kind):
    image_folder(tmp_path / "images")
    (tmp_path / "images" / "zeros.bin").write_bytes(bytes(3_000_000))
    archive = pack(tmp_path / "images", tmp_path / f"a.{kind}")
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 2_000_000)
    with pytest.raises(DataError, match="not a data set that fits into memory"):
        read(archive)


@pytest.mark.parametrize("kind", ["tar.gz", "zip", None])
def test_one_file_that_is_too_large_is_refused_and_named(tmp_path, monkeypatch, kind):
    image_folder(tmp_path / "images")
    (tmp_path / "images" / "train" / "cat" / "1.png").write_bytes(bytes(300_000))
    source = pack(tmp_path / "images", tmp_path / f"a.{kind}") if kind else tmp_path / "images"
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 200_000)
    with pytest.raises(DataError, match=r"1\.png has 300000 bytes"):
        read(source)


def test_tar_header_that_asks_for_all_memory_is_refused(tmp_path):
    # A PAX header of 8 GiB: tarfile reads it in one piece.
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(DataError, match="a header asks for 8589934592 bytes"):
        open_tree(tmp_path / "a.tar").names(silent)


def test_image_bomb_is_refused_before_it_is_decoded(tmp_path):
    image_folder(tmp_path)
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    parts = b"\x00\x00\x00\x0d" + header + struct.pack(">I", zlib.crc32(header)) + b"\x00\x00\x00\x00IDAT"
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(DataError, match=r"train/cat/0\.png cannot be read as an image: .*(pixels|bomb)"):
        read(tmp_path)


def test_a_zip_member_with_more_bytes_than_the_archive_says_is_refused_before_it_unfolds(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for split in ("train", "test"):
            archive.writestr(f"{split}/cat/1.png", bytes(100_000_000))
    whole = path.read_bytes()
    # The size stands in each local header and in each directory entry.
    path.write_bytes(whole.replace((100_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"bomb\.zip"):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000_000, f"{peak:,} bytes were unfolded"
