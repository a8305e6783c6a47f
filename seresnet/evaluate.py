"""python -m seresnet.evaluate RUN... [--corruptions]: what trained runs are worth on their test set, and on shifted copies of it.

Computing is calibration.py's and robustness.py's job, text and pictures are evaluate_view.py's. One invariant: runs are only read;
what is found goes to --output, as one JSON file with every number and pages made from it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from seresnet.command import run_command
from seresnet.errors import ConfigError, ToolkitError, printable

if TYPE_CHECKING:
    from seresnet.array_file import Arrays
    from seresnet.config import RunConfig
    from seresnet.evaluate_view import Evaluated
    from seresnet.robustness import Shift, TestSet
    from seresnet.trained import Classifier


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 for what the user can mend."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not arguments.corruptions and (arguments.adapt_bn is not None or arguments.corruption_files):
        parser.error("--adapt-bn and --corruption-files say how to evaluate on corrupted images: add --corruptions")
    try:
        return _run(arguments)
    except (ToolkitError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    from seresnet import evaluate_view

    loaded = _load_all(arguments)
    (_, arrays), test = loaded[0], _test_set(*_first(loaded), arguments.images)
    shifts = _shifts([classifier for classifier, _ in loaded], arrays, test, arguments)
    found = [_evaluated(classifier, test, own, tta=arguments.tta) for (classifier, _), own in zip(loaded, shifts, strict=True)]
    output = arguments.output or _default_output(arguments.runs)
    written = evaluate_view.write(found, test, arrays, output, settings=_settings(arguments, len(test.labels)), hardest=arguments.hardest)
    print(evaluate_view.markdown(found, arrays, _settings(arguments, len(test.labels))), end="")
    print("\nwrote\n" + "\n".join(f"  {printable(str(path))}" for path in written), file=sys.stderr)
    return 0


def _load_all(arguments: argparse.Namespace) -> "list[tuple[Classifier, Arrays]]":
    import torch

    from seresnet.checkpoint import find_runs
    from seresnet.plan_record import asked_for
    from seresnet.run_folder import is_finished
    from seresnet.trained import load_run

    named = [folder for name in arguments.runs for folder in asked_for(Path(name), find_runs(Path(name)))]
    folders = list({folder.path.resolve(): folder for folder in named}.values())
    finished = [folder for folder in folders if is_finished(folder)]
    if not finished:
        raise ConfigError(f"{folders[0].path}: is not finished, so there is no network to evaluate. Train it to its end first.")
    if left := len(folders) - len(finished):
        print(f"{left} of {len(folders)} runs are not finished and are left out", file=sys.stderr)
    loaded = [load_run(folder, torch.device(arguments.device), arguments.weights) for folder in finished]
    loaded = [(replace(classifier, amp=_amp(classifier, arguments)), arrays) for classifier, arrays in loaded]
    if len({arrays.digest for _, arrays in loaded}) > 1:
        raise ConfigError("the runs were trained on different data: evaluate them apart.")
    return loaded


def _amp(classifier: "Classifier", arguments: argparse.Namespace) -> Literal["bf16", "fp16", "off"]:
    """The run's own precision, as its table has it; fp16 is no precision of CPUs."""
    wanted = classifier.config.train.amp if arguments.amp == "run" else "off"
    return "off" if wanted == "fp16" and arguments.device == "cpu" else wanted


def _first(loaded: "list[tuple[Classifier, Arrays]]") -> "tuple[RunConfig, Arrays]":
    return loaded[0][0].config, loaded[0][1]


def _test_set(config: "RunConfig", arrays: "Arrays", images: int | None) -> "TestSet":
    """The run's test images, or so many of them, of each class alike."""
    from seresnet.data import split_indices
    from seresnet.robustness import TestSet

    data = config.data if images is None else replace(config.data, test_images=min(images, config.data.test_images or images))
    indices = split_indices(data, arrays.train_labels, arrays.test_labels).test
    return TestSet(images=arrays.test_images[indices], labels=arrays.test_labels[indices], indices=indices)


def _shifts(
    classifiers: "Sequence[Classifier]", arrays: "Arrays", test: "TestSet", arguments: argparse.Namespace
) -> "Sequence[Sequence[Shift]]":
    if not arguments.corruptions:
        return [[] for _ in classifiers]
    from seresnet.robustness import check_published, measure_shifts

    if arguments.corruption_files:
        check_published(arguments.corruption_files, arrays.test_labels)
    return measure_shifts(
        classifiers,
        test,
        tta=arguments.tta,
        source_share=arguments.adapt_bn,
        published=arguments.corruption_files,
        progress=_say_progress,
    )


def _say_progress(name: str, severity: int) -> None:
    """In one line of a terminal; of a log, a line a corruption."""
    if sys.stderr.isatty():
        print(f"\r{name} {severity}/5".ljust(40), end="\r", file=sys.stderr, flush=True)
    elif severity == 1:
        print(name, file=sys.stderr, flush=True)


def _evaluated(classifier: "Classifier", test: "TestSet", shifts: "Sequence[Shift]", *, tta: bool) -> "Evaluated":
    from seresnet.calibration import score
    from seresnet.evaluate_view import Evaluated, arm_of
    from seresnet.tta import probabilities

    found = probabilities(classifier.folded(), test.images, tta=tta).double().numpy()
    return Evaluated(
        arm=arm_of(classifier),
        seed=classifier.config.train.seed,
        origin=classifier.origin,
        clean=score(found, test.labels),
        probabilities=found,
        shifts=tuple(shifts),
    )


def _settings(arguments: argparse.Namespace, images: int) -> dict[str, Any]:
    return {
        "images": images,
        "weights": arguments.weights,
        "amp": arguments.amp,
        "tta": arguments.tta,
        "adapt_bn_source_share": arguments.adapt_bn if arguments.corruptions else None,
        "corruptions": None if not arguments.corruptions else "published arrays" if arguments.corruption_files else "computed",
    }


def _default_output(runs: Sequence[str]) -> Path:
    from seresnet.checkpoint import find_runs

    place = Path(runs[0])
    if len(runs) > 1:
        raise ConfigError("several runs: say where the result goes with --output DIR.")
    # A run may be named without its id: runs/demo/se-s0.
    return (place if place.is_dir() else find_runs(place)[0].path) / "evaluation"


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m seresnet.evaluate", description="What trained runs are worth on their test images.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder or a sweep's; unfinished runs are left out")
    parser.add_argument("--corruptions", action="store_true", help="also on the 15 corruptions of CIFAR-10-C at 5 severities")
    parser.add_argument(
        "--corruption-files", type=Path, metavar="DIR", help="CIFAR-10-C's .npy files, instead of computing the corruptions"
    )
    parser.add_argument(
        "--adapt-bn",
        type=_share,
        nargs="?",
        const=0.0,
        metavar="SHARE",
        help="also with batch norm's statistics from each corrupted set, mixed with SHARE of those of training (default 0)",
    )
    parser.add_argument("--images", type=_count, metavar="N", help="so many test images, of each class alike (default: the run's)")
    parser.add_argument("--tta", action="store_true", help="average over the mirrored image and shifts by two pixels")
    parser.add_argument("--weights", choices=("last", "best"), default="last", help="of the last step, or best on validation")
    parser.add_argument("--hardest", type=_count, default=40, metavar="N", help="images on the contact sheet (default 40)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the files go (default: RUN/evaluation)")
    parser.add_argument("--amp", choices=("run", "off"), default="run", help="precision: the run's own (default), or float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


if __name__ == "__main__":
    run_command(main)
