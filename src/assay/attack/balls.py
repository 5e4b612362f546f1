"""The balls that attacks stay in: steps, projections and random points in the L2 and the maximum norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Smallest and largest valid entry, as ``(0.0, 1.0)``, or tensors that broadcast over the inputs; ``None``: there is no range.
Clip = tuple["float | Tensor", "float | Tensor"] | None

# Examples that are attacked together: their feature maps stay in the cache while gradients are taken.
CHUNK = 128


def require_sense(inputs: Tensor, eps: float, norm: float, clip: Clip) -> None:
    """Refuse what an attack cannot mean.

    Raises:
        ValueError: another norm than 2 and infinity, a negative or infinite ``eps``, or inputs that lie outside ``clip``: to
            bring them inside would move them further than the attack may.
    """
    if norm not in (2, math.inf):
        raise ValueError(f"norm must be 2 or math.inf, not {norm}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a number of at least 0, not {eps}")
    if clip is not None and len(inputs) and not bool(((inputs >= clip[0]) & (inputs <= clip[1])).all()):
        low, high = inputs.aminmax()
        raise ValueError(
            f"the inputs reach from {low:.4g} to {high:.4g}, outside clip: give the range that valid inputs have, or none"
        )


def wide(values: Tensor, inputs: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, ...), so that it broadcasts over inputs."""
    return values.view(-1, *[1] * (inputs.dim() - 1))


def clipped(inputs: Tensor, clip: Clip) -> Tensor:
    """Inside the valid range."""
    return inputs if clip is None else torch.minimum(torch.maximum(inputs, _tensor(clip[0], inputs)), _tensor(clip[1], inputs))


def _tensor(bound: float | Tensor, inputs: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=inputs.dtype, device=inputs.device)


def into_ball(moved: Tensor, centre: Tensor, eps: float, norm: float, clip: Clip) -> Tensor:
    """The nearest point of the ball, then of the valid range.

    The centre is valid, so that the second never leads out of the ball again: (B, ...).
    """
    if norm == math.inf:
        inside = torch.minimum(torch.maximum(moved, centre - eps), centre + eps)
    else:
        away = moved - centre
        length = wide(away.flatten(1).norm(dim=1), away)
        inside = centre + away * (eps / length.clamp_min(1e-12)).clamp_max(1)
    return clipped(inside, clip)


def uphill(gradient: Tensor, norm: float) -> Tensor:
    """The step of size 1 in the norm that raises a linear function most; where the gradient is zero, none: (B, ...)."""
    if norm == math.inf:
        return gradient.sign()
    # Scaled first: squares of gradients below 1e-23 are zero in float32, though their direction is known well.
    largest = wide(gradient.flatten(1).abs().amax(dim=1), gradient)
    scaled = gradient / torch.where(largest > 0, largest, 1)
    length = wide(scaled.flatten(1).norm(dim=1), gradient)
    return scaled / torch.where(length > 0, length, 1)


def somewhere(inputs: Tensor, eps: float, norm: float, generator: torch.Generator | None) -> Tensor:
    """A point drawn evenly from the ball around each input: (B, ...)."""
    device = inputs.device if generator is None else generator.device
    if norm == math.inf:
        away = 2 * torch.rand(inputs.shape, generator=generator, device=device, dtype=inputs.dtype) - 1
    else:
        away = torch.randn(inputs.shape, generator=generator, device=device, dtype=inputs.dtype)
        away = away / wide(away.flatten(1).norm(dim=1).clamp_min(1e-12), away)
        # The share of the ball within radius r is r^D.
        entries = max(inputs[:1].numel(), 1)
        away = away * wide(torch.rand(len(inputs), generator=generator, device=device, dtype=inputs.dtype), away) ** (1 / entries)
    return inputs + eps * away.to(inputs.device)
