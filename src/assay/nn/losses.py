"""Losses that several papers compare with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def inverse_frequencies(labels: Tensor, num_classes: int) -> tuple[float, ...]:
    """Weights by which every class counts the same, N / (K n_k): the usual remedy for rare classes.

    Args:
        labels: (N,) int64.
        num_classes: K. A class without examples gets the weight 0.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    return tuple(torch.where(counts > 0, len(labels) / (num_classes * counts), 0.0).tolist())


def balanced_cross_entropy(logits: Tensor, labels: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Cross-entropy in which every class counts by its weight: the weighted mean over the batch.

    Args:
        logits: (B, C).
        labels: (B,) int64, or (B, C) float shares of the classes; then the sum is divided by B.
        weights: C of them, as from :func:`inverse_frequencies`.
    """
    return F.cross_entropy(logits, labels, weight=logits.new_tensor(weights))
