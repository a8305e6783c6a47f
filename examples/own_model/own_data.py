"""A data set that knows nothing of this toolkit: five shapes of any place, size and colours, drawn with numpy's global generator."""

import numpy as np

CLASSES = ["disc", "ring", "square", "triangle", "cross"]


def shapes(train: int = 2000, test: int = 300, size: int = 32, noise: float = 0.2) -> dict[str, object]:
    """Images uint8 (N, size, size, 3), labels that index CLASSES; equally many of each class in a split."""
    train_images, train_labels = _draw(train, size, noise)
    test_images, test_labels = _draw(test, size, noise)
    return {
        "title": "five shapes",
        "classes": CLASSES,
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }


def _draw(count: int, size: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % len(CLASSES)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        radius = size * np.random.uniform(0.2, 0.35)
        y, x = np.random.uniform(0.36, 0.64, 2) * size
        v, u = (np.arange(size)[:, None] - y) / radius, (np.arange(size)[None, :] - x) / radius
        inside = _inside(CLASSES[label], u, v)[..., None]
        near, far = np.random.uniform(0.5, 1, 3), np.random.uniform(0, 0.5, 3)
        pixels = np.where(inside, near, far) + np.random.uniform(-noise, noise, (size, size, 3))
        image[:] = np.round(255 * pixels.clip(0, 1))
    return images, labels


def _inside(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which pixels belong to the shape; u, v: their place, in radii from its centre."""
    square, round_ = np.maximum(abs(u), abs(v)), u * u + v * v
    return {
        "disc": round_ < 1,
        "ring": (round_ < 1) & (round_ > 0.35),
        "square": square < 0.9,
        "triangle": (v < 0.6) & (v > 1.7 * abs(u) - 1),
        "cross": (square < 1) & (np.minimum(abs(u), abs(v)) < 0.3),
    }[name]
