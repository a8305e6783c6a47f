"""Types of command line arguments that several commands share."""

import argparse
from pathlib import Path


def folder(text: str) -> Path:
    """A folder's name. An empty word is what "$VAR" leaves where VAR is not set: it must not mean the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: is a variable not set? For the working directory say .")
    return Path(text)
