"""Small networks of one shape trained side by side: a grid of learning rates for little more than a few trainings.

A step of a small network is mostly waiting between small operations. Here the weights of R networks lie in one stack, a step is
one batched forward and backward pass for all of them (``torch.vmap``), and each network has an optimizer of its own: torch's,
or anybody's, on views of its part of the stack. So an optimizer does what it always does, and each network may have another
one, another rate and another schedule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from assay.clock import seconds

#: What a caller gives for each network: an optimizer for its parameters, a schedule for that optimizer.
MakeOptimizer = Callable[[list[Tensor]], Optimizer]
MakeSchedule = Callable[[Optimizer, int], LRScheduler]

_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


@dataclass(frozen=True)
class Looks:
    """How R networks stood at L moments of their training.

    Attributes:
        steps: (L,) int64, optimizer steps done.
        train_loss: (R, L) mean loss of the batches since the look before; not finite once a network has diverged.
        loss: name of a split -> (R, L) its mean loss, in evaluation mode.
        accuracy: name of a split -> (R, L) share of its examples that are classified as labelled.
        seconds: (R,) price of each network: its share of the common passes and its own optimizer; looking is left out.
    """

    steps: Tensor
    train_loss: Tensor
    loss: dict[str, Tensor] = field(default_factory=dict)
    accuracy: dict[str, Tensor] = field(default_factory=dict)
    seconds: Tensor = field(default_factory=lambda: torch.empty(0))


def train_side_by_side(
    models: Sequence[nn.Module],
    optimizers: Sequence[MakeOptimizer],
    inputs: Tensor,
    labels: Tensor,
    steps: int,
    batch_size: int = 64,
    seeds: int | Sequence[int] = 0,
    schedules: Sequence[MakeSchedule | None] | None = None,
    watch: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    look_every: int = 25,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Looks:
    """Train R networks in place, each as it would be trained alone (sums are added in another order, no more).

    Args:
        models: R networks of one architecture, all on one device; they differ in their weights. Batch normalisation keeps
            statistics of its own for each, dropout draws for each.
        optimizers: R functions of a list of parameters, e.g. ``partial(torch.optim.Adam, lr=1e-3)``. Those that look at all
            parameters together (a norm of the whole gradient) see one network's. On a CPU torch's own run fused, unless they
            are told otherwise: the same arithmetic in one pass.
        inputs: (N, ...) training examples.
        labels: (N,) what is right.
        steps: optimizer steps; the examples are shuffled anew every epoch, and a last batch that is not full is left out.
        batch_size: examples of one step, at most N.
        seeds: of the shuffling: one number if all networks see the same batches, or R numbers.
        schedules: R functions ``(optimizer, steps) -> LRScheduler``, or ``None``.
        watch: name -> (inputs, labels) that are looked at.
        look_every: steps between two looks; must divide ``steps``.
        loss: ``(outputs (B, ...), labels (B,)) -> scalar``.

    Returns:
        What was seen at every look. A network that diverges has numbers that are not finite, and disturbs no other.

    Raises:
        ValueError: counts do not fit.
    """
    count = len(models)
    schedules = schedules or [None] * count
    if not count or len(optimizers) != count or len(schedules) != count:
        raise ValueError(f"need one optimizer and one schedule a network, not {len(optimizers)}, {len(schedules)} for {count}")
    if steps < 1 or look_every < 1 or steps % look_every:
        raise ValueError(f"look_every must divide steps, not {look_every} and {steps}")
    if not 1 <= batch_size <= len(inputs):
        raise ValueError(f"batch_size must be between 1 and the {len(inputs)} examples, not {batch_size}")
    if not isinstance(seeds, int) and len(seeds) != count:
        raise ValueError(f"need one seed, or one for each of {count} networks, not {len(seeds)}")
    stack = _Stack(models)
    runners = [_fused(make, inputs.device)(views) for make, views in zip(optimizers, stack.views, strict=True)]
    schedulers = [make(runner, steps) if make else None for make, runner in zip(schedules, runners, strict=True)]
    orders = _Orders(len(inputs), batch_size, [seeds] if isinstance(seeds, int) else list(seeds))
    shared = isinstance(seeds, int)
    prices = torch.zeros(count, dtype=torch.float64)
    looks, recent = [], torch.zeros(count, device=inputs.device)
    for step in range(1, steps + 1):
        began = seconds(inputs.device)
        rows = orders.next().to(inputs.device)  # (R or 1, B)
        batch, wanted = (inputs[rows[0]], labels[rows[0]]) if shared else (inputs[rows], labels[rows])
        losses = stack.backward(batch, wanted, loss, shared)
        recent += losses
        prices += (seconds(inputs.device) - began) / count
        for network, (runner, scheduler) in enumerate(zip(runners, schedulers, strict=True)):
            began = seconds(inputs.device)
            runner.step()
            if scheduler is not None:
                scheduler.step()
            prices[network] += seconds(inputs.device) - began
        if step % look_every == 0:
            seen = {name: stack.look(*split, loss) for name, split in (watch or {}).items()}
            looks.append((recent / look_every, seen))
            recent = torch.zeros_like(recent)
    stack.write_to(models)
    names = list(watch or {})
    return Looks(
        steps=torch.arange(1, len(looks) + 1) * look_every,
        train_loss=torch.stack([mean for mean, _ in looks], dim=1).cpu(),
        loss={name: torch.stack([seen[name][0] for _, seen in looks], dim=1).cpu() for name in names},
        accuracy={name: torch.stack([seen[name][1] for _, seen in looks], dim=1).cpu() for name in names},
        seconds=prices,
    )


def _fused(make: MakeOptimizer, device: torch.device) -> MakeOptimizer:
    kind, given = getattr(make, "func", make), getattr(make, "keywords", {})
    alone = device.type == "cpu" and not {"fused", "foreach", "differentiable"} & set(given)
    return partial(make, fused=True) if alone and kind in _FUSED else make  # type: ignore[call-arg]


class _Stack:
    """R networks as one set of tensors with R in front."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.parameters, self.buffers = stack_module_state(list(models))
        self.skeleton = copy.deepcopy(models[0]).to("meta")
        self.trained = {name: stacked for name, stacked in self.parameters.items() if stacked.requires_grad}
        # Views of each network's part, which are what its optimizer moves. Detached, so that autograd does not see it.
        self.views = [[stacked.detach()[network] for stacked in self.trained.values()] for network in range(len(models))]

    def forward(self, inputs: Tensor, shared: bool, training: bool) -> Tensor:
        """Outputs (R, B, ...) for one batch (B, ...) or, unless it is shared, for R of them."""
        self.skeleton.train(training)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self.skeleton, (parameters, buffers), (batch,))
            return outputs

        together = torch.vmap(one, in_dims=(0, 0, None if shared else 0), randomness="different")
        outputs: Tensor = together(self.parameters, self.buffers, inputs)
        return outputs

    def backward(self, inputs: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], shared: bool) -> Tensor:
        """Give every view its gradient; losses (R,)."""
        outputs = self.forward(inputs, shared, training=True)
        losses: Tensor = torch.vmap(loss, in_dims=(0, None if shared else 0))(outputs, labels)
        # A network's loss depends on its own weights alone, so the gradient of the sum holds the gradient of each.
        gradients = torch.autograd.grad(losses.sum(), list(self.trained.values()))
        # In the layout of the weights: batched products leave some transposed, and fused optimizers take that for granted.
        gradients = tuple(gradient.contiguous() for gradient in gradients)
        for network, views in enumerate(self.views):
            for view, gradient in zip(views, gradients, strict=True):
                view.grad = gradient[network]
        return losses.detach()

    @torch.no_grad()
    def look(self, inputs: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Loss (R,) and accuracy (R,) on a split; accuracies of numbers are nan."""
        outputs = torch.cat([self.forward(part, shared=True, training=False) for part in inputs.split(1024)], dim=1)
        losses: Tensor = torch.vmap(loss, in_dims=(0, None))(outputs, labels)
        if labels.is_floating_point():
            return losses, torch.full_like(losses, torch.nan)
        return losses, (outputs.argmax(dim=2) == labels).double().mean(dim=1)

    @torch.no_grad()
    def write_to(self, models: Sequence[nn.Module]) -> None:
        for network, model in enumerate(models):
            own = {name: stacked[network] for name, stacked in (self.parameters | self.buffers).items()}
            model.load_state_dict(own, strict=False)  # buffers that are not saved have no place in a state dict


class _Orders:
    """Rows of the next batch for each of several shuffled orders."""

    def __init__(self, count: int, batch_size: int, seeds: list[int]) -> None:
        self.count, self.batch_size = count, batch_size
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.at = count
        self.order = torch.empty(0)

    def next(self) -> Tensor:
        if self.at + self.batch_size > self.count:
            self.order = torch.stack([torch.randperm(self.count, generator=generator) for generator in self.generators])
            self.at = 0
        self.at += self.batch_size
        return self.order[:, self.at - self.batch_size : self.at]
