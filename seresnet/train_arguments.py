"""The command line of `python -m seresnet.train`. What its words do is train.py's business; nothing is read or written here."""

import argparse
from pathlib import Path

from seresnet import own_code
from seresnet.stages import MOST_STEPS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m seresnet.train", description="Train one run; started again, it goes on where it was.")
    result.add_argument("--config", type=Path, help="YAML file of one run (model, data, augment, optim, train)")
    result.add_argument("--run-dir", type=_folder, help="the run's folder; default runs/single/<name>-<run id>")
    result.add_argument(
        "--code-root",
        type=_folder,
        metavar="DIR",
        help=f"where the modules of your own lie (default: ${own_code.VARIABLE}, see docs/own-code.md)",
    )
    result.add_argument("--explain", action="append", metavar="KEY", help="print a key's value and where it comes from, and exit")
    result.add_argument(
        "--allow-numeric-change", action="store_true", help="go on with other numeric keys than at the first start (tier T2)"
    )
    either = result.add_mutually_exclusive_group()
    either.add_argument("--trial", type=_positive, metavar="STEPS", help="try the run: so many steps, save, exit; again: resume, evaluate")
    either.add_argument("--profile", type=_traceable, metavar="STEPS", help="trace so many steps into the run's profile/, and go on")
    result.add_argument(
        "--fork", type=_folder, metavar="RUN_DIR", help="begin with this run's newest checkpoint, or RUN_DIR/ckpt/FILE, in a new --run-dir"
    )
    result.add_argument("override", nargs="*", metavar="key=value", help="for example optim.lr=0.05 train.device=cpu")
    return result


def _folder(text: str) -> Path:
    if not text.strip():  # Path("") is the current folder
        raise argparse.ArgumentTypeError("it is empty. Is a shell variable not set? For the current folder write .")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of steps. Use 1 or more")
    return int(text)


def _traceable(text: str) -> int:
    if _positive(text) > MOST_STEPS:
        raise argparse.ArgumentTypeError(f"{text} steps are too many: a trace is held in memory. Use {MOST_STEPS} or fewer")
    return int(text)
