"""Gradient masking: does a network resist attacks, or only gradients?

A network can be made so that gradients lead nowhere (rounded inputs, saturated units, noise), and attacks that follow them
fail though adversarial examples are all around. The signs are those of Athalye, Carlini and Wagner (2018) and of Carlini et al.
(2019): an attack without gradients beats one with them, one step beats many, and a ball as large as all inputs does not
suffice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from assay.attack.balls import CHUNK, Clip, into_ball, require_sense, somewhere
from assay.attack.gradient import fgsm, gradient_of, objective, pgd
from assay.attack.square import square
from assay.attack.worst import classified
from assay.nn.frozen import frozen


@dataclass(frozen=True)
class Masking:
    """What :func:`signs_of_masking` saw.

    Attributes:
        signs: sentences without full stops, each naming one sign; empty where none was seen.
        numbers: what was measured -> value; accuracies are shares of all inputs.
    """

    signs: tuple[str, ...]
    numbers: dict[str, float] = field(default_factory=dict)


def signs_of_masking(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: float = math.inf,
    steps: int = 20,
    queries: int = 300,
    noises: int = 20,
    clip: Clip = None,
    slack: float = 0.03,
    generator: torch.Generator | None = None,
) -> Masking:
    """Look for signs that a network hides its gradients, so that its robustness is not what gradient attacks say.

    No sign is no proof that nothing is hidden.

    Args:
        model: maps inputs to logits (B, C).
        inputs: (B, ...) float, within ``clip``; a hundred are enough.
        labels: (B,) int64, what is right.
        eps: radius of the ball.
        norm: ``math.inf`` or 2.
        steps: of gradient ascent, which is run with both losses and three restarts: what a weak one misses is no sign.
        queries: of Square Attack.
        noises: random points of the ball that are tried on each input.
        clip: range of valid entries.
        slack: share of the inputs by which one attack must be better than another to count (and three inputs at least).
        generator: of all that is random.
    """
    require_sense(inputs, eps, norm, clip)
    inputs = inputs.detach()
    right = classified(model, inputs, labels)
    few, known = inputs[right], labels[right]
    if not len(few):
        return Masking((), {"accuracy": 0.0})
    count, enough = len(inputs), max(3, math.ceil(slack * len(inputs)))

    def stood(moved: Tensor) -> Tensor:
        return classified(model, moved, known)

    ascents = [
        pgd(model, few, known, eps=eps, norm=norm, steps=steps, loss=loss, restarts=3, clip=clip, generator=generator)
        for loss in ("ce", "margin")
    ]
    many = stood(ascents[0]) & stood(ascents[1])
    single = stood(fgsm(model, few, known, eps=eps, norm=norm, clip=clip))
    asked = stood(square(model, few, known, eps=eps, norm=norm, queries=queries, clip=clip, generator=generator))
    noisy = torch.ones_like(many)
    for _ in range(noises):
        noisy &= stood(into_ball(somewhere(few, eps, norm, generator), few, eps, norm, clip))
    everywhere = _everything(few, norm, clip)
    unlimited = torch.ones_like(many)
    for loss in ("ce", "margin"):
        unlimited &= stood(
            pgd(model, few, known, eps=everywhere, norm=norm, steps=2 * steps, loss=loss, clip=clip, generator=generator)
        )
    flat = {loss: _flat(model, few, known, loss) for loss in ("ce", "margin")}
    numbers = {
        "accuracy": len(few) / count,
        "after gradient ascent": int(many.sum()) / count,
        "after one step": int(single.sum()) / count,
        "after Square": int(asked.sum()) / count,
        "after random noise": int(noisy.sum()) / count,
        "in a ball without bounds": int(unlimited.sum()) / count,
        "zero gradient of cross-entropy": flat["ce"],
        "zero gradient of the margin": flat["margin"],
    }
    signs = []

    def beaten(weaker: Tensor) -> int:
        """Inputs that an attack fools which gradient ascent does not."""
        found = int((many & ~weaker).sum())
        return found if found >= enough else 0

    if more := beaten(asked):
        signs.append(
            f"Square, which needs no gradient, fools {more} of {count} examples that gradient ascent does not: gradients are "
            "masked"
        )
    if more := beaten(noisy):
        signs.append(f"random noise fools {more} of {count} examples that gradient ascent does not: gradients are masked")
    if int(many.sum()) - int(single.sum()) >= enough:
        signs.append(
            f"one step leaves {int(single.sum())} of {count} examples right and {steps} steps leave {int(many.sum())}: more "
            "steps ought to be stronger"
        )
    if (left := int(unlimited.sum())) >= enough:
        signs.append(
            f"{left} of {count} examples stay right in a ball that reaches every input (eps {everywhere:.3g}): the attack "
            "follows gradients that lead nowhere"
        )
    if flat["margin"] > slack:
        signs.append(
            f"the gradient is zero at {flat['margin']:.0%} of the examples: something in the network is rounded or saturated"
        )
    elif flat["ce"] > slack:
        signs.append(
            f"the gradient of cross-entropy is zero at {flat['ce']:.0%} of the examples, as the network is too sure of them: "
            "trust the margin loss"
        )
    return Masking(tuple(signs), numbers)


def _everything(inputs: Tensor, norm: float, clip: Clip) -> float:
    """A radius with which every valid input lies in the ball; without a range, ten times as far as these inputs are apart."""
    if clip is None:
        spread = (inputs.amax() - inputs.amin()).item() * 10 or 1.0
    else:
        spread = float(torch.as_tensor(clip[1]).max() - torch.as_tensor(clip[0]).min())
    return spread if norm == math.inf else spread * math.sqrt(inputs[0].numel())


def _flat(model: nn.Module, inputs: Tensor, labels: Tensor, loss: str) -> float:
    """Share of the inputs at which the gradient of the loss is zero in every entry."""
    zero = 0
    with frozen(model, inputs):
        for part, some in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True):
            leaf = part.clone().requires_grad_()
            gradient = gradient_of(objective(model(leaf), some, loss, False), leaf)
            zero += int((gradient.flatten(1).abs().amax(dim=1) == 0).sum())
    return zero / len(inputs)
