"""What contradicting labels make impossible: counted before any training, by a number for each different input."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class ConflictFloor(NamedTuple):
    """What contradicting labels cost: see :func:`label_conflict_floor`.

    Attributes:
        best_accuracy: the highest training accuracy that any function of the inputs can have.
        groups: (N,) int64; examples with the same number have the same input.
        agreement: (N,) float64, of the examples with this input the share with this label; below 1 they contradict each other.
        errors: the fewest errors of any function of the inputs.
    """

    best_accuracy: float
    groups: Tensor
    agreement: Tensor
    errors: int


def label_conflict_floor(X: Tensor, y: Tensor) -> ConflictFloor:
    """The best training accuracy that is possible where identical inputs carry different labels.

    Args:
        X: (N, ...) of any type: images, rows of a table, token ids. Inputs are the same if all their numbers are; 0 and -0 are.
        y: (N,) int64 labels.
    """
    groups = _same(X)
    # Each input with each of its labels, and how often it has that one.
    pairs, place, counts = torch.stack([groups, y.cpu()], dim=1).unique(dim=0, return_inverse=True, return_counts=True)
    most = torch.zeros(int(groups.max()) + 1, dtype=torch.int64).scatter_reduce(0, pairs[:, 0], counts, "amax")
    errors = len(y) - int(most.sum())
    agreement = counts[place].double() / torch.bincount(groups)[groups]
    return ConflictFloor(1 - errors / len(y), groups, agreement, errors)


def _same(X: Tensor) -> Tensor:
    """(N,) int64: a number for each input in order of appearance, the same where its bytes are."""
    rows = X.detach().cpu().reshape(len(X), -1)
    if rows.is_floating_point():
        rows = rows + 0.0  # -0 becomes 0, which has other bytes
    table = rows.contiguous().view(torch.uint8).numpy()
    whole = table.view(np.dtype((np.void, table.shape[1]))).ravel()
    _, first, groups = np.unique(whole, return_index=True, return_inverse=True)
    return torch.from_numpy(first.argsort().argsort()[groups].astype(np.int64))
