"""What an evaluation found, as JSON, a Markdown page and pictures. Nothing is computed here but means and spreads over seeds.

One invariant: the same numbers give the same bytes, and every table says on how many images and how many seeds it rests.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seresnet.array_file import Arrays
from seresnet.calibration import Floats, Scores, reliability
from seresnet.contact_sheet import contact_sheet, hard_images
from seresnet.durable import write_durably, write_json_durably
from seresnet.robustness import SEVERITIES, Shift, TestSet, mean_accuracy
from seresnet.trained import Classifier

SCHEMA = 1
#: Classes that a table or a diagram has room for.
MOST_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One network's scores; probabilities (N, K) are of the clean images."""

    arm: str  # networks that differ by their seed alone have one
    seed: int
    origin: str
    clean: Scores
    probabilities: Floats
    shifts: tuple[Shift, ...] = ()

    @property
    def mean_pct(self) -> float:
        return mean_accuracy(self.shifts)

    @property
    def gain_pct(self) -> float:
        """What adapting batch norm gives over corruptions and severities, in points."""
        return mean_accuracy(self.shifts, is_adapted=True) - self.mean_pct


def arm_of(classifier: Classifier) -> str:
    """The run's slug without its seed, which the launcher writes behind it ("se-s0"); else the slug, or the file."""
    slug = classifier.origin.partition("(")[2].partition(")")[0] or classifier.origin
    return slug.removesuffix(f"-s{classifier.config.train.seed}")


def write(
    found: Sequence[Evaluated], test: TestSet, arrays: Arrays, folder: Path, *, settings: Mapping[str, Any], hardest: int
) -> list[Path]:
    """evaluation.json, evaluation.md and pictures; returns what was written. Without matplotlib no diagrams, and a word on stderr."""
    folder.mkdir(parents=True, exist_ok=True)
    images = hard_images(np.mean([each.probabilities for each in found], axis=0), test, arrays, hardest)
    record = {"schema": SCHEMA, "data": arrays.title, "settings": dict(settings), "runs": [_as_json(each) for each in found]}
    record["hardest"] = [dataclasses.asdict(image) for image in images]
    write_json_durably(folder / "evaluation.json", record)
    write_durably(folder / "evaluation.md", markdown(found, arrays, settings).encode())
    written = [folder / "evaluation.json", folder / "evaluation.md"]
    write_durably(folder / "hardest.png", contact_sheet(images, arrays, _sheet_title(found, arrays, len(test.labels), len(images))))
    written.append(folder / "hardest.png")
    try:
        from seresnet import evaluate_figures
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed: no diagrams (pip install 'hpc-seresnet[collect]')", file=sys.stderr)
        return written
    return written + evaluate_figures.draw(found, test, arrays.classes, folder)


def _as_json(each: Evaluated) -> dict[str, Any]:
    shifts = [
        {**dataclasses.asdict(shift), "plain": _short(shift.plain), "adapted": shift.adapted and _short(shift.adapted)}
        for shift in each.shifts
    ]
    clean = {**dataclasses.asdict(each.clean), "class_pct": each.clean.class_pct}
    return {"arm": each.arm, "seed": each.seed, "origin": each.origin, "clean": clean, "shifts": shifts}


def _short(scores: Scores) -> dict[str, Any]:
    """Without the confusion matrix: there are 75 of them."""
    return {key: value for key, value in dataclasses.asdict(scores).items() if key != "confusion"}


def by_arm(found: Iterable[Evaluated]) -> dict[str, list[Evaluated]]:
    """In the order of the first run of each."""
    groups: dict[str, list[Evaluated]] = {}
    for each in found:
        groups.setdefault(each.arm, []).append(each)
    return groups


def spread_text(values: Sequence[float], digits: int = 2) -> str:
    """Mean and sample standard deviation."""
    text = f"{np.mean(values):.{digits}f}"
    return text + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def markdown(found: Sequence[Evaluated], arrays: Arrays, settings: Mapping[str, Any]) -> str:
    """The whole page: a line of what was measured, clean figures, classes, then corruptions."""
    groups = by_arm(found)
    lines = [
        _headline(found, arrays, settings),
        "",
        *_table(["arm", "n", *_CLEAN], [_clean_row(arm, runs) for arm, runs in groups.items()]),
    ]
    lines += ["", *_by_class(groups, arrays.classes)]
    if found[0].shifts:
        adapts = found[0].shifts[0].adapted is not None
        first = next(iter(groups))
        header = ["arm", "n", "clean", "mean of corruptions", *([f"minus {first}"] if len(groups) > 1 else [])]
        header += ["with adapted batch norm", "gain"] if adapts else []
        lines += ["", *_table(header, [_shift_row(groups, arm, adapts) for arm in groups])]
        lines += ["", f"minus {first}: differences of the mean of corruptions at equal seeds."] if len(groups) > 1 else []
        lines += ["", "Mean over five severities, by corruption:", "", *_by_corruption(groups, adapts)]
    return "\n".join(lines) + "\n"


def _headline(found: Sequence[Evaluated], arrays: Arrays, settings: Mapping[str, Any]) -> str:
    runs = f"{len(found)} run{'s' if len(found) > 1 else ''}, {settings['weights']} weights"
    parts = [f"{arrays.title}, {settings['images']:,} test images, {runs}"]
    if settings["tta"]:
        parts.append("averaged over six views")
    if settings["corruptions"]:
        parts.append(f"corruptions {settings['corruptions']}")
    if settings["adapt_bn_source_share"] is not None:
        parts.append(f"batch norm adapted with {settings['adapt_bn_source_share']:g} of training's statistics")
    return "; ".join(parts) + ". Accuracies in %, mean ± sample standard deviation over seeds."


