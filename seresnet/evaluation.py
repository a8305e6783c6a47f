"""Loss, accuracy and confusion of a run over a split: every sample exactly once at any number of ranks. Which weights: engine.py says.

Sums are exact integers, so the order of ranks changes no bit of a mean. Training state is not touched but for the other ranks'
batch-norm buffers, which become rank 0's first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seresnet.augment import normalise
from seresnet.data import Split
from seresnet.engine import LOSS_UNIT, Engine, is_countable


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Totals over a split. confusion[true][predicted] counts samples."""

    loss: float | None  # mean cross-entropy against the hard label; None if it was not finite
    confusion: list[list[int]]

    @property
    def n(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def top1_pct(self) -> float:
        return 100 * sum(row[i] for i, row in enumerate(self.confusion)) / max(1, self.n)


def evaluate(engine: Engine, split: Split, should_stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
    """Evaluate on all ranks together; None if the ranks agreed to stop, and then nothing of it may be used.

    Every rank calls should_stop equally often, also those whose share of the samples is smaller.
    """
    network = engine.network_to_evaluate()
    shares = _shares(len(split), engine.world.size)
    size = engine.config.train.eval_batch_size
    mine = shares[engine.world.rank]
    sums = torch.zeros(2, dtype=torch.int64, device=engine.world.device)
    confusion = torch.zeros(engine.batches.classes**2, dtype=torch.int64, device=engine.world.device)
    for start in range(0, max(map(len, shares)), size):
        if should_stop():
            return None
        _add_batch(engine, network, split, mine[start : start + size], sums, confusion)
    totals = engine.world.sum(torch.cat((sums, confusion)).cpu())
    return _evaluation(totals, len(split), engine.batches.classes)


@torch.no_grad()
def _add_batch(engine: Engine, network: nn.Module, split: Split, rows: range, sums: Tensor, confusion: Tensor) -> None:
    if not rows:
        return
    images, labels = split.batch(rows)
    with engine.autocast():
        logits = network(engine.laid_out(normalise(images, engine.batches.mean, engine.batches.std)))
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum").double()
    finite = is_countable(loss)
    sums += torch.stack((torch.where(finite, loss * LOSS_UNIT, 0.0).round().long(), (~finite).long()))
    cells = labels * engine.batches.classes + logits.argmax(1)
    # scatter_add_ of integers: exact in any order, and deterministic on every device.
    confusion.scatter_add_(0, cells, torch.ones_like(cells))


def _evaluation(totals: Tensor, n: int, classes: int) -> Evaluation:
    loss = None if int(totals[1]) or not n else int(totals[0]) / LOSS_UNIT / n
    confusion: list[list[int]] = totals[2:].view(classes, classes).tolist()
    result = Evaluation(loss=loss, confusion=confusion)
    assert result.n == n, f"{result.n} of {n} samples were evaluated"
    return result


def _shares(n: int, parts: int) -> list[range]:
    """Contiguous shares of n samples that differ by at most one."""
    bounds = [n * part // parts for part in range(parts + 1)]
    return [range(bounds[part], bounds[part + 1]) for part in range(parts)]
