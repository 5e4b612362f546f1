"""Networks for people's own data: tables with categories, and any other whose output is brought into the target's units."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from assay.nn import mlp

_MOST_DIMENSIONS = 16


class TableNet(nn.Module):
    """Embeddings of the categories beside the numbers, and a multi-layer perceptron on both (Guo and Berkhahn 2016).

    A category comes as columns of 0 and 1, and a linear layer without bias on them is an embedding: it picks the vector of the
    column that is 1. Unlike an index, such an input can be mixed with another, perturbed and attributed to.

    Args:
        in_features: columns of the input.
        num_classes: number of logits.
        groups: for each category, its first column and the one behind its last.
        hidden: units of the perceptron's layers.

    Shape: (B, in_features) -> (B, num_classes). A category of K words gets (K + 1) // 2 numbers, at most 16.
    """

    def __init__(
        self, in_features: int, num_classes: int, groups: Sequence[tuple[int, int]], hidden: Sequence[int] = (256, 256)
    ) -> None:
        super().__init__()
        self.groups = tuple(groups)
        inside = {column for begin, end in groups for column in range(begin, end)}
        self.register_buffer("numbers", torch.tensor([column for column in range(in_features) if column not in inside]).long())
        sizes = [(end - begin, min(_MOST_DIMENSIONS, (end - begin + 1) // 2)) for begin, end in groups]
        self.embeddings = nn.ModuleList(_embedding(words, dimensions) for words, dimensions in sizes)
        width = in_features - len(inside) + sum(dimensions for _, dimensions in sizes)
        self.perceptron = mlp(width, num_classes, hidden)

    numbers: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        embedded = [layer(inputs[:, begin:end]) for layer, (begin, end) in zip(self.embeddings, self.groups, strict=True)]
        logits: Tensor = self.perceptron(torch.cat([inputs[:, self.numbers], *embedded], dim=1))
        return logits


def _embedding(words: int, dimensions: int) -> nn.Linear:
    layer = nn.Linear(words, dimensions, bias=False)
    nn.init.normal_(layer.weight)  # as nn.Embedding starts
    return layer


def category_columns(features: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Where the columns of each category begin and end, from names like ``colour=red``; two at least make a category."""
    found: list[list[int]] = []
    before = None
    for place, name in enumerate(features):
        column, mark, _ = name.partition("=")
        if mark and column == before:
            found[-1][1] = place + 1
        elif mark:
            found.append([place, place + 1])
        before = column if mark else None
    return tuple((begin, end) for begin, end in found if end - begin > 1)


class InUnits(nn.Module):
    """A network whose output, about 0 and 1 large, is brought into the units of the target: ``mean + std * output``."""

    def __init__(self, net: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, mean, std

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.net(inputs)
        return self.mean + self.std * output


def in_units(make: Callable[[], nn.Module], mean: float, std: float) -> InUnits:
    """The network that ``make`` makes, with its output in the units of the target."""
    return InUnits(make(), mean, std)


def squared_error(outputs: Tensor, labels: Tensor, std: float = 1.0) -> Tensor:
    """Mean squared error in units of ``std``: outputs (B, 1), labels (B,) -> scalar."""
    return ((outputs.squeeze(1) - labels) / std).square().mean()
