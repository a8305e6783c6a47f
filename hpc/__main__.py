"""`python -m hpc`: every command of this project, one line each."""

import shutil
import sys

from seresnet.command import run_command
from seresnet.help_text import folded

#: Command, what it does. In the order in which a user meets them.
COMMANDS = (
    ("python -m hpc.launch --sweep FILE", "show a sweep's plan and send its missing runs, to SLURM or to this machine"),
    ("python -m hpc.status SWEEP", "what every run of a sweep is doing, and why some are not"),
    ("python -m hpc.collect SWEEP", "comparison table, figures and a page in one file"),
    ("python -m hpc.mirror SWEEP", "publish a sweep's metrics to W&B, also afterwards"),
    ("python -m hpc.move SWEEP TARGET", "take a sweep in which nobody works to another folder or file system"),
    ("python -m hpc.archive SWEEP", "the same as one verified tar file, which hpc.collect reads; --restore takes it out again"),
    ("python -m hpc.clean SWEEP", "free what finished runs need no more; prints it and asks"),
    ("python -m hpc.launch --reproduce RUN", "train a finished run again with its own code, and compare the bits"),
    ("python -m hpc.supervisor RUN.yaml", "one run with resume and requeue, without a launcher"),
    ("sbatch sbatch/train.sh RUN.yaml", "the same as a SLURM job"),
    ("python -m seresnet.prepare SOURCE", "turn a data set into one array file"),
    (
        "python -m seresnet.train --config FILE",
        "one rank of one run; under torchrun, several; --fork RUN begins as another did",
    ),
    (
        "python -m seresnet.evaluate RUN --corruptions",
        "accuracy, calibration and hardest images; on corrupted images, with adapted batch norm",
    ),
    ("python -m seresnet.predict RUN --input FILE --output CSV", "class numbers for images without labels; several runs are averaged"),
    ("python -m seresnet.export RUN DIR", "a trained network as safetensors, torch.export and ONNX"),
    ("python -m seresnet.checkpoint verify RUN", "list, verify or repair the checkpoints of a run or a sweep"),
)


def main() -> int:
    """Print the list; exit 2 if a command was meant, because this is not how it is called."""
    if sys.argv[1:] and sys.argv[1] not in ("-h", "--help"):
        print(f"python -m hpc takes no arguments; did you mean python -m hpc.{sys.argv[1]}?\n", file=sys.stderr)
        return 2
    print("\n".join(_entries(shutil.get_terminal_size().columns)))
    print("\nEvery Python command answers --help.")
    return 0


def _entries(columns: int) -> list[str]:
    """A line each where the terminal has room for the longest, else what a command does below it."""
    width = max(len(command) for command, _ in COMMANDS)
    lines = [f"{command:<{width}}  {what}" for command, what in COMMANDS]
    if max(map(len, lines)) <= columns:
        return lines
    return [line for command, what in COMMANDS for line in (command, folded(f"    {what}", columns))]


if __name__ == "__main__":
    run_command(main)
