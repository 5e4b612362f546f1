"""The loss as a landscape over the weights: how sharp it is at a point, and what lies between two points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def top_hessian_eigenvalue(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    loss: Loss = F.cross_entropy,
    max_iter: int = 100,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> float:
    """The eigenvalue of the loss's Hessian that is largest in magnitude, by power iteration: how sharp the minimum is.

    Args:
        model: weights that need no gradient do not count.
        inputs: (B, ...).
        labels: (B,).
        loss: ``(outputs, labels) -> scalar``, twice differentiable.
        max_iter: most products of Hessian and vector, each of which costs two backward passes.
        tolerance: stop when the estimate changes by less than this share of it.
        generator: of the random vector to begin with, on the CPU.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(model(inputs), labels), weights, create_graph=True)
    curved = [gradient.requires_grad for gradient in gradients]  # others do not depend on the weights
    bent = [gradient for gradient, bends in zip(gradients, curved, strict=True) if bends]
    if not bent:
        return 0.0
    # Drawn on the CPU, where the generator is.
    vector = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in weights]
    value = 0.0
    for _ in range(max_iter):
        length = torch.stack([v.square().sum() for v in vector]).sum().sqrt()
        if not length > 0:
            return 0.0
        vector = [v / length for v in vector]
        along = [v for v, bends in zip(vector, curved, strict=True) if bends]
        product = torch.autograd.grad(bent, weights, along, retain_graph=True, materialize_grads=True)
        before, value = value, float(sum((v * p).sum() for v, p in zip(vector, product, strict=True)))
        if abs(value - before) <= tolerance * abs(value):
            break
        vector = list(product)
    return value


@torch.no_grad()
def loss_barrier(
    first: nn.Module, second: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss = F.cross_entropy, points: int = 11
) -> float:
    """How far the loss on the straight line between two networks rises above the line between their losses.

    Args:
        first: a network in the mode in which it is given; buffers (running statistics) are its own along the whole line.
        second: another of the same architecture.
        inputs: (B, ...).
        labels: (B,).
        loss: ``(outputs, labels) -> scalar``.
        points: of the line, ends included.

    Returns:
        The largest rise over the points; at least 0, since the ends do not rise.
    """
    ends = [dict(model.named_parameters()) for model in (first, second)]
    shares: list[float] = torch.linspace(0, 1, points).tolist()
    losses: list[float] = []
    for share in shares:
        weights = {name: torch.lerp(ends[0][name], ends[1][name], share) for name in ends[0]}
        losses.append(float(loss(functional_call(first, weights, (inputs,)), labels)))
    rises = [value - (1 - share) * losses[0] - share * losses[-1] for share, value in zip(shares, losses, strict=True)]
    return max(rises)
