"""Attacks that follow the gradient: the fast gradient method, and projected gradient ascent (Madry et al. 2018).

The margin loss is the difference of logits of Carlini and Wagner (2017). Unlike cross-entropy it does not flatten where a
network is very sure, and it says by its sign whether the attack has succeeded.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.attack.balls import CHUNK, Clip, clipped, into_ball, require_sense, somewhere, uphill
from assay.nn.frozen import frozen

LossName = Literal["ce", "margin"]


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus the label's, above 0 where the label is not what the network says: (B,)."""
    own = labels.unsqueeze(1)
    return logits.scatter(1, own, -math.inf).amax(dim=1) - logits.gather(1, own).squeeze(1)


def objective(logits: Tensor, labels: Tensor, loss: str, targeted: bool) -> Tensor:
    """What an attack raises: (B,).

    Raises:
        ValueError: another loss.
    """
    if loss not in ("ce", "margin"):
        raise ValueError(f"loss must be 'ce' or 'margin', not {loss!r}")
    value = margins(logits, labels) if loss == "margin" else F.cross_entropy(logits, labels, reduction="none")
    return -value if targeted else value


def gradient_of(value: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of each input's own number, zero where none leads back to it: (B, ...)."""
    if not value.requires_grad:  # the network compares or rounds, and nothing it says depends on inputs differentiably
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True, materialize_grads=True)
    return gradient


def fgsm(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: float = math.inf,
    loss: LossName = "ce",
    clip: Clip = None,
    targeted: bool = False,
) -> Tensor:
    """One step of size ``eps`` up the gradient of the loss, for every input (Goodfellow et al. 2015).

    Args:
        model: maps inputs to logits (B, C).
        inputs: (B, ...) float, within ``clip``.
        labels: (B,) int64, what is right; the class that is wanted if ``targeted``.
        eps: size of the step in ``norm``.
        norm: ``math.inf`` (the sign of the gradient) or 2 (its direction).
        loss: ``"ce"`` or ``"margin"``.
        clip: range of valid entries; steps end at it.
        targeted: go down the loss of ``labels`` instead.

    Returns:
        (B, ...) moved inputs.
    """
    require_sense(inputs, eps, norm, clip)
    inputs = inputs.detach()
    moved = []
    with frozen(model, inputs):
        for rows in torch.arange(len(inputs), device=inputs.device).split(CHUNK):
            leaf = inputs[rows].requires_grad_()
            value = objective(model(leaf), labels[rows], loss, targeted)
            moved.append(clipped(leaf.detach() + eps * uphill(gradient_of(value, leaf), norm), clip))
    return torch.cat(moved) if moved else inputs.clone()


def pgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: float = math.inf,
    steps: int = 20,
    step_size: float | None = None,
    loss: LossName = "ce",
    restarts: int = 1,
    random_start: bool = True,
    clip: Clip = None,
    targeted: bool = False,
    generator: torch.Generator | None = None,
    until_fooled: bool = True,
) -> Tensor:
    """Projected gradient ascent in a ball around each input.

    An input is done as soon as the network says what the attack wants (already at the start, if it does so there): it leaves
    the batch, which makes the attack cheap on networks that are easily fooled. For those that are never done, the point of
    highest loss over all steps and restarts is returned.

    Args:
        model: maps inputs to logits (B, C). Not probabilities: their gradients vanish where the network is sure.
        inputs: (B, ...) float, within ``clip``.
        labels: (B,) int64, what is right; the class that is wanted if ``targeted``.
        eps: radius of the ball.
        norm: of the ball: ``math.inf`` or 2. Steps follow the gradient's sign, or its direction.
        steps: of each restart.
        step_size: ``None`` takes 2.5 eps / steps, with which the far side of the ball can be reached.
        loss: ``"ce"`` (cross-entropy) or ``"margin"`` (largest other logit minus the label's).
        restarts: how often to begin, with inputs that are not done.
        random_start: begin at a random point of the ball, not at the input; every further restart does in any case.
        clip: range of valid entries, as ``(0, 1)``.
        targeted: make the network say ``labels`` instead of something else.
        generator: of the random starts.
        until_fooled: ``False`` keeps every input to the last step and returns its point of highest loss, as one wants for
            training on adversarial examples.

    Returns:
        (B, ...) points of the ball.

    Raises:
        ValueError: an argument that cannot be meant.
    """
    require_sense(inputs, eps, norm, clip)
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be at least 1, not {steps} and {restarts}")
    size = 2.5 * eps / steps if step_size is None else step_size
    inputs = inputs.detach()
    best = inputs.clone()
    highest = torch.full((len(inputs),), -math.inf, dtype=inputs.dtype, device=inputs.device)
    active = torch.arange(len(inputs), device=inputs.device)
    with frozen(model, inputs):
        for restart in range(restarts):
            start = inputs
            if random_start or restart:
                start = into_ball(somewhere(inputs, eps, norm, generator), inputs, eps, norm, clip)
            if until_fooled and not restart:  # those that are fooled where they stand need no attack
                active = active[~_fooled_at(model, inputs, labels, targeted)]
            left = []
            for rows in active.split(CHUNK):
                at, standing = start[rows], torch.arange(len(rows), device=rows.device)
                for step in range(steps + 1):
                    here = rows[standing]
                    last = step == steps
                    value, gradient, fooled = _look(model, at, labels[here], loss, targeted, last)
                    done = fooled if until_fooled else torch.zeros_like(fooled)
                    better = done | (value > highest[here])
                    best[here[better]], highest[here[better]] = at[better], value[better]
                    stay = ~done
                    standing = standing[stay]
                    if last or not len(standing):
                        break
                    moved = at[stay] + size * uphill(gradient[stay], norm)
                    at = into_ball(moved, inputs[rows[standing]], eps, norm, clip)
                left.append(rows[standing])
            active = torch.cat(left) if left else active
            if not len(active):
                break
    return best


def _look(model: nn.Module, at: Tensor, labels: Tensor, loss: str, targeted: bool, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The objective (b,), its gradient (b, ...) (at the last step none is needed), and which inputs are done (b,)."""
    if last:
        with torch.no_grad():
            logits = model(at)
            return objective(logits, labels, loss, targeted), at, _success(logits, labels, targeted)
    leaf = at.detach().requires_grad_()
    logits = model(leaf)
    value = objective(logits, labels, loss, targeted)
    return value.detach(), gradient_of(value, leaf), _success(logits.detach(), labels, targeted)


def _success(logits: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    said = logits.argmax(dim=1)
    return said == labels if targeted else said != labels


@torch.no_grad()
def _fooled_at(model: nn.Module, inputs: Tensor, labels: Tensor, targeted: bool) -> Tensor:
    found = [_success(model(part), some, targeted) for part, some in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool, device=inputs.device)
