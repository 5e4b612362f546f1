"""The path from stand-ins to the real examples, for any network and optimizer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.papers.training.errorless_training.floor import label_conflict_floor

Match = Literal["nearest", "random"]


@torch.no_grad()
def logits_of(model: nn.Module, X: Tensor) -> Tensor:
    """Outputs (N, C) of a network for (N, ...) inputs, in evaluation mode and on the network's device."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    model.eval()
    found = torch.cat([model(part.to(device)) for part in X.split(2048)])
    for module, training in modes:
        module.training = training
    return found


def predictions(model: nn.Module, X: Tensor) -> Tensor:
    """The class that a network gives each of (N, ...) inputs: (N,) int64 on the network's device."""
    return logits_of(model, X).argmax(dim=1)


@torch.no_grad()
def stand_ins(X: Tensor, y: Tensor, right: Tensor, match: Match = "nearest", generator: torch.Generator | None = None) -> Tensor:
    """For every example the position of the one that stands in for it.

    An example that is right is its own; one that is wrong gets a right one with the same label, and itself where its class has
    none.

    Args:
        X: (N, ...), float (Euclidean distance) or int64 token ids (number of differing entries).
        y: (N,) int64.
        right: (N,) bool, which the network classifies correctly.
        match: the ``"nearest"`` right one of the class, or a ``"random"`` one.
        generator: for ``"random"``.

    Returns:
        (N,) int64 on the CPU.
    """
    y, right = y.cpu(), right.cpu()
    source = torch.arange(len(y))
    for label in y[~right].unique().tolist():
        wrong = ((y == label) & ~right).nonzero().flatten()
        known = ((y == label) & right).nonzero().flatten()
        if not len(known):
            continue
        if match == "random":
            source[wrong] = known[torch.randint(len(known), (len(wrong),), generator=generator)]
            continue
        others = X[known.to(X.device)].flatten(1).float()
        power = 2.0 if X.is_floating_point() else 0.0  # the zeroth power counts the entries that differ
        for part in wrong.split(512):
            apart = torch.cdist(X[part.to(X.device)].flatten(1).float(), others, p=power)
            source[part] = known[apart.argmin(dim=1).cpu()]
    return source


def clone_misclassified(
    model: nn.Module, X: Tensor, y: Tensor, match: Match = "nearest", generator: torch.Generator | None = None
) -> Tensor:
    """Positions (N,) of the auxiliary data: ``X[clone_misclassified(model, X, y)]`` with labels ``y`` has no errors.

    Args:
        model: gives logits (B, C).
        X: (N, ...).
        y: (N,) int64.
        match: see :func:`stand_ins`.
        generator: for ``match="random"``.

    Raises:
        ValueError: of some class the network gets no example right, so that nothing can stand in.
    """
    right = predictions(model, X).to(y.device) == y
    source = stand_ins(X, y, right, match, generator)
    bare = ~right.cpu() & (source == torch.arange(len(y)))
    if bare.any():
        raise ValueError(
            f"the network gets no example of class {int(y.cpu()[bare][0])} right that could stand in: train it longer first"
        )
    return source


def hybrid(real: Tensor, clones: Tensor, lam: float) -> Tensor:
    """On the way from the stand-ins (``lam=0``) to the real examples (``lam=1``), both (B, ...).

    Numbers go straight. Token ids cannot be mixed: one position after the other changes over, in an order that is random and
    the same for all examples.
    """
    if real.is_floating_point():
        return torch.lerp(clones, real, lam)
    turn = torch.rand(real.shape[1:], generator=torch.Generator().manual_seed(0)).to(real.device)
    return torch.where(turn < lam, real, clones)


@dataclass(frozen=True)
class Point:
    """Where a training stood when it was looked at: steps taken, lambda, errors on the *real* data, seconds since the start."""

    steps: int
    lam: float
    errors: int
    seconds: float


@dataclass
class Tunnel:
    """What :func:`tunnel_train` did.

    Attributes:
        lam: how far it came; 1 is the real data.
        steps: gradient steps taken.
        history: a :class:`Point` for each pass over the data.
    """

    lam: float = 0.0
    steps: int = 0
    history: list[Point] = field(default_factory=list)


