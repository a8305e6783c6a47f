"""Two or more supervisors as processes of this machine, each told by Slurm's variables that it is another node. No Slurm is there.

Ranks are rank_program.py, or real ones. Logs of supervisors are read by say(), for the text of a failure.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpc.paths import Plan, PlannedFolder, SweepFolder, WandbSettings
from seresnet import claims
from seresnet.config import RunConfig, run_id, to_dict
from seresnet.config_file import config_from_dict
from seresnet.run_folder import RunFolder, RunRecord

PROGRAM = (sys.executable, str(Path(__file__).with_name("rank_program.py")), "{run_dir}")
TASK = "0001/0"

_SUPERVISE = """
import json, logging, sys
from pathlib import Path
from seresnet.signals import StopFlag
stop = StopFlag()
stop.install()
from hpc import nodes, supervisor
from hpc.paths import SweepFolder
logging.basicConfig(level=logging.INFO, format="%(asctime)s.%(msecs)03d %(message)s", stream=sys.stdout)
told = json.loads(sys.argv[1])
for name, value in told["limits"].items():
    setattr(nodes, name, value)
sys.exit(supervisor.run_task(SweepFolder(Path(told["sweep"])), told["task"], stop=stop, rank_command=told["command"]))
"""


class Scene:
    """A sweep of one task, and the supervisors of its nodes."""

    def __init__(self, folder: Path, *acts: str, ranks: int = 2, nodes: int = 2, command: Sequence[str] = PROGRAM, **config: Any) -> None:
        """A run for each string of acts. config: sections of a RunConfig that differ from the defaults."""
        self.folder, self.nodes, self.command = folder, nodes, list(command)
        self.sweep = SweepFolder(folder / "sweep")
        self.sweep.path.mkdir()
        names = [f"run{index}" for index in range(len(acts))]
        whole = to_dict(RunConfig())
        whole = {section: {**keys, **config.get(section, {})} for section, keys in whole.items()}
        whole["train"] |= {"ranks": ranks, "nodes": nodes}
        whole["train"]["epochs"] = config.get("train", {}).get("epochs", 1)
        ids = {name: run_id(config_from_dict(whole, "scene")) if config else name for name in names}
        Plan(
            sweep="sweep", salt="0", arms={"a": tuple(ids.values())}, tasks={TASK: tuple(ids.values())},
            wandb=WandbSettings(mode="disabled"),
            runs={ids[name]: PlannedFolder(slug=name, folder=name, arms=("a",)) for name in names},
        ).write(self.sweep)  # fmt: skip
        for name, act in zip(names, acts, strict=True):
            run = RunFolder(path=self.sweep.path / name)
            run.create()
            (run.path / "acts.txt").write_text(act)
            RunRecord(run_id=ids[name], slug=name, config=whole).write(run)
        self.supervisors: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *which: int, restarts: int = 0, **limits: float) -> "Scene":
        """Start the supervisors of these nodes, by default of all."""
        told = {"sweep": str(self.sweep.path), "task": TASK, "command": self.command, "limits": limits}
        for node in which or range(self.nodes):
            env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SERESNET"))}
            env |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": str(self.nodes), "SLURM_NODEID": str(node), "SLURM_STEP_ID": "0"}
            env |= {"SLURMD_NODENAME": f"n{node + 1}", "SLURM_RESTART_COUNT": str(restarts), "OMP_NUM_THREADS": "1"}
            env |= {"PATH": "/nonexistent", "PYTHONPATH": os.getcwd()}  # noqa: PTH109 - no scontrol: the machine may have Slurm's clients
            with open(self.folder / f"node{node}.out", "ab") as output:
                args = [sys.executable, "-c", _SUPERVISE, json.dumps(told)]
                self.supervisors[node] = subprocess.Popen(args, env=env, stdout=output, stderr=subprocess.STDOUT)
        return self

    def codes(self, timeout_s: float = 60.0) -> list[int]:
        """Wait for all that were started; their exit codes, by node."""
        limit = time.monotonic() + timeout_s
        while any(process.poll() is None for process in self.supervisors.values()):
            assert time.monotonic() < limit, f"not over within {timeout_s} s\n{self.say()}"
            time.sleep(0.02)
        return [self.supervisors[node].returncode for node in sorted(self.supervisors)]

    def wait_until_serving(self, *ranks: int, generation: int = 1, run: str = "run0") -> list[int]:
        """The pids of these ranks, once all of them wait for a stop."""
        return [int(self.wait_for(self.sweep.path / run / f"serving-{generation}-{rank}")) for rank in ranks]

    def wait_for(self, path: Path, timeout_s: float = 30.0) -> str:
        """The text of a file, once there is one."""
        limit = time.monotonic() + timeout_s
        while not path.exists() or not path.read_text():
            assert time.monotonic() < limit, f"no {path.name} within {timeout_s} s\n{self.say()}"
            time.sleep(0.02)
        return path.read_text()

    def endings(self, run: str = "run0") -> list[str]:
        return [end.ending if end else "none" for end in self._ends(run)]

    def reasons(self, run: str = "run0") -> list[str]:
        return [str(end and end.reason) for end in self._ends(run)]

    def say(self) -> str:
        logs = [*sorted(self.folder.glob("node*.out")), *sorted(self.sweep.path.glob("run*/log*.txt"))]
        return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in logs)

    def close(self) -> None:
        for process in self.supervisors.values():
            process.kill()
            process.wait()

    def _ends(self, run: str) -> list[claims.End | None]:
        folder = RunFolder(path=self.sweep.path / run)
        return [claims.read_end(folder, claim.generation) for claim in claims.read_claims(folder)]


def is_gone(pid: int) -> bool:
    """Whether a process is dead; one that nobody has waited for yet is."""
    state = claims.process_state(pid)
    return state is None or state[0] in "ZX"


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until it held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)
    return time.monotonic() - began
