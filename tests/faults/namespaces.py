"""A process in a PID namespace of its own: as root, or in a user namespace, or, where neither is let, as if.

As if: the namespace has another name and no pid of ours means anything, which is all that claims can see of one.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

_NEWUSER, _NEWPID = 0x10000000, 0x20000000


def call_inside(call: Callable[[bool], None]) -> NoReturn:
    """Call it as pid 1 of a new PID namespace, with True, or with False as if in one. Ends this process, which must have one thread."""
    from seresnet.signals import prctl

    set_option = prctl() if sys.platform.startswith("linux") else None
    if set_option is None or not _enter():
        _pretend()
        call(False)
        os._exit(0)
    if (child := os.fork()) == 0:
        set_option(1, 9)  # dies with this process, whose pid means something outside
        call(True)
        os._exit(0)
    os.waitpid(child, 0)
    os._exit(0)


def _enter() -> bool:
    """Whether the next child is the first of a new PID namespace."""
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if libc.unshare(_NEWPID) == 0:
        return True
    if libc.unshare(_NEWUSER | _NEWPID) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    except OSError:
        return False
    return True


def _pretend() -> None:
    from seresnet import claims, process_identity

    def kill(pid: int, number: int) -> None:
        raise ProcessLookupError(f"no process {pid} here")

    claims.pid_namespace = lambda: f"pid:[{os.getpid()}]"  # type: ignore[assignment]
    process_identity.os = _Os(kill)  # type: ignore[assignment]


class _Os:
    """The module os with another kill."""

    def __init__(self, kill: Callable[[int, int], None]) -> None:
        self.kill = kill

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)
