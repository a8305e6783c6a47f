"""The check under every "same bits": two engines, one of which goes on from the other's state."""

import torch

from seresnet.engine import Engine


def assert_same_bits_after_a_resume(first: Engine, second: Engine, before: int, after: int) -> None:
    """Train `before` steps, hand the state over, train both `after` more, compare every tensor and scalar."""
    for _ in range(before):
        first.train_step()
    second.load(first.state(first.epoch_sums()))
    for _ in range(after):
        first.train_step()
        second.train_step()
    one, two = first.state(first.epoch_sums()), second.state(second.epoch_sums())
    different = [name for name in one.tensors if not torch.equal(one.tensors[name], two.tensors[name])]
    assert not different, different
    assert one.scalars == two.scalars
