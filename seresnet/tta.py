"""Test-time augmentation: probabilities averaged over the mirrored image and shifts by two pixels, each on the device."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seresnet.trained import Classifier

#: (rows, columns) of the shifts; those of cifar10-airbench (Jordan 2024): the image and two diagonals, each with its mirror image.
SHIFTS = ((0, 0), (2, 2), (-2, -2))


def probabilities(classifier: Classifier, images: npt.NDArray[np.uint8], *, tta: bool) -> Tensor:
    """(N, classes) on the host. images: (N, H, W, 3) uint8."""
    if not tta:
        return classifier.probabilities(images)
    views = [shifted(images, *shift) for shift in SHIFTS]
    views += [view[:, :, ::-1] for view in views]
    return torch.stack([classifier.probabilities(view) for view in views]).mean(0)


def shifted(images: npt.NDArray[np.uint8], rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """The images moved down and right by so many pixels; what comes in is the border repeated."""
    margin = max(abs(rows), abs(columns))
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    return padded[:, margin - rows : margin - rows + height, margin - columns : margin - columns + width]
