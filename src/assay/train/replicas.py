"""Train many networks of one shape at once: ensembles, folds, several levels of noise.

Small networks keep a processor busy with everything but arithmetic. Networks of one shape can share that overhead: their
weights lie stacked in one tensor for each parameter, and one step moves them all. Each has weights, examples and an order of
its own, and ends where it would have ended alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

#: ``(parameters, inputs (B, ...), labels (B,)) -> gradients`` of one network, by the names of its parameters.
Gradient = Callable[[dict[str, Tensor], Tensor, Tensor], dict[str, Tensor]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def side_by_side(model: nn.Module, device: torch.device) -> bool:
    """Whether networks like this one are trained in one tensor: where that is faster, and the same.

    On a CPU many convolutions at once become one convolution of many groups, which is slower than one after the other; and
    batch normalisation keeps statistics that every network must gather for itself.
    """
    modules = list(model.modules())
    normalises = any(isinstance(module, _BatchNorm) for module in modules)
    convolves = any(isinstance(module, _CONVOLUTIONS) for module in modules)
    return not normalises and not (convolves and device.type == "cpu")


def train_replicas(
    models: Sequence[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    rows: Sequence[Tensor],
    optimizer: Callable[[Iterable[Tensor]], Optimizer],
    epochs: int,
    batch_size: int,
    seeds: Sequence[int],
    gradient: Gradient | None = None,
    noise: Sequence[float] | None = None,
    together: bool | None = None,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Train classifiers of one shape on cross-entropy, each on rows of its own; they are changed in place.

    Args:
        models: with their initial weights.
        inputs: (N, ...) float.
        labels: (N,) int64.
        rows: for each network, the positions of the examples that it learns from. All do as many steps as the one with most
            examples; the others begin a new round earlier.
        optimizer: ``optimizer(parameters)``; it must treat every number on its own, as SGD and Adam do.
        epochs: passes over the examples.
        batch_size: examples in a step; at most as many as a network has.
        seeds: of each network's order and noise.
        gradient: in place of the gradient of the mean loss; of one network, out of operations that ``vmap`` knows.
        noise: for each network, the deviation of the normal noise that is added to every number of the gradient.
        together: in one tensor; ``None`` decides by :func:`side_by_side`.
        report: is told how many steps of how many are done.
    """
    batch_size = min(batch_size, *(len(one) for one in rows))
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    orders = _orders(rows, epochs, batch_size, streams).to(inputs.device)  # (R, S, B)
    if together is None:
        together = side_by_side(models[0], inputs.device)
    groups = [list(range(len(models)))] if together else [[number] for number in range(len(models))]
    steps = orders.shape[1]
    for done, group in enumerate(groups):
        _train(
            [models[number] for number in group],
            inputs,
            labels,
            orders[group],
            optimizer,
            gradient,
            None if noise is None else [(noise[number], streams[number]) for number in group],
            None if report is None else partial(_tell, report, done * steps, len(groups) * steps),
        )


def _tell(report: Callable[[int, int], None], before: int, total: int, step: int) -> None:
    report(before + step, total)


def _orders(rows: Sequence[Tensor], epochs: int, batch_size: int, streams: Sequence[torch.Generator]) -> Tensor:
    """The examples of every step of every network: (R, S, B)."""
    steps = epochs * max(len(one) // batch_size for one in rows)
    orders = []
    for own, stream in zip(rows, streams, strict=True):
        whole = len(own) // batch_size * batch_size  # what does not fill a batch waits for the next epoch
        rounds = -(-steps * batch_size // whole)
        shuffled = torch.cat([own.cpu()[torch.randperm(len(own), generator=stream)[:whole]] for _ in range(rounds)])
        orders.append(shuffled[: steps * batch_size].view(steps, batch_size))
    return torch.stack(orders)


def _train(
    models: Sequence[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    orders: Tensor,
    optimizer: Callable[[Iterable[Tensor]], Optimizer],
    gradient: Gradient | None,
    noise: Sequence[tuple[float, torch.Generator]] | None,
    report: Callable[[int], None] | None,
) -> None:
    first = models[0].train()
    own = [dict(model.named_parameters()) for model in models]
    weights = {name: torch.stack([one[name].detach() for one in own]).requires_grad_() for name in own[0]}  # (G, ...)
    mover = optimizer(weights.values())

    def outputs(parameters: dict[str, Tensor], batch: Tensor) -> Tensor:
        logits: Tensor = functional_call(first, parameters, (batch,))
        return logits

    forward, grade = _stacked(outputs, len(models)), None if gradient is None else _stacked(gradient, len(models))
    for step in range(orders.shape[1]):
        batch, answers = inputs[orders[:, step]], labels[orders[:, step]]  # (G, B, ...), (G, B)
        if grade is None:
            loss = F.cross_entropy(forward(weights, batch).flatten(0, 1), answers.flatten(), reduction="sum") / answers.shape[1]
            moves = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        else:
            moves = grade({name: value.detach() for name, value in weights.items()}, batch, answers)
        for name, value in weights.items():
            moved = moves[name] if noise is None else moves[name] + _drawn(moves[name], noise)
            value.grad = moved.contiguous()  # fused optimizers walk through memory, and take it for laid out as the weights are
        mover.step()
        if report is not None:
            report(step + 1)
    with torch.no_grad():
        for number, one in enumerate(own):
            for name, value in one.items():
                value.copy_(weights[name][number])


def _stacked(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A function of one network as a function of stacked ones."""
    if count > 1:
        return vmap(function, randomness="different")

    def alone(weights: dict[str, Tensor], *more: Tensor) -> Any:
        found = function({name: value[0] for name, value in weights.items()}, *(one[0] for one in more))
        return {name: value.unsqueeze(0) for name, value in found.items()} if isinstance(found, dict) else found.unsqueeze(0)

    return alone


def _drawn(like: Tensor, noise: Sequence[tuple[float, torch.Generator]]) -> Tensor:
    return torch.stack([torch.randn(like.shape[1:], generator=stream) * deviation for deviation, stream in noise]).to(like)
