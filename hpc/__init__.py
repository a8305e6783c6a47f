"""How training is run: sweeps, SLURM, supervision, tables. Talks to seresnet only through its torch-free half.

For notebooks: `runs, history = hpc.load("runs/ablation")`, see hpc.frames.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from hpc.frames import load
else:

    def __getattr__(name: str) -> object:
        # pandas takes half a second to import, and every command imports this package.
        if name == "load":
            from hpc.frames import load

            return load
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
