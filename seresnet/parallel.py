"""The network of several ranks: DistributedDataParallel that adds gradients up and leaves batch norm's buffers alone.

When gradients are exchanged, and that the order of buckets is settled before the first step, is engine.py's business.
"""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def share_gradients(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Wrap this rank's network; its losses are divided by the global batch already, so gradients are summed, not averaged."""
    ids = [device.index] if device.type == "cuda" else None
    parallel = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **_without_buffer_sync())
    parallel.register_comm_hook(None, _sum_gradients)
    return parallel


def _sum_gradients(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future


def _without_buffer_sync() -> dict[str, Any]:
    """The argument that keeps DDP from broadcasting buffers at each forward; torch 2.14 gave it another name."""
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
