"""python -m seresnet.predict RUN... --input FILE --output submission.csv: class numbers for images without labels.

Several runs are an ensemble: their probabilities are averaged. Reading images is inputs.py's job. One invariant: the CSV has one row an
image, in the order of the input, and appears whole or not at all.
"""

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seresnet.command import run_command
from seresnet.errors import ConfigError, ToolkitError

if TYPE_CHECKING:
    from torch import Tensor

    from seresnet.inputs import Inputs
    from seresnet.trained import Classifier


def submission(ids: Sequence[str], labels: Sequence[int]) -> str:
    """The CSV that the competition asks for: a header ID,Labels and a row an image."""
    assert len(ids) == len(labels), f"{len(labels)} labels for {len(ids)} images"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("ID", "Labels"))
    writer.writerows(zip(ids, labels, strict=True))
    return text.getvalue()


def averaged_probabilities(classifiers: Sequence["Classifier"], inputs: "Inputs", *, tta: bool, adapt_bn: float | None) -> "Tensor":
    """(N, classes): the mean over the networks. Raises ConfigError if they do not know the same classes."""
    import torch

    from seresnet.adaptation import adapted
    from seresnet.tta import probabilities

    if len({classifier.classes for classifier in classifiers}) > 1:
        raise ConfigError("the runs were trained on different classes: an ensemble needs one set. Give runs of one data set.")
    parts = []
    for classifier in classifiers:
        shifted = classifier if adapt_bn is None else adapted(classifier, inputs.images, source_share=adapt_bn)
        parts.append(probabilities(shifted, inputs.images, tta=tta))
    return torch.stack(parts).double().mean(0)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 for what the user can mend."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except (ToolkitError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    from seresnet.durable import write_durably
    from seresnet.inputs import read_inputs

    _refuse_nowhere(arguments.output)
    inputs = read_inputs(arguments.input)
    classifiers = _classifiers(arguments)
    mean = averaged_probabilities(classifiers, inputs, tta=arguments.tta, adapt_bn=arguments.adapt_bn)
    write_durably(arguments.output, submission(inputs.ids, mean.argmax(1).tolist()).encode())
    print(f"wrote {arguments.output}: {len(inputs.ids)} images, by {len(classifiers)} network{'s' if len(classifiers) > 1 else ''}:")
    print("\n".join(f"  {classifier.origin}" for classifier in classifiers))
    return 0


def _refuse_nowhere(output: Path) -> None:
    """Before anything is computed. Raises ConfigError."""
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: {output.absolute().parent} is no folder. Make it, or name another file.")


def _classifiers(arguments: argparse.Namespace) -> "list[Classifier]":
    import torch

    from seresnet.checkpoint import find_runs
    from seresnet.plan_record import asked_for
    from seresnet.trained import load, load_run

    found = []
    for name in arguments.runs:
        if Path(name).is_file():
            found.append(load(name, device=arguments.device))
        else:
            folders = asked_for(Path(name), find_runs(Path(name)))
            found += [load_run(folder, torch.device(arguments.device), arguments.weights)[0] for folder in folders]
    return found


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m seresnet.predict", description="Classify images without labels.")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's folder, such as runs/demo/se-s0, an exported file, or a sweep; several are averaged",
    )
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help=".pkl with key b'data', .npy, or a folder or archive of images"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="CSV", help="ID,Labels")
    parser.add_argument("--weights", choices=("last", "best"), default="last", help="of the last step, or best on validation")
    parser.add_argument("--tta", action="store_true", help="average over the mirrored image and shifts by two pixels")
    parser.add_argument(
        "--adapt-bn",
        type=_share,
        nargs="?",
        const=0.0,
        metavar="SHARE",
        help="batch norm's statistics from the input itself, mixed with SHARE of those of training (default 0)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


if __name__ == "__main__":
    run_command(main)
