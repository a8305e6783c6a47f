"""What a task needs of the machines that it runs on. A value, shared by packing, limits and the sbatch script."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskShape:
    """What every task of an array needs."""

    ranks: int = 1  # of one run, over all nodes
    gpus: int = 0  # on each node
    nodes: int = 1
    at_a_time: int = 1  # runs that train side by side; more than one only with one rank each

    @property
    def processes(self) -> int:
        """Ranks that run at once on each node: what CPUs and memory are asked for."""
        return self.ranks // self.nodes * self.at_a_time
