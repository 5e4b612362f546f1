"""The first convolutional network trained end to end on a real task, and what thirty-three years of habits add to it.

In 1989 a network of 9,760 weights read the digits of American zip codes and missed 5 % of them. Its ideas are today's:
planes of units that share their weights, strides, and gradients through every layer. Rebuilt in 2022, it was then taken
up a ladder, one modern habit a step (cross-entropy, AdamW, shifted images, ReLU with dropout), and the error fell by
more than half with not one weight added. So a user sees here what each habit is worth when the network is small.

What differs from a convolution of today: every unit has a bias of its own, the frame around a layer is -1 (background),
planes of the second layer see only some of the first, and one example makes one step, always in the same order.

Sources: LeCun et al., "Backpropagation Applied to Handwritten Zip Code Recognition", Neural Computation 1(4), 1989;
Karpathy, "Deep Neural Nets: 33 years ago and 33 years from now", 2022, whose reproduction settles what the paper leaves
open: plain SGD for a diagonal second-order step, blocks for the unpublished wiring, 2.4 / sqrt(fan-in) for the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.paper import Cost, Curve, Higher, Lower, Reported, claim
from assay.papers.architectures.lecun1989.replicas import draws, train_replicas
from assay.recipe import Recipe, treatment
from assay.train.schedules import linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from assay.data import Dataset
    from assay.lab import Lab
    from assay.paper import Measured

__all__ = ["LeCun1989", "Stage", "draws", "modern_habits", "shift_by_pixels", "time_travel", "train_replicas"]


class UnitBiasConv(nn.Module):
    """A 5x5 convolution with stride 2 whose units share weights but not biases; the frame around its input is -1.

    Args:
        reads: for each group of output planes the input planes that it sees; the groups are equally large.
        planes: output planes.
        size: height and width of the output.

    Shape: (N, C, 2 size, 2 size) -> (N, planes, size, size).
    """

    def __init__(self, reads: Sequence[Sequence[int]], planes: int, size: int) -> None:
        super().__init__()
        self.reads = tuple(tuple(group) for group in reads)
        self.weight = nn.Parameter(torch.empty(planes, len(self.reads[0]), 5, 5))
        self.bias = nn.Parameter(torch.empty(planes, size, size))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (2, 2, 2, 2), value=-1.0)
        seen = x[:, [plane for group in self.reads for plane in group]]
        return F.conv2d(seen, self.weight, stride=2, groups=len(self.reads)) + self.bias


class LeCun1989(nn.Module):
    """The network of 1989: 1,256 units, 64,660 connections, 9,760 parameters.

    Args:
        activation: of the hidden layers, ``"tanh"`` (1989) or ``"relu"``.
        head: ``"tanh"`` for outputs in (-1, 1) (1989), ``"linear"`` for logits.
        dropout: probability with which a unit of H2 is dropped on its way to H3; 1989: 0.
        generator: of the initial weights; the global one by default.

    Shape: (N, 1, 16, 16) in [-1, 1] -> (N, 10).
    """

    def __init__(
        self,
        activation: Literal["tanh", "relu"] = "tanh",
        head: Literal["tanh", "linear"] = "tanh",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.head = activation, head
        self.h1 = UnitBiasConv([[0]], planes=12, size=8)
        a, b, c = range(4), range(4, 8), range(8, 12)
        self.h2 = UnitBiasConv([[*a, *b], [*b, *c], [*a, *c]], planes=12, size=4)
        self.dropout = nn.Dropout(dropout)
        self.h3 = nn.Linear(192, 30)
        self.output = nn.Linear(30, 10)
        for layer in (self.h1, self.h2, self.h3, self.output):
            bound = 2.4 / math.sqrt(layer.weight[0].numel())  # weight[0] is one unit's: its fan-in
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
        if head == "tanh":
            nn.init.constant_(self.output.bias, -1.0)  # nine targets of ten are -1

    def forward(self, images: Tensor) -> Tensor:
        squash = torch.tanh if self.activation == "tanh" else torch.relu
        x = squash(self.h1(images))  # (N, 12, 8, 8)
        x = squash(self.h2(x))  # (N, 12, 4, 4)
        x = squash(self.h3(self.dropout(x.flatten(1))))  # (N, 30)
        x = self.output(x)
        return torch.tanh(x) if self.head == "tanh" else x


@dataclass(frozen=True)
class Stage:
    """One rung of the ladder from 1989 to 2022: all that is needed to train there. Batch size 1, fixed order throughout.

    Args:
        name: what the rung adds.
        passes: passes over the training set.
        optimizer: plain SGD, or AdamW with torch's defaults (weight decay 0.01, betas 0.9 and 0.999).
        rates: learning rate in the first and in the last pass, with a straight line between them.
        activation: of the hidden layers.
        head: ``"tanh"`` trains on targets of -1 and 1 with the squared error, ``"linear"`` with cross-entropy.
        shift: images are shifted by up to so many pixels either way (circularly), anew at every presentation.
        dropout: probability with which a unit of H2 is dropped.
    """

    name: str
    passes: int
    optimizer: Literal["sgd", "adamw"] = "sgd"
    rates: tuple[float, float] = (0.03, 0.03)
    activation: Literal["tanh", "relu"] = "tanh"
    head: Literal["tanh", "linear"] = "tanh"
    shift: Literal[0, 1] = 0
    dropout: float = 0.0

    def model(self, generator: torch.Generator | None = None) -> LeCun1989:
        """A fresh network of this rung."""
        return LeCun1989(self.activation, self.head, self.dropout, generator)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean squared distance to targets of -1 and 1, or cross-entropy: (N, 10), (N,) -> scalar."""
        if self.head == "linear":
            return F.cross_entropy(outputs, labels)
        return F.mse_loss(outputs, 2.0 * F.one_hot(labels, 10) - 1.0)

    def rate(self, done: int, passes: int | None = None) -> float:
        """The learning rate after ``done`` passes of ``passes``."""
        first, last = self.rates
        return first + (last - first) * done / max(1, (self.passes if passes is None else passes) - 1)

    def make_optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """torch's optimizer for this rung, at the first pass's rate."""
        kind = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.AdamW
        return kind(net.parameters(), lr=self.rates[0])


_BASE = Stage("1989 recipe", passes=23)
_CROSS_ENTROPY = replace(_BASE, name="+ cross-entropy", head="linear", rates=(0.01, 0.01))
_ADAMW = replace(_CROSS_ENTROPY, name="+ AdamW", optimizer="adamw", rates=(3e-4, 1e-4), passes=46)
_SHIFTS = replace(_ADAMW, name="+ shifted images", shift=1, passes=60)
_MODERN = replace(_SHIFTS, name="modern recipe", activation="relu", dropout=0.25, passes=80)
_LADDER = (_BASE, _CROSS_ENTROPY, _ADAMW, _SHIFTS, _MODERN)


def time_travel(stage: int) -> Stage:
    """Rung 0 (1989) to 4 (2022: ReLU and dropout) of the ladder; each keeps what the ones below it brought."""
    if not 0 <= stage < len(_LADDER):
        raise ValueError(f"the ladder has the rungs 0 to {len(_LADDER) - 1}, not {stage}")
    return _LADDER[stage]
