"""Adaptive gradient clipping: no unit's gradient may be long beside the unit's own weights.

A step of length lr |G| changes weights of length |W| by the share lr |G| / |W|, and a training goes to pieces where that share
is large. Clipping the norm of the whole gradient needs a threshold that fits all layers at every moment. Here each output
unit i has its own, a fraction ``clip`` of the length of its weights, so that one number serves all:

    G_i <- clip * max(|W_i|, eps) / |G_i| * G_i    where |G_i| > clip * max(|W_i|, eps)        (eq. 3)

A unit is a row of a matrix or a filter of a convolution; a vector (biases, gains) is clipped as a whole. The last layer is left
out: its gradient is bounded by itself, and clipping it does harm.

Source: Brock, De, Smith and Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization", ICML 2021,
section 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assay.nn.ending import last_linear
from assay.train.hooks import Hook, Run

_LEAST = 1e-6  # of a gradient's length, against division by 0; as in the authors' code


def unit_norms(x: Tensor) -> Tensor:
    """Length of every output unit: (O, 1, ...) for weights (O, ...), one number for vectors and numbers.

    A tensor is a vector if all its dimensions but one have the size 1. Transposed convolutions, whose weights are (I, O, ...),
    are clipped by input unit.
    """
    whole = sum(size > 1 for size in x.shape) <= 1
    norms: Tensor = torch.linalg.vector_norm(x, dim=None if whole else tuple(range(1, x.dim())), keepdim=not whole)
    return norms


@torch.no_grad()
def adaptive_clip_(parameters: Iterable[Tensor] | Tensor, clip: float = 0.01, eps: float = 1e-3) -> None:
    """Clip the gradients of these parameters in place, unit by unit; those that are short enough stay as they are to the bit.

    Args:
        parameters: all but those of the last linear layer. Those without a gradient are passed over.
        clip: longest gradient in lengths of the weights: 0.01 for batches of 4096 in the paper, up to 0.16 for small ones.
        eps: least length that weights count as, so that those at 0 can leave it.

    Raises:
        ValueError: a setting is not positive, or a gradient is sparse.
    """
    _check(clip, eps)
    for parameter in [parameters] if isinstance(parameters, Tensor) else parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            raise ValueError("a sparse gradient has no rows to be clipped: make the embedding with sparse=False")
        most = unit_norms(parameter).clamp_min(eps) * clip
        gradient.mul_((most / unit_norms(gradient).clamp_min(_LEAST)).clamp_max(1.0))


class AGC:
    """Adaptive clipping for an optimizer: from now on every ``optimizer.step()`` first clips the gradients.

        AGC(optimizer, clip=0.02, skip=model.head.parameters())
        loss.backward(); optimizer.step()      # as before

    Args:
        optimizer: a torch optimizer whose ``step()`` is called without a closure.
        clip: see :func:`adaptive_clip_`.
        eps: see :func:`adaptive_clip_`.
        skip: parameters that are never clipped: those of the last linear layer.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, clip: float = 0.01, eps: float = 1e-3, skip: Iterable[Tensor] = ()
    ) -> None:
        _check(clip, eps)
        self.clip, self.eps, self.skip = clip, eps, {id(parameter) for parameter in skip}
        self._handle = optimizer.register_step_pre_hook(self._clip)

    def _clip(self, optimizer: torch.optim.Optimizer, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        # Of what step() was given, the first is the optimizer itself.
        if any(value is not None for value in (*given[1:], *named.values())):
            raise ValueError("a closure computes its gradients after they would be clipped: call step() without one")
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        adaptive_clip_((parameter for parameter in parameters if id(parameter) not in self.skip), self.clip, self.eps)

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        self._handle.remove()


@dataclass(frozen=True)
class AdaptiveClipping(Hook):
    """The same as a hook of the training loop; the network's last linear layer is left out."""

    clip: float = 0.01
    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check(self.clip, self.eps)

    def after_backward(self, run: Run) -> None:
        """Clip what the whole batch gave."""
        adaptive_clip_(all_but_last_layer(run.model), self.clip, self.eps)


def all_but_last_layer(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network without those of its last linear layer (:func:`assay.nn.ending.last_linear`)."""
    found = last_linear(model)
    last = {id(parameter) for parameter in found[1].parameters()} if found else set()
    return [parameter for parameter in model.parameters() if id(parameter) not in last]


def _check(clip: float, eps: float) -> None:
    if not (clip > 0 and eps > 0):
        raise ValueError(f"clip and eps must be positive, not {clip} and {eps}")
