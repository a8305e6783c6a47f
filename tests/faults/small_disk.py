"""A tmpfs of 64 MB for one child process: mounted in a mount namespace of its own, so that nobody else sees it and nothing stays behind.

Needs root, or user namespaces. Where neither is allowed, as in a container without extra privileges, /dev/shm is taken if it is as small.
"""

import ctypes
import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SIZE_MB = 64
_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000
_PROCESSES = multiprocessing.get_context("fork")

Work = Callable[[Path], dict[str, Any]]


class NoSmallDiskError(Exception):
    """Nothing here can be filled up without harm to others."""


def on_small_disk(work: Work, limit_s: float = 120) -> dict[str, Any]:
    """What work returns of an empty folder on a small disk; it runs in a forked child. Raises NoSmallDiskError."""
    ours, theirs = _PROCESSES.Pipe()
    point = Path(tempfile.mkdtemp(prefix="small-disk-"))
    process = _PROCESSES.Process(target=_child, args=(work, point, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = json.loads(ours.recv_bytes()) if ours.poll(limit_s) else {"error": f"not done after {limit_s} s"}
    except EOFError:
        answer = {"error": "the child died"}
    process.kill()
    process.join(10)
    point.rmdir()  # the mount has gone with the child's namespace
    if "no disk" in answer:
        raise NoSmallDiskError(answer["no disk"])
    assert "error" not in answer, answer["error"]
    return dict(answer)


def _child(work: Work, point: Path, pipe: Connection) -> None:
    try:
        folder, is_mount = _find(point)
    except (OSError, subprocess.SubprocessError) as error:
        pipe.send_bytes(json.dumps({"no disk": str(error)}).encode())
        return
    try:
        answer = work(folder)
    except Exception as error:
        answer = {"error": repr(error)}
    if not is_mount:
        shutil.rmtree(folder, ignore_errors=True)
    pipe.send_bytes(json.dumps(answer).encode())


def _find(point: Path) -> tuple[Path, bool]:
    try:
        _leave_mounts()
        _mount("--make-rprivate", "/")
        _mount("-t", "tmpfs", "-o", f"size={SIZE_MB}m", "none", str(point))
        return point, True
    except (OSError, subprocess.SubprocessError) as error:
        shm = os.statvfs("/dev/shm")
        if shm.f_blocks * shm.f_frsize > (SIZE_MB << 20) or shm.f_bavail * shm.f_frsize < (SIZE_MB << 20) * 0.9:
            raise OSError(f"no mount namespace ({error}), and /dev/shm is not {SIZE_MB} MB that nobody uses") from error
        return Path(tempfile.mkdtemp(prefix="small-disk-", dir="/dev/shm")), False


def _leave_mounts() -> None:
    """Into a mount namespace of our own; as an ordinary user also into a user namespace in which we are root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) == 0:
        return
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_NEW_USER | _NEW_MOUNTS) != 0:
        raise OSError(ctypes.get_errno(), "unshare is not allowed")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, timeout=20)
