"""What is trained: networks, data, recipe, and a state that survives being killed. Imports no hpc, submitit or wandb."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seresnet.trained import Classifier as Classifier
    from seresnet.trained import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes seconds: only who asks for a classifier waits for it.
    if name in ("load", "Classifier"):
        from seresnet import trained

        return getattr(trained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
