"""A rank as a supervisor starts it, with the hooks of owner_hooks: what is planted stands in the environment."""

import os
import sys
from pathlib import Path

import owner_hooks

from seresnet.train import main

if __name__ == "__main__":
    owner_hooks.install(Path(sys.argv[1]), int(os.environ["RANK"]))
    sys.exit(main(["--run-dir", sys.argv[1]]))
