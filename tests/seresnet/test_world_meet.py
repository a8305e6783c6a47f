"""How ranks on several nodes meet: over a socket that somebody else has bound, and with an ear for stop requests while they wait."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from seresnet import world
from seresnet.errors import ConfigError

_RANK = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
import torch
from seresnet import world
print("waiting", flush=True)
met = world.join("cpu")
total = met.sum(torch.tensor([met.rank + 1]))
print(met.rank, met.size, met.local_rank, met.local_size, int(total[0]), met.part(), flush=True)
os._exit(0)
"""


def _start(rank: int, listener: socket.socket, size: int = 2) -> "subprocess.Popen[str]":
    """One of `size` ranks, alone on its node; rank 0 serves on the listener."""
    env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
    env["SERESNET_STORE"] = f"127.0.0.1:{listener.getsockname()[1]}"
    fds = [listener.fileno()] if rank == 0 else []
    env |= {"SERESNET_STORE_FD": str(fds[0])} if fds else {}
    return subprocess.Popen([sys.executable, "-c", _RANK], env=env, pass_fds=fds, stdout=subprocess.PIPE, text=True)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_ranks_meet_over_the_socket_that_was_bound_for_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        processes = [_start(rank, listener) for rank in (1, 0)]  # the client is there before the server
    said = [process.communicate(timeout=90)[0].splitlines()[-1] for process in processes]
    assert said == ["1 2 0 1 3 True", "0 2 0 1 3 True"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_request_does_not_wait_for_a_rank_that_is_late(rank: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = _start(rank, listener)
        assert _line(process) == "waiting"
        time.sleep(1)  # rank 1: inside the store's constructor; rank 0: where it counts who has come
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert (process.wait(30), time.monotonic() - began < 3) == (75, True)


def test_an_address_that_is_none_is_refused() -> None:
    environ = {"WORLD_SIZE": "2", "RANK": "1", "SERESNET_STORE": "nowhere"}
    with pytest.raises(ConfigError, match=r"^SERESNET_STORE: 'nowhere' is not host:port\."):
        world.join("cpu", environ)
