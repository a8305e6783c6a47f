"""The hardest images: which, what their captions say against hand-made probabilities, and that no caption reaches into the next image."""

import io

import numpy as np
from PIL import Image

from seresnet.array_file import Arrays
from seresnet.contact_sheet import caption, contact_sheet, hard_images
from seresnet.robustness import TestSet


def arrays(classes: tuple[str, ...] = ("cat", "dog", "żaba\n|x")) -> Arrays:
    """Twelve black images of 32x32."""
    images, labels = np.zeros((12, 32, 32, 3), np.uint8), np.arange(12) % len(classes)
    return Arrays(
        title="pets", name="images", digest="0" * 64, classes=classes, mean=np.zeros(3), std=np.ones(3),
        train_images=images, train_labels=labels, test_images=images, test_labels=labels,
    )  # fmt: skip


def chosen(data: Arrays, *indices: int) -> TestSet:
    where = np.array(indices)
    return TestSet(images=data.test_images[where], labels=data.test_labels[where], indices=where)


def pixels(sheet: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))


def test_captions_say_place_class_and_what_the_image_was_taken_for() -> None:
    probabilities = np.array([[0.9, 0.06, 0.04], [0.75, 0.05, 0.2], [0.1, 0.4, 0.5]])
    found = hard_images(probabilities, chosen(arrays(), 3, 7, 8), arrays(), 9)
    assert [[text + end for text, end, _ in caption(image)] for image in found] == [
        ["#7", "true: dog (5.0 %)", "guess: cat (75.0 %)"],
        ["#8", "true: zaba |x (50.0 %)", "guess: the same"],
        ["#3", "true: cat (90.0 %)", "guess: the same"],
    ]


def test_each_image_lies_above_its_caption_and_the_gap_to_the_next_stays_white() -> None:
    data = arrays(("a class of a very long name", "another class of a very long name"))
    data.test_images[:] = (np.arange(12) * 20)[:, None, None, None]
    found = hard_images(np.tile([0.1, 0.9], (10, 1)), chosen(data, *range(10)), data, 10)
    sheet = pixels(contact_sheet(found, data, "of a very long title" * 30))
    order = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]  # of class 0 first: its probability is 0.1
    for number, index in enumerate(order):
        left, top = 8 + number % 8 * 168, 30 + number // 8 * 221
        assert (sheet[top : top + 160, left : left + 160] == index * 20).all(), number
        lines = [sheet[top + 162 + line * 15 : top + 177 + line * 15, left : left + 160] for line in range(3)]
        assert all((line < 128).any() for line in lines), f"a line of image {number} is empty"
    gaps = [sheet[:, left : left + 6] for left in range(168, 8 * 168, 168)]
    assert all((gap[30:] == 255).all() for gap in gaps)


def test_one_image_has_a_sheet_that_its_title_fits_on() -> None:
    data = arrays()
    sheet = pixels(contact_sheet(hard_images(np.full((1, 3), 1 / 3), chosen(data, 4), data, 1), data, "pets: all 1 test images"))
    assert sheet.shape == (30 + 221, 4 * 168 + 8, 3) and (sheet[:30] < 128).any()
