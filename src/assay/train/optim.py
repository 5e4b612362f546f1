"""Optimizers that torch does not have, each ``(parameters, ...) -> Optimizer`` for ``Recipe(optimizer=...)``.

Use ``functools.partial`` for their arguments: ``optimizer=partial(lamb, lr=5e-3, weight_decay=0.02)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

#: On a CPU about so many numbers go through all of a step before the next ones do.
_TOGETHER = 1 << 15


class Lamb(Optimizer):
    r"""LAMB: Adam's direction for every tensor of weights, with a length in proportion to that of the weights.

    A step that is right for one layer may be a hundred times too long for another. LAMB takes the direction r of Adam with
    weight decay and goes a fraction ``lr`` of the weights' own length along it, layer by layer, which keeps training stable
    with large batches and high rates:

        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2        (both corrected for their start at 0)
        r = m / (sqrt(v) + eps) + weight_decay w
        w <- w - lr |w| / |r| r                                    (the ratio is 1 where either length is 0)

    Args:
        params: parameters, or groups of them as for every torch optimizer.
        lr: the step's length as a share of the weights' length; 5e-3 for batches of 2048 in *ResNet strikes back*.
        betas: b1 and b2.
        eps: added to the denominator.
        weight_decay: of the group. Groups without any move as with Adam unless ``always_adapt`` is set.
        max_grad_norm: the gradient, of all groups together, is first shortened to this length at most; ``None`` leaves it. It
            stays shortened in ``.grad``, as after torch's ``clip_grad_norm_``.
        always_adapt: take the ratio also where there is no weight decay, as the paper does.

    Raises:
        ValueError: a setting is out of range.
        RuntimeError: a gradient is sparse.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020, algorithm 2.
    Clipping first, and no ratio for weights without decay, are NVIDIA's and timm's; step by step it equals ``timm.optim.Lamb``.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = 1.0,
        always_adapt: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, not {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), not {betas}")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm must be positive or None, not {max_grad_norm}")
        self.max_grad_norm = max_grad_norm
        # fused=True tells torch's load_state_dict to bring the counts of steps to the parameters' device.
        own = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "always_adapt": always_adapt, "fused": True}
        super().__init__(params, own)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; with a ``closure`` that computes the loss anew, its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if any(grad.is_sparse for grad in grads):
            raise RuntimeError("Lamb takes no sparse gradients: make the embedding with sparse=False")
        if not grads:
            return loss
        scale = None
        if self.max_grad_norm is not None:
            scale = (get_total_norm(grads) / self.max_grad_norm).clamp_(min=1.0)
        for group in self.param_groups:
            for params in _alike(p for p in group["params"] if p.grad is not None):
                self._move(params, group, scale)
        return loss

    def _move(self, parameters: Sequence[Tensor], group: dict[str, Any], scale: Tensor | None) -> None:
        """A step of parameters of one device and type; gradients are divided by ``scale``."""
        rows = [self._tensors(parameter) for parameter in parameters]
        params, moves, grads, first, second = ([row[place] for row in rows] for place in range(5))
        steps = [self.state[parameter]["step"] for parameter in parameters]
        torch._foreach_add_(steps, 1)
        device = params[0].device
        # torch's fused AdamW moves zeros by Adam's step at rate 1: both moments and minus the direction in one pass.
        torch._fused_adamw_(
            moves,
            grads,
            first,
            second,
            [],
            steps,
            lr=1.0,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=None if scale is None else scale.to(device, torch.float32),
            found_inf=None if scale is None else torch.zeros((), device=device),
        )
        if group["weight_decay"]:
            torch._foreach_add_(moves, params, alpha=-group["weight_decay"])
        if not group["weight_decay"] and not group["always_adapt"]:
            torch._foreach_add_(params, moves, alpha=group["lr"])
            return
        weights, lengths = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(moves))
        rates = torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0) * group["lr"]
        if device.type == "cpu":  # numbers are quicker than tensors there; elsewhere they would wait for the device
            for p, move, rate in zip(params, moves, rates.tolist(), strict=True):
                p.add_(move, alpha=rate)
        else:
            torch._foreach_addcmul_(params, moves, rates.unbind())

    def _tensors(self, parameter: Tensor) -> list[Tensor]:
        """The parameter, zeros, its gradient and its two moments, all laid out alike, as the fused kernel takes for granted."""
        state, move = self.state[parameter], torch.zeros_like(parameter)
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        assert parameter.grad is not None
        if parameter.grad.stride() != move.stride():
            parameter.grad = torch.empty_like(move).copy_(parameter.grad)
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].stride() != move.stride():  # they were saved by something that knows no layouts
                state[name] = torch.empty_like(move).copy_(state[name])
        found = [parameter, move, parameter.grad, state["exp_avg"], state["exp_avg_sq"]]
        if not move.is_contiguous() and move.is_contiguous(memory_format=torch.channels_last):
            # The kernel copies whatever does not lie in order: let it see filters in the order in which they lie.
            return [tensor.permute(0, 2, 3, 1) for tensor in found]
        return found


def _alike(params: Iterable[Tensor]) -> Iterable[Sequence[Tensor]]:
    """Lists of parameters of one device and type; on a CPU those of few numbers, so that they stay in the cache."""
    lists: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for p in params:
        sort = (p.device, p.dtype)
        if sort in lists and p.device.type == "cpu" and sum(map(torch.numel, lists[sort])) > _TOGETHER:
            yield lists.pop(sort)
        lists.setdefault(sort, []).append(p)
    yield from lists.values()


def without_decay_of_vectors(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: weight decay for matrices and filters, none for vectors (biases, scales of a norm).

    Args:
        parameters: those to train, or groups of them, whose own settings stay.
        weight_decay: of all that have two dimensions or more, unless their group says otherwise.
    """
    groups = []
    for entry in parameters:
        group = entry if isinstance(entry, dict) else {"params": [entry]}
        for vectors in (False, True):
            found = [p for p in group["params"] if (p.dim() < 2) == vectors]
            decay = 0.0 if vectors else group.get("weight_decay", weight_decay)
            groups.append({**group, "params": found, "weight_decay": decay})
    return _joined(groups)


def _joined(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of the same settings as one; empty ones fall away."""
    joined: list[dict[str, Any]] = []
    for group in groups:
        settings = {name: value for name, value in group.items() if name != "params"}
        alike = [other for other in joined if {name: value for name, value in other.items() if name != "params"} == settings]
        if alike:
            alike[0]["params"].extend(group["params"])
        elif group["params"]:
            joined.append({"params": list(group["params"]), **settings})
    return joined


def lamb(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 5e-3, weight_decay: float = 0.02, **settings: Any
) -> Lamb:
    """:class:`Lamb` with weight decay for matrices and filters alone, as it is used in practice.

    Args:
        parameters: those to train, or groups of them.
        lr: the rate.
        weight_decay: of all that have two dimensions or more.
        **settings: further arguments of :class:`Lamb`.
    """
    return Lamb(without_decay_of_vectors(parameters, weight_decay), lr=lr, **settings)
