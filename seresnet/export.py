"""python -m seresnet.export RUN DIR: a trained run's network for other programs: safetensors, torch.export, ONNX.

Each file is checked against the network it came from before it gets its name. Loading it back is trained.py's job. One invariant: the
safetensors file alone is enough for seresnet.load, without the data set and without the run.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seresnet.command import run_command
from seresnet.errors import ConfigError, ToolkitError

if TYPE_CHECKING:
    from torch import Tensor

    from seresnet.trained import Classifier

#: Largest difference of a logit that counts as the same network; float32, another order of sums.
TOLERANCE = 1e-3


def write_weights(classifier: "Classifier", path: Path) -> None:
    """Weights as safetensors, with config, classes and normalisation in one metadata entry."""
    import safetensors.torch

    from seresnet.durable import canonical_json, write_durably
    from seresnet.trained import EXPORT_KEY, export_metadata

    weights = {name: value.detach().cpu().contiguous() for name, value in classifier.network.state_dict().items()}
    write_durably(path, safetensors.torch.save(weights, {EXPORT_KEY: canonical_json(export_metadata(classifier))}))


def write_program(classifier: "Classifier", path: Path) -> None:
    """torch.export's program, for any batch size, from float32 normalised images (N, 3, H, W) to logits."""
    import torch

    example = _example(classifier)
    program = torch.export.export(classifier.network, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=1)}, None)[:1])
    _check("torch.export", classifier, lambda images: program.module()(images))
    torch.export.save(program, path)


def write_onnx(classifier: "Classifier", path: Path) -> None:
    """ONNX for any batch size, input "images" (N, 3, H, W) float32 normalised, output "logits". Raises ConfigError without onnx."""
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so less clearly
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed: ONNX needs onnx, onnxscript and onnxruntime: pip install 'hpc-seresnet[export]'."
        ) from error
    torch.onnx.export(
        classifier.network,
        (_example(classifier),),
        str(path),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _check("onnxruntime", classifier, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]))


FORMATS: dict[str, tuple[str, Callable[..., None]]] = {
    "safetensors": ("weights.safetensors", write_weights),
    "torch": ("network.pt2", write_program),
    "onnx": ("network.onnx", write_onnx),
}


def export(classifier: "Classifier", folder: Path, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Write these formats into folder, each under its final name only when it was checked. Raises ConfigError and OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        file, write = FORMATS[name]
        draft = folder / f".draft-{file}"
        try:
            write(classifier, draft)
            written.append(draft.replace(folder / file))
        finally:
            draft.unlink(missing_ok=True)
    return written


def _example(classifier: "Classifier") -> "Tensor":
    import torch

    # Two images: a batch of one would be taken for a constant. Values of a fixed pattern, no generator is touched.
    pattern = (torch.arange(2 * 3 * classifier.size[0] * classifier.size[1]) * 97 % 256).to(torch.uint8)
    return classifier.prepared(pattern.view(2, 3, *classifier.size)).contiguous()


def _check(what: str, classifier: "Classifier", run: Callable[["Tensor"], Any]) -> None:
    import torch

    images = torch.cat([_example(classifier), _example(classifier).flip(3)])[:3]
    with torch.no_grad():
        difference = float((run(images) - classifier.network(images)).abs().max())
    if not difference <= TOLERANCE:
        raise ConfigError(f"{what}: logits differ from the network's by {difference:.3g}, more than {TOLERANCE}. Nothing was written.")


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 for what the user can mend."""
    arguments = _parser().parse_args(argv)
    try:
        from seresnet.trained import load

        written = export(load(arguments.run, weights=arguments.weights), arguments.folder, arguments.formats.split(","))
    except (ToolkitError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(f"{path}  {path.stat().st_size / 1e6:.1f} MB" for path in written))
    return 0


def _formats(text: str) -> str:
    if unknown := [name for name in text.split(",") if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(FORMATS)}")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m seresnet.export", description="A trained run's network for other programs.")
    parser.add_argument("run", metavar="RUN", help="a run's folder, such as runs/demo/se-s0: its id may be left out")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the files go")
    parser.add_argument(
        "--formats", type=_formats, default=",".join(FORMATS), metavar="A,B", help=f"of {', '.join(FORMATS)} (default: all)"
    )
    parser.add_argument("--weights", choices=("last", "best"), default="last", help="of the last step, or best on validation")
    return parser


if __name__ == "__main__":
    run_command(main)
