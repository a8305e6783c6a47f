"""What a set of probabilities is worth: accuracy, loss, calibration, classes, and which images are hardest. Arrays in, numbers out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

#: Of equal width, as in Guo et al. 2017.
BINS = 15


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Predictions whose confidence is within (low, high]; the means are None where there is none."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of one network, or an ensemble, on one set of images. Percentages are 0..100."""

    n: int
    top1_pct: float
    loss: float  # mean negative log-likelihood
    ece_pct: float  # expected calibration error, Guo et al. 2017, equation 3
    brier: float  # mean squared distance to the one-hot label, Brier 1950
    confusion: list[list[int]]  # [true class][predicted class]

    @property
    def class_pct(self) -> list[float | None]:
        """Accuracy of each class; None for a class without images."""
        return [100 * row[number] / sum(row) if sum(row) else None for number, row in enumerate(self.confusion)]


def score(probabilities: Floats, labels: Labels) -> Scores:
    """probabilities: (N, K), rows sum to 1; labels: (N,)."""
    assert len(probabilities) == len(labels) > 0, f"{len(probabilities)} rows for {len(labels)} labels"
    n, classes = probabilities.shape
    predicted = probabilities.argmax(1)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    own = probabilities[np.arange(n), labels]
    return Scores(
        n=n,
        top1_pct=100 * float((predicted == labels).mean()),
        loss=float(-np.log(np.maximum(own, 1e-12)).mean()),
        ece_pct=100 * expected_calibration_error(probabilities, labels),
        brier=float(((probabilities - np.eye(classes)[labels]) ** 2).sum(1).mean()),
        confusion=confusion.tolist(),
    )


def reliability(probabilities: Floats, labels: Labels, bins: int = BINS) -> list[Bin]:
    """The bins of a reliability diagram, from low to high confidence."""
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == labels
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for index in range(bins):
        here = number == index
        means = (float(confidence[here].mean()), float(hit[here].mean())) if here.any() else (None, None)
        found.append(Bin(low=index / bins, high=(index + 1) / bins, n=int(here.sum()), confidence=means[0], accuracy=means[1]))
    return found


def expected_calibration_error(probabilities: Floats, labels: Labels, bins: int = BINS) -> float:
    """Mean distance of confidence and accuracy over the bins, weighted by their predictions; 0..1."""
    parts = reliability(probabilities, labels, bins)
    total = sum(
        part.n * abs(part.confidence - part.accuracy) for part in parts if part.confidence is not None and part.accuracy is not None
    )
    return total / len(labels)


def hardest(probabilities: Floats, labels: Labels, count: int) -> Labels:
    """Positions of the images whose own class got least, hardest first; ties by position."""
    own = probabilities[np.arange(len(labels)), labels]
    return np.argsort(own, kind="stable")[:count].astype(np.int64)