def descend(
    model: nn.Module,
    X: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    batch_size: int = 512,
    enough: int = 0,
    emphasis: float = 1.0,
    generator: torch.Generator | None = None,
    look: Callable[[int, Tensor], None] | None = None,
) -> tuple[bool, int]:
    """Train with cross-entropy until no more than ``enough`` examples are wrong; they are counted after each pass.

    Args:
        model: gives logits; it is trained in the mode that it is in.
        X: (N, ...), on the model's device.
        y: (N,) int64, there too.
        optimizer: of the model's parameters.
        steps: at most so many.
        batch_size: examples in a step; N or more takes all.
        enough: errors that may be left.
        emphasis: weight of examples that were wrong at the last count, beside 1 for the others (a control; the method has 1).
        generator: of the order, on the CPU.
        look: is told ``(steps taken, (N,) bool which are wrong)`` at every count.

    Returns:
        Whether it got there, and the steps that it took.
    """
    taken = 0
    while True:
        wrong = predictions(model, X) != y
        errors = int(wrong.sum())
        if look is not None:
            look(taken, wrong)
        if errors <= enough or taken >= steps:
            return errors <= enough, taken
        weights = torch.where(wrong, emphasis, 1.0)
        for rows in torch.randperm(len(y), generator=generator).to(X.device).split(batch_size)[: steps - taken]:
            optimizer.zero_grad(set_to_none=True)
            losses, weigh = F.cross_entropy(model(X[rows]), y[rows], reduction="none"), weights[rows]
            ((losses * weigh).sum() / weigh.sum()).backward()
            optimizer.step()
            taken += 1


def tunnel_train(
    model: nn.Module,
    X: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    step: float = 0.1,
    min_step: float = 1e-3,
    inner_steps: int = 500,
    max_steps: int = 10_000,
    batch_size: int = 512,
    match: Match = "nearest",
    generator: torch.Generator | None = None,
    watch: Callable[[Point], None] | None = None,
) -> Tunnel:
    """Gradient descent tunnelling, from a network that was trained as usual; it is left at the last stage that was reached.

    A stage is reached when nothing is wrong; the last one, on the real data, when no more is wrong than contradicting labels
    make unavoidable. With a path that ended early (``lam`` below 1) the network has never seen the real examples alone.

    Args:
        model: gives logits (B, C); its weights are changed.
        X: (N, ...), on the model's device.
        y: (N,) int64, there too.
        optimizer: of the model's parameters; its state goes back with the weights when a stage fails.
        step: of lambda at the start. It is doubled after a stage that took a quarter of its steps or fewer.
        min_step: the path ends when a stage fails and half its step would be smaller.
        inner_steps: gradient steps that a stage may take. The first needs most: its start is right by the narrowest margins.
        max_steps: gradient steps of all stages, those of failed ones too.
        batch_size: examples in a step.
        match: which stand-in, see :func:`stand_ins`.
        generator: of the order and of random stand-ins, on the CPU.
        watch: is told every :class:`Point` while the network stands there.

    Raises:
        ValueError: a class of which nothing is right, or steps that are not positive.
    """
    if not 0 < min_step <= step or inner_steps < 1 or max_steps < 1:
        raise ValueError(f"steps must be positive and min_step at most step, not {step}, {min_step}, {inner_steps}, {max_steps}")
    source = clone_misclassified(model, X, y, match, generator)
    moved = (source != torch.arange(len(y))).nonzero().flatten().to(X.device)
    real, clones = X[moved], X[source.to(X.device)[moved]]
    mixed, unavoidable = X.clone(), label_conflict_floor(X, y).errors
    walk, began = Tunnel(), time.perf_counter()

    def look(taken: int, wrong: Tensor) -> None:
        # Examples without a stand-in are the same here and in the real data.
        errors = int(wrong.sum() - wrong[moved].sum()) + int((predictions(model, real) != y[moved]).sum())
        walk.history.append(Point(walk.steps + taken, ahead, errors, time.perf_counter() - began))
        if watch is not None:
            watch(walk.history[-1])

    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    while walk.lam < 1 and walk.steps < max_steps:
        ahead = walk.lam + step if walk.lam + step < 1 - 1e-9 else 1.0  # ten tenths are less than 1 by rounding
        mixed[moved] = hybrid(real, clones, ahead)
        allowed, enough = min(inner_steps, max_steps - walk.steps), unavoidable if ahead == 1 else 0
        arrived, taken = descend(model, mixed, y, optimizer, allowed, batch_size, enough, generator=generator, look=look)
        walk.steps += taken
        if arrived:
            walk.lam, kept = ahead, copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            step = 2 * step if taken <= inner_steps // 4 else step
            continue
        model.load_state_dict(kept[0])
        optimizer.load_state_dict(copy.deepcopy(kept[1]))
        if step / 2 < min_step:
            break
        step /= 2
    return walk
