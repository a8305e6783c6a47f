"""The processes of one run: who I am, how we meet, how we agree to stop, how we part.

Gradients go over NCCL or gloo by DistributedDataParallel; everything that steers goes over a gloo group of its own, so that no
device is waited for. Where ranks meet is told by the environment: a supervisor's file (one node), a supervisor's socket (several),
or torchrun's. One invariant: every rank calls agree() equally often.
"""

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from seresnet.errors import ConfigError

#: A rank that is gone must not keep the others from exiting within the 12 s that the supervisor gives ranks.
PARTING_LIMIT = timedelta(seconds=10)
#: All ranks have begun by then, or one never will: what torch waits for a rendezvous by default is as long for NCCL.
MEETING_LIMIT = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the ranks of its run."""

    rank: int
    local_rank: int
    size: int
    local_size: int = 1  # ranks on this node
    device: torch.device
    control: Any = None  # gloo group for flags and small sums; None with one rank

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum of an int64 CPU tensor over all ranks; every rank must call it."""
        values = values.clone()
        if self.size > 1:
            dist.all_reduce(values, group=self.control)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value, group=self.control)
        return box

    def part(self) -> bool:
        """Wait for all ranks, at most 10 s, and leave the groups; False if somebody did not come."""
        if self.size == 1:
            return True
        try:
            dist.monitored_barrier(group=self.control, timeout=PARTING_LIMIT)
            dist.destroy_process_group()
        except (RuntimeError, ValueError):
            return False
        return True


def join(device_kind: str, environ: Mapping[str, str] = os.environ) -> World:
    """Meet the other ranks as the supervisor's or torchrun's environment says; alone when WORLD_SIZE is 1 or unset.

    Raises ConfigError when the config asks for cuda and there is none: a crawl on the CPU would pass for training.
    """
    size, rank = int(environ.get("WORLD_SIZE", "1")), int(environ.get("RANK", "0"))
    local_rank = int(environ.get("LOCAL_RANK", "0"))
    device = _device(device_kind, local_rank)
    if size == 1:
        return World(rank=0, local_rank=0, size=1, device=device)
    meeting: dict[str, Any] = {"init_method": environ.get("SERESNET_INIT_METHOD", "env://")}
    if address := environ.get("SERESNET_STORE"):
        meeting = {"store": _meet(address, environ.get("SERESNET_STORE_FD"), rank, size)}
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=MEETING_LIMIT, **meeting)
    control = dist.new_group(backend="gloo")
    local_size = int(environ.get("LOCAL_WORLD_SIZE", size))
    return World(rank=rank, local_rank=local_rank, size=size, local_size=local_size, device=device, control=control)


def _meet(address: str, listen_fd: str | None, rank: int, size: int) -> Any:
    """The store of ranks on several nodes, once all of them are there. Rank 0 serves it on the socket that its supervisor has bound.

    address: "host:port". Raises ConfigError for an address that is none, and RuntimeError when somebody does not come.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"SERESNET_STORE: {address!r} is not host:port. It is set by hpc.supervisor; unset it.")
    serving: dict[str, Any] = {"is_master": True, "master_listen_fd": int(listen_fd)} if listen_fd else {}
    store = _open_store(host, int(port), size, serving)
    store.set(f"here/{rank}", "")
    limit = time.monotonic() + MEETING_LIMIT.total_seconds()
    # Asking, not store.wait(): handlers of signals run between lines of Python only, and a stop must not wait for a rank that is late.
    while not store.check([f"here/{other}" for other in range(size)]):
        if time.monotonic() > limit:
            raise RuntimeError(f"not all {size} ranks came to {address} within {MEETING_LIMIT}")
        time.sleep(0.05)
    return store


def _open_store(host: str, port: int, size: int, serving: Mapping[str, Any]) -> Any:
    # In a thread, for the same reason: a client's constructor blocks until rank 0 serves, whatever its timeout says (seen, 6 s for 1 s).
    made: list[Any] = []

    def make() -> None:
        try:
            made.append(dist.TCPStore(host, port, size, timeout=MEETING_LIMIT, wait_for_workers=False, **serving))  # type: ignore[attr-defined]
        except Exception as error:
            made.append(error)

    thread = threading.Thread(target=make, name="store", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
    (store,) = made
    if isinstance(store, Exception):
        raise store
    return store


def _device(kind: str, local_rank: int) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "train.device: cuda, but this process sees no CUDA device. "
            "Ask for a GPU (site gres), install a CUDA build of torch, or set train.device: cpu."
        )
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"train.ranks: local rank {local_rank} has no GPU, this process sees {torch.cuda.device_count()}. "
            "Lower train.ranks or ask for more GPUs."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


class Agreement:
    """One flag vector that all ranks share, one call late: no step waits for a slow rank's flag.

    With one rank the answer is immediate.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: tuple[Any, Tensor] | None = None

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Offer my flags; returns which of them any rank had raised at the previous call (all False at the first)."""
        if self._world.size == 1:
            return flags
        agreed = self._collect(len(flags))
        offer = torch.tensor(flags, dtype=torch.int32)
        self._pending = (dist.all_reduce(offer, op=dist.ReduceOp.MAX, group=self._world.control, async_op=True), offer)
        return agreed

    def settle(self) -> None:
        """Wait for the last offer, so that no collective is in flight when the groups go."""
        self._collect(0)

    def _collect(self, width: int) -> tuple[bool, ...]:
        if self._pending is None:
            return (False,) * width
        work, offer = self._pending
        work.wait()
        self._pending = None
        return tuple(bool(flag) for flag in offer.tolist())
