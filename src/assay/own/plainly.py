"""Networks for texts in the plain way, for those who follow what they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from assay.nn import text
from assay.papers.text.text_cnn import TextCNN


@contextmanager
def plainly() -> Iterator[None]:
    """Inside, networks for texts look at padding too, in place of leaving it out to save time. They give the same.

    How much is left out depends on the values of a batch, which a graph cannot follow when a network is exported.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(text, "_present", _all_places))
        stack.enter_context(patch.object(TextCNN, "pooled", _pooled_with_padding))
        yield


def _words_at(ids: Tensor) -> Tensor:
    """Where words stand: (B, L) bool. A text without any word has its first place."""
    return (ids != 0) | (torch.arange(ids.shape[1], device=ids.device) == 0)


def _all_places(ids: Tensor) -> tuple[Tensor, Tensor]:
    return ids, _words_at(ids)


def _pooled_with_padding(network: TextCNN, ids: Tensor) -> Tensor:
    """What ``TextCNN.pooled`` computes: the largest response of each filter to a view that has at least one word in it."""
    count, length = ids.shape
    vectors = network._vectors(ids.flatten()).view(count, length, -1).transpose(1, 2).unsqueeze(2)  # (B, dim, 1, L)
    lengths = _words_at(ids).sum(dim=1, keepdim=True)  # (B, 1)
    found = []
    for width, filters in zip(network.widths, network.filters, strict=True):
        seen = filters(F.pad(vectors, (width - 1, width - 1))).squeeze(2)  # (B, maps, L + width - 1)
        blind = torch.arange(length + width - 1, device=ids.device) >= lengths + width - 1  # (B, L + width - 1)
        found.append(seen.masked_fill(blind.unsqueeze(1), float("-inf")).amax(dim=2))
    return torch.cat(found, dim=1).relu()
