"""Losses that several papers use, each ``(logits, labels) -> scalar`` for ``Recipe(loss=...)``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def multi_label_loss(logits: Tensor, labels: Tensor, threshold: float | None = 0.2, smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy: for every class by itself, is it there or not?

    In a mixture of two examples both classes are there, and need not share a probability of 1.

    Args:
        logits: (B, C).
        labels: (B,) int64, or (B, C) float shares of the classes.
        threshold: classes with a larger share are there, the others not; ``None`` takes the shares as they are.
        smoothing: share of every target that is spread over all classes, after the threshold.

    Returns:
        A scalar, the sum over classes and mean over the batch; with whole labels never less than cross-entropy, of which it is
        a correction. Many take the mean over classes, which is C times as small; Adam and LAMB do not notice.
    """
    targets = labels if labels.dim() == 2 else F.one_hot(labels, logits.shape[1])
    if threshold is not None:
        targets = targets > threshold
    targets = targets.to(logits.dtype) * (1 - smoothing) + smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


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
