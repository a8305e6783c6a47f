"""Which of its task's supervisors this one is: srun starts one on each node. Read from the environment, and nothing else."""

import logging
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpc.paths import SweepFolder
from seresnet.errors import ConfigError
from seresnet.run_folder import RunFolder, RunRecord

log = logging.getLogger("hpc.supervisor")


@dataclass(frozen=True, kw_only=True)
class Place:
    """This supervisor among those of its task. Node 0 leads, the others follow."""

    node: int = 0
    nodes: int = 1
    name: str = ""  # of this node, as Slurm calls it
    key: str = ""  # of this step of this start of this job: what an earlier one published is never taken for ours

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> "Place":
        """As srun says; alone outside of SLURM."""
        if not environ.get("SLURM_JOB_ID"):
            return cls(name=socket.gethostname())
        words = [environ.get("SLURM_CLUSTER_NAME") or "slurm", environ["SLURM_JOB_ID"], environ.get("SLURM_RESTART_COUNT") or "0"]
        return cls(
            node=_number(environ.get("SLURM_NODEID"), 0),
            nodes=_number(environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES"), 1),
            name=environ.get("SLURMD_NODENAME") or socket.gethostname(),
            key="-".join([*words, environ.get("SLURM_STEP_ID") or "x"]),
        )

    def meeting(self, sweep: SweepFolder, task: str) -> Path:
        """Where node 0 says how it is reached."""
        return sweep.logs / f".nodes-{re.sub(r'[^A-Za-z0-9_.-]', '_', f'{self.key}-{task}')}.json"


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else otherwise


def check_nodes(folder: RunFolder, record: RunRecord, place: Place) -> None:
    """Refuse a run that wants other nodes than its job has; where there is one node, all ranks run there, whatever train.nodes says."""
    try:
        wanted, ranks = int(record.config["train"].get("nodes", 1)), int(record.config["train"]["ranks"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder.run_yaml}: config.train.ranks is not there. Launch the sweep again to write the file.") from error
    if place.nodes == 1 and wanted > 1:
        log.warning("run=%s train.nodes=%d, but there is one node here: all %d ranks run on it", record.run_id, wanted, ranks)
    if place.nodes > 1 and (wanted != place.nodes or ranks % wanted):
        raise ConfigError(
            f"{folder.run_yaml}: train.nodes: {wanted} (train.ranks: {ranks}), but its job has {place.nodes} nodes. "
            f"Submit it with --nodes={wanted} --ntasks-per-node=1, or set train.nodes={place.nodes}."
        )
