"""Weights by class counts against what they are to do."""

import pytest
import torch
from torch.nn import functional as F

from assay.train.losses import balanced_cross_entropy, inverse_frequencies


def test_every_class_counts_the_same() -> None:
    """Over all examples, the weighted mean is the mean over classes of their mean losses."""
    labels = torch.tensor([0] * 12 + [1] * 3 + [3])
    weights = inverse_frequencies(labels, 4)
    assert weights[2] == 0  # a class without examples
    assert torch.tensor(weights)[labels].sum().item() == pytest.approx(12.0)  # 16 examples, 3 of 4 classes
    logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    each = F.cross_entropy(logits, labels, reduction="none")
    by_class = torch.stack([each[labels == label].mean() for label in (0, 1, 3)])
    torch.testing.assert_close(balanced_cross_entropy(logits, labels, weights), by_class.mean())
