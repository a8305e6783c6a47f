"""What happens to jobs on a real cluster, done on purpose to the private one: evictions, requeues, lost nodes, kills, time limits.

Every disturbance is done to one array task and returns when it has been done, not when it is over. Victims are found by the job id in
the environment of processes, never by name, so that nothing outside the cluster is touched.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster, ClusterError

#: How long a lost node stays lost: past SlurmdTimeout (10 s), when Slurm requeues what ran there.
LOST_S = 16.0


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of a job, as its environment tells."""

    pid: int
    parent: int
    node: str
    job_id: str  # "12_3" or "12"
    command: str


def processes(cluster: Cluster) -> Iterator[Process]:
    """Every process of a job of this cluster."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            env = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            if env.get("SLURM_CONF") != cluster.env["SLURM_CONF"] or "SLURM_JOB_ID" not in env or "SLURMD_NODENAME" not in env:
                continue
            array, index = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
            job_id = f"{array}_{index}" if array and index else env["SLURM_JOB_ID"]
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            yield Process(pid=int(entry.name), parent=parent, node=env["SLURMD_NODENAME"], job_id=job_id, command=command)


def durable_step(run: Path) -> int:
    """The highest step in the names of a run's checkpoints."""
    steps = [int(path.name.split("-s")[1].split("-")[0]) for path in run.glob("ckpt/g*-s*-*.safetensors")]
    return max(steps, default=0)


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Disturber:
    """The disturbances, each a method that takes a running array task; the name of a method is what the log says."""

    def __init__(self, cluster: Cluster, draw: Callable[[int], int]) -> None:
        """draw(n): a number below n."""
        self.cluster, self.draw = cluster, draw
        self._restoring: list[threading.Thread] = []
        self._lost: list[threading.Thread] = []
        self._errors: list[Exception] = []
        self._limits: dict[str, str] = {}  # task -> the time limit that it was sent with
        self._killed_at: dict[str, int] = {}  # run folder -> its newest durable step when a rank was last killed

    def node_of(self, task: str) -> str:
        """The first node of a task."""
        nodes = self.cluster.command("scontrol", "show", "hostnames", self.cluster.show_job(task)["NodeList"]).split()
        return nodes[self.draw(len(nodes))]

    def evicted(self, task: str) -> str:
        """A job of higher priority takes the whole node."""
        node = self.node_of(task)
        self.cluster.fill(node, seconds=3)
        return f"everything on {node}"

    def requeued_by_hand(self, task: str) -> str:
        """`scontrol requeue` by the user: the step is killed within a second."""
        self.cluster.run_as_user(["scontrol", "requeue", task])
        return "scontrol requeue"

    def rank_killed(self, task: str) -> str:
        """kill -9 of one rank, where the run has saved since the last one: three in a row without progress stop a run, and rightly so."""
        ranks = [process for process in processes(self.cluster) if process.job_id == task and "seresnet.train" in process.command]
        if not ranks:
            return ""
        victim = ranks[self.draw(len(ranks))]
        folder = victim.command.partition("--run-dir ")[2].split(" ")[0]
        step = durable_step(Path(folder))
        if step <= self._killed_at.get(folder, 0):
            return ""
        self._killed_at[folder] = step
        kill(victim.pid)
        return f"pid {victim.pid} on {victim.node}"

    def out_of_time(self, task: str) -> str:
        """The time limit of the running job ends in some seconds."""
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 4))
        before = self.cluster.show_job(task)
        self._limits.setdefault(task, before["TimeLimit"])
        self.cluster.command("scontrol", "update", f"JobId={task}", f"EndTime={end}")
        self._later(self._give_time_back, task, before)
        return f"EndTime={end}"

    def _give_time_back(self, task: str, before: dict[str, str]) -> None:
        """EndTime shortens the job's limit for good: without this each later attempt would end before its first step."""
        deadline = time.monotonic() + 60
        while self.cluster.show_job(task).get("Restarts") == before.get("Restarts") and time.monotonic() < deadline:
            time.sleep(0.3)
        while self.cluster.show_job(task).get("TimeLimit") != self._limits[task] and time.monotonic() < deadline:
            self.cluster.command("scontrol", "update", f"JobId={task}", f"TimeLimit={self._limits[task]}", check=False)
            time.sleep(0.3)

    def node_lost(self, task: str) -> str:
        """The node is gone with everything on it, and comes back after Slurm has noticed."""
        return self._lose(self.node_of(task), takes_processes=True)

    def node_cut_off(self, task: str) -> str:
        """Slurm loses the node, but what trains there trains on: two owners, of which one must give up.

        Not the job's script and its srun: an srun that outlives its node asks Slurm to end "its" step, and the step of the requeued
        job has the same name (seen: the new attempt was killed).
        """
        return self._lose(self.node_of(task), takes_processes=False)

    def _lose(self, node: str, *, takes_processes: bool) -> str:
        here = [process for process in processes(self.cluster) if process.node == node]
        keepers = {process.parent for process in here} - {process.pid for process in here}
        stepds = [pid for pid in keepers if "slurmstepd" in _command(pid)]
        scripts = [process for process in here if "slurm_script" in process.command]
        above = [process.parent for process in scripts if process.parent in stepds]
        sruns = [process.pid for process in here if process.command.startswith("srun ")]
        slurmd = int((self.cluster.path / f"slurmd-{node}.pid").read_text())
        # In the order in which none can tell slurmctld of another's end, as none can from a lost node: a slurmstepd reports its script's, a
        # script comes back from srun, an srun has a child that asks for the step's end when it is gone, and both do when the step is.
        for pid in (slurmd, *above, *(process.pid for process in scripts), *reversed(sruns), *stepds):
            kill(pid)
        if takes_processes:
            for process in here:
                kill(process.pid)
        self._lost.append(self._later(self._restore, node))
        return f"{node}, {len(here)} processes{'' if takes_processes else ' live on'}"

    def _restore(self, node: str) -> None:
        time.sleep(LOST_S)
        (self.cluster.path / f"slurmd-{node}.pid").unlink(missing_ok=True)
        self.cluster.command("slurmd", "-N", node, "-f", self.cluster.env["SLURM_CONF"])

    def _later(self, action: Callable[..., None], *args: object) -> threading.Thread:
        def act() -> None:
            try:
                action(*args)
            except (ClusterError, subprocess.SubprocessError) as error:
                self._errors.append(error)

        thread = threading.Thread(target=act)
        thread.start()
        self._restoring.append(thread)
        return thread

    def clean_up(self) -> None:
        """Wait until every lost node is back, and leave no process of a job that Slurm has forgotten."""
        self.wait_until_restored()
        for process in processes(self.cluster):
            kill(process.pid)

    def wait_until_restored(self) -> None:
        """Every lost node is back."""
        for thread in self._restoring:
            thread.join()
        self._restoring.clear()
        if self._errors:
            raise self._errors[0]

    @property
    def has_lost_a_node(self) -> bool:
        return any(thread.is_alive() for thread in self._lost)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
