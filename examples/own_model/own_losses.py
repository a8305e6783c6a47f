"""A loss that knows nothing of this toolkit."""

import torch
from torch import Tensor


def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al. 2017) of soft targets, one number for each sample. logits, targets: (N, K)."""
    log_p = torch.log_softmax(logits, dim=1)
    return -(targets * (1 - log_p.exp()) ** gamma * log_p).sum(1)
