"""Whether a process that somebody named by its pid still lives: what a pid means, and to whom.

Who owns a run is claims.py's business. One invariant: "dead" is said only of what was seen to be gone, a corpse or somebody else;
what cannot be told is alive.
"""

import os
import subprocess
import sys
from pathlib import Path


def is_dead(pid: int, started: str | None) -> bool:
    """Whether no process has this pid, or only one that began at another time, or a corpse that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it exists and is somebody else's
    state = process_state(pid)
    if state is None:
        return False
    return state[0] in "ZX" or (started is not None and state[1] != started)


def process_state(pid: int) -> tuple[str, str] | None:
    """(state letter, start time) of a process; the time means nothing but "the same or not". None where it cannot be told."""
    try:
        if not _sees_own_proc():
            return None
        # The command's name, in parentheses, may hold spaces and parentheses: fields count from the last one. proc(5): 3 and 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError, ValueError):
        pass
    line = _output_of("ps", "-o", "stat=,lstart=", "-p", str(pid)) if sys.platform == "darwin" else None
    state, _, started = (line or "").partition(" ")
    return (state[0], started.strip()) if state else None


def _sees_own_proc() -> bool:
    """Whether /proc is our PID namespace's. Mounted by the host and seen from a container, its 4711 is somebody else."""
    return os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115 - a str, as the pid is


def boot_id() -> str | None:
    if sys.platform == "darwin":
        return _output_of("sysctl", "-n", "kern.bootsessionuuid")
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None


def pid_namespace() -> str | None:
    """What gives a pid and a start time their meaning: the latter counts from the boot that the time namespace claims."""
    if sys.platform == "darwin":
        return "the only one"
    try:
        pids = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None
    try:
        return f"{pids} {Path('/proc/self/ns/time').readlink()}"
    except OSError:  # kernels before 5.6
        return pids


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
