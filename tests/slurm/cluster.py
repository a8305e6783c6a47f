"""A private two-node Slurm cluster on this machine: own folder, own ports, own munge socket, own database.

Nothing of the system's own is touched, several clusters can exist, and daemons are stopped by their pid files only. Jobs are
submitted as an ordinary user, because as root every job is uid 0. By hand: `python tests/slurm/cluster.py up DIR`, then
`eval "$(python tests/slurm/cluster.py env DIR)"`, at last `python tests/slurm/cluster.py down DIR`. Needs root and Debian's packages.
"""

import contextlib
import json
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster_conf import SLURM_CONF, SLURMDBD_CONF

USER = "hpctest"
NODES = ("n1", "n2")
CPUS_PER_NODE = 4
GPUS_PER_NODE = 2
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
#: In the order of their start. slurmd writes one pid file a node.
PID_FILES = ("munged", "mariadbd", "slurmdbd", "slurmctld", *(f"slurmd-{node}" for node in NODES))


class ClusterError(Exception):
    """The cluster cannot be started here, or did not do what was asked of it."""


def why_not() -> str | None:
    """What this machine lacks for a cluster, or None."""
    if os.geteuid() != 0:
        return "needs root: daemons of a private Slurm cluster start jobs as an ordinary user"
    missing = [name for name in PROGRAMS if _find(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: slurm-wlm slurm-client slurmdbd munge mariadb-server)"
    return None


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until(ready: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    limit = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > limit:
            raise ClusterError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.1)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster in `folder`; made by up(), found again by load(). `work` belongs to the ordinary user."""

    folder: str
    name: str
    ctld_port: int
    dbd_port: int
    sql_port: int
    node_ports: list[int]
    sql_password: str
    max_array_size: int

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def env(self) -> dict[str, str]:
        """What makes every Slurm client talk to this cluster."""
        return {"SLURM_CONF": str(self.path / "slurm.conf")}

    def command(self, *args: str, timeout_s: float = 60.0, check: bool = True) -> str:
        """Run a Slurm client or daemon as root; its stdout. Raises ClusterError with stderr."""
        program = [_find(args[0]) or args[0], *args[1:]]
        done = subprocess.run(program, env=self._root_env(), capture_output=True, text=True, timeout=timeout_s)
        if check and done.returncode:
            raise ClusterError(f"{shlex.join(args)} exited {done.returncode}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def popen_as_user(self, args: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] = {}) -> "subprocess.Popen[str]":
        """Start a program as the ordinary user, with a clean environment plus `env`."""
        person = pwd.getpwnam(USER)
        whole = {"PATH": os.environ["PATH"], "HOME": str(self.path / "home"), "USER": USER, "LOGNAME": USER, "LANG": "C.UTF-8"}
        whole["HPC_TABLE_AT_END"] = os.environ.get("HPC_TABLE_AT_END", "off")  # see tests/conftest.py
        return subprocess.Popen(
            list(args), cwd=cwd or self.work, env=whole | {"OMP_NUM_THREADS": "1"} | self.env | dict(env), text=True,
            user=person.pw_uid, group=person.pw_gid, extra_groups=[], umask=0o022,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run_as_user(
        self,
        args: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] = {},
        timeout_s: float = 120.0,
        check: bool = True,
    ) -> "subprocess.CompletedProcess[str]":
        """popen_as_user and wait. Raises ClusterError with both outputs when it fails and `check` is set."""
        process = self.popen_as_user(args, cwd, env)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        if check and process.returncode:
            raise ClusterError(f"{shlex.join(args)} exited {process.returncode}\nstdout: {out[-3000:]}\nstderr: {err[-3000:]}")
        return subprocess.CompletedProcess(list(args), process.returncode, out, err)

    def give_to_user(self, path: Path) -> None:
        """Make the ordinary user the owner of everything below path."""
        person = pwd.getpwnam(USER)
        for each in (path, *path.rglob("*")):
            os.chown(each, person.pw_uid, person.pw_gid, follow_symlinks=False)

    # --- jobs ---

    def show_job(self, job_id: str) -> dict[str, str]:
        """`scontrol show job`, one job or one array task, as a dict; {} for a job that is gone."""
        text = self.command("scontrol", "--oneliner", "show", "job", job_id, check=False)
        return dict(word.split("=", 1) for word in text.split("\n")[0].split() if "=" in word)

    def wait_for_job(self, job_id: str, wanted: Callable[[dict[str, str]], bool], what: str, timeout_s: float = 60.0) -> dict[str, str]:
        """Poll a job until `wanted` holds of its facts; returns them."""
        limit = time.monotonic() + timeout_s
        while not wanted(facts := self.show_job(job_id)):
            if time.monotonic() > limit:
                seen = {key: facts.get(key) for key in ("JobState", "Reason", "Restarts", "ExitCode", "NodeList")}
                raise ClusterError(f"job {job_id}: {what}: not within {timeout_s:.0f} s; it is {seen}")
            time.sleep(0.2)
        return facts

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float = 60.0) -> dict[str, str]:
        """Poll a job until it is in one of the states, COMPLETING not counted."""
        return self.wait_for_job(job_id, lambda facts: facts.get("JobState") in states, " or ".join(states), timeout_s)

    def fill(self, node: str, seconds: int = 8, partition: str = "high") -> str:
        """Submit a job that takes a whole node for so long; on `high` it evicts what runs there. Returns its id."""
        person = pwd.getpwnam(USER)
        args = ["sbatch", "--parsable", f"--uid={person.pw_uid}", f"--gid={person.pw_gid}", "-p", partition, "-w", node]
        args += [f"--cpus-per-task={CPUS_PER_NODE}", "-n1", "--chdir=/tmp", "--output=/dev/null", f"--wrap=sleep {seconds}"]
        return self.command(*args).strip()

    def cancel_everything(self) -> None:
        """Cancel every job and wait until none is left running or completing."""
        self.command("scancel", "--state=PENDING", "-u", USER, check=False)
        self.command("scancel", "-u", USER, check=False)
        _wait_until(lambda: not self.command("squeue", "--noheader", "--format=%i").strip(), "the queue is empty", 60)

    # --- daemons ---

    def start(self) -> None:
        """Start every daemon in order and wait until both nodes are idle. Stops what was started if one fails."""
        try:
            self._start_munged()
            self._start_mariadbd()
            self._start_slurmdbd()
            self.command("slurmctld", "-c", "-f", self.env["SLURM_CONF"])
            for node in NODES:
                self.command("slurmd", "-N", node, "-f", self.env["SLURM_CONF"])
            _wait_until(self._nodes_are_idle, "both nodes idle")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Cancel all jobs, then stop the daemons by their pid files, last started first."""
        if self._pid("slurmctld") and self._pid("munged"):
            with contextlib.suppress(ClusterError, subprocess.TimeoutExpired):
                self.cancel_everything()
        for name in reversed(PID_FILES):
            _stop_process(self._pid(name), name)
            (self.path / f"{name}.pid").unlink(missing_ok=True)

    def _start_munged(self) -> None:
        key = self.path / "munge.key"
        if not key.exists():
            key.write_bytes(secrets.token_bytes(128))
            key.chmod(0o400)
        names = {
            "socket": "munge.socket",
            "key-file": key.name,
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munged.seed",
        }
        options = [f"--{option}={self.path / name}" for option, name in names.items()]
        self.command("munged", "--force", *options)
        _wait_until((self.path / "munge.socket").exists, "munged's socket")

    def _start_mariadbd(self) -> None:
        data, log = self.path / "mariadb", self.path / "mariadbd.log"
        if not data.exists():
            self.command("mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db", timeout_s=120)
        options = [f"--datadir={data}", f"--port={self.sql_port}", f"--pid-file={self.path}/mariadbd.pid", f"--log-error={log}"]
        options += ["--user=root", "--bind-address=127.0.0.1", "--skip-name-resolve", f"--socket={self.path}/mariadbd.socket"]
        options += [f"--init-file={self.path}/init.sql", "--innodb-buffer-pool-size=32M", "--innodb-flush-log-at-trx-commit=0"]
        with open(log, "ab") as output:
            program = [_find("mariadbd") or "mariadbd", "--no-defaults", *options]
            subprocess.Popen(program, stdout=output, stderr=output, start_new_session=True, env=self._root_env())
        _wait_until(lambda: _answers(self.sql_port), "mariadbd answers")

    def _start_slurmdbd(self) -> None:
        self.command("slurmdbd")
        _wait_until(lambda: _answers(self.dbd_port), "slurmdbd answers")
        known = self.command("sacctmgr", "--noheader", "--parsable2", "show", "cluster", "format=cluster").split()
        if self.name not in known:
            self.command("sacctmgr", "-i", "add", "cluster", self.name)
            self.command("sacctmgr", "-i", "add", "account", "lab", "Description=test", "Organization=test")
            self.command("sacctmgr", "-i", "add", "user", USER, "Account=lab")

    def _nodes_are_idle(self) -> bool:
        return self.command("sinfo", "--noheader", "--Node", "--format=%T", "--partition=low", check=False).split() == ["idle"] * len(NODES)

    def _pid(self, name: str) -> int | None:
        try:
            pid = int((self.path / f"{name}.pid").read_text())
            os.kill(pid, 0)
            return pid
        except (OSError, ValueError):
            return None

    def _root_env(self) -> dict[str, str]:
        return {**os.environ, **self.env, "SLURM_CONF": str(self.path / "slurm.conf"), "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _stop_process(pid: int | None, name: str) -> None:
    if pid is None:
        return
    for number, patience_s in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        limit = time.monotonic() + patience_s
        while _is_alive(pid):
            if time.monotonic() > limit:
                break
            time.sleep(0.05)
        else:
            return
    raise ClusterError(f"{name} (pid {pid}) does not stop")


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError, OSError):
        os.waitpid(pid, os.WNOHANG)  # mariadbd is a child of ours when this process started it
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


def ensure_user() -> None:
    """Create the ordinary user if it is not there. It owns nothing outside a cluster's folder."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        program = [_find("useradd") or "useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/bash", USER]
        subprocess.run(program, check=True, capture_output=True)


def up(folder: Path, max_array_size: int = 1001, extra: str = "") -> Cluster:
    """Write the configuration into folder (made if missing) and start the cluster. Folder names over 80 characters break sockets.

    extra: further lines of slurm.conf, such as `RequeueExit=75`; with them accounting limits and other rules of a site are tried out.
    """
    reason = why_not()
    if reason:
        raise ClusterError(reason)
    ensure_user()
    ctld, dbd, sql, *nodes = _free_ports(3 + len(NODES))
    cluster = Cluster(
        folder=str(folder.resolve()), name=f"t{secrets.token_hex(3)}", ctld_port=ctld, dbd_port=dbd, sql_port=sql, node_ports=nodes,
        sql_password=secrets.token_hex(8), max_array_size=max_array_size,
    )  # fmt: skip
    _write_configuration(cluster, extra)
    cluster.start()
    return cluster


def _write_configuration(cluster: Cluster, extra: str) -> None:
    folder, host = cluster.path, socket.gethostname().split(".")[0]
    for each in (folder, folder / "state", cluster.work, folder / "home"):
        each.mkdir(parents=True, exist_ok=True)
        each.chmod(0o755)
    person = pwd.getpwnam(USER)
    for each in (cluster.work, folder / "home"):
        os.chown(each, person.pw_uid, person.pw_gid)
    for index in range(GPUS_PER_NODE):
        (folder / f"gpu{index}").unlink(missing_ok=True)
        os.mknod(folder / f"gpu{index}", 0o666 | 0o020000, os.makedev(1, 3))  # /dev/null by another name
    lines = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS_PER_NODE} RealMemory=8000 Gres=gpu:{GPUS_PER_NODE}"
        for node, port in zip(NODES, cluster.node_ports, strict=True)
    ]
    facts = {**asdict(cluster), "dir": folder, "host": host, "nodes": "\n".join(lines)}
    (folder / "slurm.conf").write_text(SLURM_CONF.format(**facts) + extra)
    # In place of a mail program: a line a message.
    (folder / "mail.sh").write_text(f'#!/bin/sh\necho "$*" >> {folder}/mail.txt\n')
    (folder / "mail.sh").chmod(0o755)
    (folder / "gres.conf").write_text(f"NodeName=n[1-{len(NODES)}] Name=gpu File={folder}/gpu[0-{GPUS_PER_NODE - 1}]\n")
    grant = "GRANT ALL ON slurm_acct.* TO 'slurm'@'127.0.0.1';\n"
    user = f"CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY '{cluster.sql_password}';\n"
    for name, text in (
        ("slurmdbd.conf", SLURMDBD_CONF.format(**facts)),
        ("init.sql", user + grant),
        ("cluster.json", json.dumps(asdict(cluster))),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)


def load(folder: Path) -> Cluster:
    """The cluster that up() made in this folder."""
    return Cluster(**json.loads((folder.resolve() / "cluster.json").read_text()))


def main(args: Sequence[str]) -> int:
    """up DIR | down DIR | env DIR"""
    if len(args) != 2 or args[0] not in ("up", "down", "env"):
        print("usage: cluster.py up DIR | down DIR | env DIR", file=sys.stderr)
        return 2
    try:
        cluster = up(Path(args[1])) if args[0] == "up" else load(Path(args[1]))
        if args[0] == "down":
            cluster.stop()
            return 0
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"export SLURM_CONF={shlex.quote(cluster.env['SLURM_CONF'])}")
    print(f"# ordinary user: {USER}, its folder: {cluster.work}")
    print(f"# run as it: setpriv --reuid {USER} --regid {USER} --clear-groups env HOME={cluster.path}/home COMMAND")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