_CLEAN: Mapping[str, Callable[[Scores], float]] = {
    "accuracy": lambda scores: scores.top1_pct,
    "loss": lambda scores: scores.loss,
    "calibration error (%)": lambda scores: scores.ece_pct,
    "Brier": lambda scores: scores.brier,
}


def _clean_row(arm: str, runs: Sequence[Evaluated]) -> list[str]:
    texts = [spread_text([value(each.clean) for each in runs], 3 if name in ("loss", "Brier") else 2) for name, value in _CLEAN.items()]
    return [arm, str(len(runs)), *texts]


def _by_class(groups: Mapping[str, Sequence[Evaluated]], classes: Sequence[str]) -> list[str]:
    """Accuracy of each class in the order of the labels; of many classes the lowest, by the mean over arms."""
    values = {arm: [[each.clean.class_pct[place] for each in runs] for place in range(len(classes))] for arm, runs in groups.items()}
    tested = [place for place in range(len(classes)) if all(one is not None for arm in values.values() for one in arm[place])]
    mean = {place: float(np.mean([one for arm in values.values() for one in arm[place]])) for place in tested}
    shown = sorted(sorted(tested, key=lambda place: (mean[place], place))[:MOST_CLASSES])
    what = f"the {len(shown)} lowest of {len(classes)} classes" if len(shown) < len(tested) else "by class"
    rows = [
        [classes[place], *(spread_text([one for one in arm[place] if one is not None], 1) for arm in values.values())] for place in shown
    ]
    return [f"Accuracy on clean images, {what}:", "", *_table(["class", *groups], rows)]


def confusion_shares(runs: Sequence[Evaluated]) -> npt.NDArray[np.float64]:
    """(classes, classes): of each true class the share in % that was taken for each, over all runs of an arm."""
    counts = np.sum([each.clean.confusion for each in runs], axis=0, dtype=np.float64)
    return np.asarray(100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _shift_row(groups: Mapping[str, Sequence[Evaluated]], arm: str, adapts: bool) -> list[str]:
    runs, first = groups[arm], next(iter(groups))
    row = [arm, str(len(runs)), spread_text([each.clean.top1_pct for each in runs]), spread_text([each.mean_pct for each in runs])]
    if len(groups) > 1:
        row.append("-" if arm == first else difference_text(paired_differences(groups[first], runs)))
    if adapts:
        row += [spread_text([mean_accuracy(each.shifts, is_adapted=True) for each in runs]), "+" * all(each.gain_pct >= 0 for each in runs)]
        row[-1] += spread_text([each.gain_pct for each in runs])
    return row


def paired_differences(baseline: Sequence[Evaluated], runs: Sequence[Evaluated]) -> list[float]:
    """Of the mean of corruptions, in points, at the seeds that both have."""
    known = {each.seed: each.mean_pct for each in baseline}
    return [each.mean_pct - known[each.seed] for each in runs if each.seed in known]


def difference_text(values: Sequence[float]) -> str:
    """Mean with its sign and sample standard deviation; a dash without a pair."""
    if not values:
        return "-"
    return ("+" if np.mean(values) >= 0 else "") + spread_text(values)


def _by_corruption(groups: Mapping[str, Sequence[Evaluated]], adapts: bool) -> list[str]:
    names = list(dict.fromkeys(shift.corruption for runs in groups.values() for shift in runs[0].shifts))
    sides = [(arm, runs, False) for arm, runs in groups.items()] + [
        (f"{arm}, adapted", runs, True) for arm, runs in groups.items() if adapts
    ]
    rows = [[name, *(spread_text(over_severities(runs, name, side), 1) for _, runs, side in sides)] for name in names]
    return _table(["corruption", *(title for title, _, _ in sides)], rows)


def over_severities(runs: Sequence[Evaluated], corruption: str, is_adapted: bool) -> list[float]:
    """Of each run, its mean over the severities of one corruption."""
    return [mean_accuracy([shift for shift in each.shifts if shift.corruption == corruption], is_adapted=is_adapted) for each in runs]


def accuracy_grid(runs: Sequence[Evaluated]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """(corruptions, (corruptions, severities) accuracy in %, mean over the runs)."""
    names = list(dict.fromkeys(shift.corruption for shift in runs[0].shifts))
    grid = np.zeros((len(names), len(SEVERITIES)))
    for each in runs:
        for shift in each.shifts:
            grid[names.index(shift.corruption), shift.severity - 1] += shift.plain.top1_pct / len(runs)
    return names, grid


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [[_inert(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in lines)) for column in range(len(header))]
    rules = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    padded = [
        [cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in lines
    ]
    return [f"| {' | '.join(row)} |" for row in (padded[0], rules, *padded[1:])]


def _inert(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _sheet_title(found: Sequence[Evaluated], arrays: Arrays, images: int, count: int) -> str:
    of = f"the {count} hardest of {images:,} test images" if count < images else f"all {images:,} test images, hardest first"
    means = f"mean probabilities of {len(found)} runs" if len(found) > 1 else found[0].origin
    return f"{arrays.title}: {of}; {means}. #: place in the test set, from 0"


def reliability_of(runs: Sequence[Evaluated], labels: npt.NDArray[np.int64]) -> list[tuple[float, float, int]]:
    """(confidence, accuracy, predictions) of each bin that is not empty, over all runs of an arm."""
    bins = reliability(np.concatenate([each.probabilities for each in runs]), np.tile(labels, len(runs)))
    return [(part.confidence, part.accuracy, part.n) for part in bins if part.confidence is not None and part.accuracy is not None]
