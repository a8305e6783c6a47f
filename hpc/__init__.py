"""How training is run: sweeps, SLURM, supervision, tables. Talks to seresnet only through its torch-free half."""

__version__ = "0.1.0"
