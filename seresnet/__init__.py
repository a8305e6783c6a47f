"""What is trained: networks, data, recipe, and a state that survives being killed. Imports no hpc, submitit or wandb."""

__version__ = "0.1.0"
