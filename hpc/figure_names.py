"""The names of the figures and of their formats, and how a command line chooses among them.

Apart from hpc.figures, because naming a figure must not wait for matplotlib. One invariant: a name that is none is refused, and all that
are one are listed.
"""

from collections.abc import Sequence

from seresnet.errors import ConfigError

#: Name -> what it shows, for help texts and the documentation; the order in which they are drawn.
FIGURES = {
    "accuracy": "test and validation accuracy against epoch, mean and spread over seeds",
    "loss": "training and test loss against epoch, mean and spread over seeds",
    "parameters": "last-epoch accuracy against parameters, mean and spread over seeds",
    "differences": "paired differences to the baseline, each seed a dot, mean and 95 % interval",
    "confusion": "confusion matrices of the last epoch",
    "multiply-adds": "last-epoch accuracy against multiply-adds of one image",
    "per-class": "last-epoch accuracy of each class",
    "learning-rate": "learning rate against epoch",
    "throughput": "training images a second against epoch",
    "timeline": "every attempt of every run from start to end, how it ended, and the waits between",
    "hours": "device-hours by arm and by what became of them: useful, repeated, lost",
}

#: Drawn unless others are asked for.
DEFAULT = ("accuracy", "loss", "parameters", "differences", "confusion")

FORMATS = ("png", "svg", "pdf")


def chosen_figures(text: str) -> tuple[str, ...]:
    """all, none, or names with commas between; in the order of FIGURES. Raises ConfigError for a name that is none."""
    if text in ("all", "none"):
        return tuple(FIGURES) if text == "all" else ()
    return _chosen("--figures", text, tuple(FIGURES), "; or all, or none")


def chosen_formats(text: str) -> tuple[str, ...]:
    """Formats with commas between; in the order of FORMATS. Raises ConfigError for one that is none."""
    return _chosen("--figure-formats", text, FORMATS)


def _chosen(option: str, text: str, valid: Sequence[str], others: str = "") -> tuple[str, ...]:
    asked = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in asked if name not in valid]
    if unknown or not asked:
        what = f"{', '.join(unknown)} is none" if unknown else "names none"
        raise ConfigError(f"{option} {text}: {what}. Valid: {', '.join(valid)}{others}.")
    return tuple(name for name in valid if name in asked)
