"""The hardest test images as one picture, each with its number, its class and what it was taken for.

Who calls says which networks and which images; Pillow draws. One invariant: caption, picture and JSON come from one list, in its order.
"""

import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from seresnet.array_file import Arrays
from seresnet.calibration import Floats, hardest
from seresnet.robustness import TestSet

_COLUMNS = 8
_MARGIN = 8  # pixels
_LINE = 15
_FONT = 12
_LEAST_WIDTH = 160  # room for "guess: automobile (97.1 %)" below an image
_WRONG, _RIGHT, _GREY = "#B03A00", "#00704F", "#555555"


@dataclass(frozen=True, kw_only=True)
class HardImage:
    """One image; probabilities are means over the networks, 0..1."""

    index: int  # in the data set's whole test array
    true_class: str
    true_probability: float
    predicted_class: str
    predicted_probability: float


def hard_images(probabilities: Floats, test: TestSet, arrays: Arrays, count: int) -> list[HardImage]:
    """Those whose own class got least, hardest first; probabilities: (N, K) of the test set's images."""
    found = []
    for place in hardest(probabilities, test.labels, count):
        label, guess = int(test.labels[place]), int(probabilities[place].argmax())
        found.append(
            HardImage(
                index=int(test.indices[place]),
                true_class=arrays.classes[label],
                true_probability=float(probabilities[place, label]),
                predicted_class=arrays.classes[guess],
                predicted_probability=float(probabilities[place, guess]),
            )
        )
    return found


def contact_sheet(images: Sequence[HardImage], arrays: Arrays, title: str) -> bytes:
    """A PNG, hardest first, eight a row; small images are enlarged by a whole factor, so that their pixels stay squares."""
    height, width = arrays.test_images.shape[1:3]
    factor = -(-_LEAST_WIDTH // width)
    cell_width, cell_height = width * factor + _MARGIN, height * factor + 3 * _LINE + 2 * _MARGIN
    columns, rows = min(_COLUMNS, len(images)), -(-len(images) // _COLUMNS)
    # At least four cells wide: the title needs them.
    sheet = Image.new("RGB", (max(4, columns) * cell_width + _MARGIN, rows * cell_height + 2 * _LINE), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    draw.text((_MARGIN, 7), _cut(title, sheet.width - 2 * _MARGIN, font), fill="black", font=font)
    for number, image in enumerate(images):
        left, top = _MARGIN + number % _COLUMNS * cell_width, 2 * _LINE + number // _COLUMNS * cell_height
        sheet.paste(_enlarged(arrays.test_images[image.index], factor), (left, top))
        for line, (text, end, colour) in enumerate(caption(image)):
            place = (left, top + height * factor + 2 + line * _LINE)
            room = width * factor - font.getlength(end)
            draw.text(place, _cut(text, room, font) + end, fill=colour, font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def caption(image: HardImage) -> list[tuple[str, str, str]]:
    """Three lines as (what may be cut, what may not, colour)."""
    true = ("true: " + _plain(image.true_class), _percent(image.true_probability), "black")
    if image.true_class == image.predicted_class:
        return [(f"#{image.index}", "", _GREY), true, ("guess: the same", "", _RIGHT)]
    return [
        (f"#{image.index}", "", _GREY),
        true,
        ("guess: " + _plain(image.predicted_class), _percent(image.predicted_probability), _WRONG),
    ]


def _enlarged(image: npt.NDArray[np.uint8], factor: int) -> Image.Image:
    return Image.fromarray(image.repeat(factor, axis=0).repeat(factor, axis=1))


def _percent(probability: float) -> str:
    return f" ({100 * probability:.1f} %)"


def _plain(name: str) -> str:
    """In the letters that Pillow's own font has; one that fits everywhere is not to be had without another dependency."""
    bare = unicodedata.normalize("NFKD", " ".join(name.split()))
    return "".join(letter if letter.isascii() else "?" for letter in bare if not unicodedata.combining(letter))


def _cut(text: str, room: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """So much of it as fits."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "..") > room:
        text = text[:-1]
    return text + ".."
