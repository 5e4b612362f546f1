"""How robust is a classifier? Against each of several attacks, and against the strongest of them for each input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.attack.balls import CHUNK, Clip
from assay.attack.gradient import pgd
from assay.attack.square import square
from assay.nn.frozen import frozen


@dataclass(frozen=True)
class Robustness:
    """What was left of a classifier after attacks.

    Attributes:
        eps: radius of the ball.
        norm: of the ball.
        right: (B,) bool, classified as labelled before any attack.
        withstood: attack -> (B,) bool, classified as labelled before it and after it.
        adversarial: (B, ...) of each input the point of the first attack that succeeded, or else the input.
    """

    eps: float
    norm: float
    right: Tensor
    withstood: dict[str, Tensor]
    adversarial: Tensor

    @property
    def standing(self) -> Tensor:
        """(B,) bool: classified as labelled whatever was tried."""
        left = self.right
        for found in self.withstood.values():
            left = left & found
        return left

    @property
    def clean(self) -> float:
        """Accuracy before any attack."""
        return _share(self.right)

    @property
    def worst(self) -> float:
        """Accuracy under the strongest attack for each input: at least as low as under any one of them."""
        return _share(self.standing)

    def under(self, attack: str) -> float:
        """Accuracy under one attack."""
        return _share(self.withstood[attack])


def _share(found: Tensor) -> float:
    return found.double().mean().item()


#: The names of the attacks in :class:`Robustness`.
CE, MARGIN, SQUARE = "PGD, cross-entropy", "PGD, margin", "Square"


def robust_accuracy(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: float = math.inf,
    steps: int = 20,
    restarts: int = 2,
    queries: int = 300,
    clip: Clip = None,
    generator: torch.Generator | None = None,
) -> Robustness:
    """Accuracy under gradient ascent of cross-entropy and of the margin, and under Square Attack, which needs no gradient.

    No single attack is strong on every network; the worst case over several different ones, for each input, is what to quote
    (Croce and Hein 2020). It is an upper bound of the true robust accuracy; :func:`assay.attack.certified` is a lower one.

    Args:
        model: maps inputs to logits (B, C).
        inputs: (B, ...) float, within ``clip``.
        labels: (B,) int64, what is right.
        eps: radius of the ball.
        norm: ``math.inf`` or 2.
        steps: of gradient ascent.
        restarts: of gradient ascent, for each loss.
        queries: of Square Attack; 0 leaves it out.
        clip: range of valid entries, as ``(0, 1)``.
        generator: of all that is random.
    """
    inputs = inputs.detach()
    right = classified(model, inputs, labels)
    rows = torch.nonzero(right).squeeze(1)
    few, known = inputs[rows], labels[rows]
    adversarial = inputs.clone()
    withstood: dict[str, Tensor] = {}
    fooled = torch.zeros_like(right)
    for name in (CE, MARGIN, *([SQUARE] if queries else [])):
        if name == SQUARE:
            moved = square(model, few, known, eps=eps, norm=norm, queries=queries, clip=clip, generator=generator)
        else:
            moved = pgd(
                model,
                few,
                known,
                eps=eps,
                norm=norm,
                steps=steps,
                loss="ce" if name == CE else "margin",
                restarts=restarts,
                clip=clip,
                generator=generator,
            )
        # Asked again, in a batch of its own: what counts is what the network says of the point that is handed back.
        stood = torch.zeros_like(right)
        stood[rows] = classified(model, moved, known)
        withstood[name] = stood
        new = right & ~stood & ~fooled
        adversarial[new] = moved[new[rows]]
        fooled |= new
    return Robustness(eps, norm, right, withstood, adversarial)


def classified(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Which inputs the network, in evaluation mode, classifies as labelled: (B,) bool."""
    with frozen(model, inputs), torch.no_grad():
        found = [model(part).argmax(dim=1) == some for part, some in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool, device=inputs.device)
