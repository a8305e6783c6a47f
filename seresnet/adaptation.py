"""Batch norm's statistics taken again from unlabelled images of a shifted set, mixed with those of training. Weights stay as they are.

Source: Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation". One invariant: the
given classifier is not changed.
"""

import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from seresnet.trained import Classifier

_BATCH = 500


@torch.no_grad()
def adapted(classifier: Classifier, images: npt.NDArray[np.uint8], source_share: float = 0.0) -> Classifier:
    """A copy whose statistics are source_share of training's and the rest of these images'. images: (N, H, W, 3) uint8, unlabelled.

    As in training, each batch of about 500 is normalised by its own statistics on its way through; their means over the batches stay.
    """
    assert 0 <= source_share <= 1, f"a share of {source_share}"
    network = copy.deepcopy(classifier.network)
    found = replace(classifier, network=network)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    pairs = [(norm.running_mean, norm.running_var) for norm in norms]
    source = [(mean.clone(), var.clone()) for mean, var in pairs if mean is not None and var is not None]
    assert len(source) == len(norms), "batch norm without statistics"
    if source_share == 1 or not len(images):
        return found
    _take_statistics(found, norms, images)
    for norm, (mean, var) in zip(norms, source, strict=True):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.lerp_(mean, source_share)
        norm.running_var.lerp_(var, source_share)
    return found


def _take_statistics(classifier: Classifier, norms: list[_BatchNorm], images: npt.NDArray[np.uint8]) -> None:
    """Leaves in each batch norm the mean over batches of mean and variance."""
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: every batch counts alike
        norm.train()
    classifier.logits(images, batch_size=_even(len(images)))
    for norm in norms:
        norm.eval()


def _even(n: int) -> int:
    """A batch size of about 500 that leaves no small batch at the end, which would count as much as the others."""
    batches = max(1, round(n / _BATCH))
    return -(-n // batches)
