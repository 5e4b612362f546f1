"""Integrated gradients by the calling convention of this package, which knows several inputs.

The method itself, its rules of quadrature and its claims are in :mod:`assay.papers.explain.integrated_gradients`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from assay.errors import AssayError
from assay.explain.backward import Given, explained, like
from assay.explain.differences import references
from assay.papers.explain import integrated_gradients as paper


def integrated_gradients(
    model: nn.Module,
    inputs: Given,
    target: Tensor | int,
    *,
    baseline: float | Tensor | tuple[float | Tensor, ...] = 0.0,
    steps: int = 50,
    rule: paper.Rule = "gausslegendre",
    chunk: int = 256,
) -> Given:
    """What each input contributed to a score: its mean gradient on the straight line from a reference, times the difference.

    Args:
        model: maps inputs to scores (B, C), each example on its own; used in evaluation mode and left as it was.
        inputs: (B, ...) or a tuple of such; several go along their lines together.
        target: the class whose score is explained, one for all or (B,) int64.
        baseline: the reference: a number or a tensor (1, ...) or (B, ...); for several inputs a number for all or one of these
            for each.
        steps: gradients an example.
        rule: of the quadrature.
        chunk: examples in one pass through the network.

    Returns:
        Attributions of the inputs' shape, in units of the score; zeros for inputs of integers. They sum to the score minus the
        reference's, but for what the quadrature misses.

    Raises:
        AssayError: the reference does not fit the inputs, or a number is too small.
    """
    with explained(model, inputs) as leaves:
        (starts,) = references(leaves, baseline, average=False)
        joined = _Joined(model, leaves)
        try:
            found = paper.integrated_gradients(
                joined, joined.join(leaves), target, joined.join(starts), steps=steps, rule=rule, chunk=chunk
            )
        except ValueError as error:
            raise AssayError(f"{str(error)[:1].upper()}{str(error)[1:]}.") from error
        return like(inputs, joined.part(found))


class _Joined(nn.Module):
    """A network of several inputs as one of rows: all numbers of floating point, then which example it is.

    Inputs of integers (words, masks) do not move along the line: they are those of the example.
    """

    def __init__(self, model: nn.Module, leaves: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model, self.leaves = model, leaves

    def join(self, values: tuple[Tensor, ...]) -> Tensor:
        """Rows (B, N + 1) of such inputs."""
        count = len(self.leaves[0])
        moving = [v.detach() for v, leaf in zip(values, self.leaves, strict=True) if leaf.is_floating_point()]
        rows = [one.expand(count, *one.shape[1:]).flatten(1) for one in moving]
        return torch.cat([*rows, torch.arange(count, device=rows[0].device, dtype=rows[0].dtype).unsqueeze(1)], dim=1)

    def part(self, rows: Tensor) -> list[Tensor]:
        """Rows as the inputs that they were joined of, zeros for those of integers."""
        found, first = [], 0
        for leaf in self.leaves:
            if not leaf.is_floating_point():
                found.append(torch.zeros_like(leaf, dtype=rows.dtype))
                continue
            size = math.prod(leaf.shape[1:])
            found.append(rows[:, first : first + size].view(-1, *leaf.shape[1:]).to(leaf.dtype))
            first += size
        return found

    def forward(self, rows: Tensor) -> Tensor:
        which = rows[:, -1].detach().round().long()
        moving = self.part(rows)
        outputs: Tensor = self.model(
            *(one if leaf.is_floating_point() else leaf[which] for one, leaf in zip(moving, self.leaves, strict=True))
        )
        return outputs if outputs.dim() > 1 else outputs.unsqueeze(1)
