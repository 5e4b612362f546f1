"""Learning-rate schedules, each ``(optimizer, steps) -> LRScheduler`` for ``Recipe(schedule=...)``, made of torch's own.

Use ``functools.partial`` for their arguments: ``schedule=partial(warmup_cosine, warmup=0.1)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, MultiStepLR, OneCycleLR, SequentialLR


def cosine(optimizer: Optimizer, steps: int, final: float = 0.0) -> LRScheduler:
    """Half a cosine from the full rate down to ``final`` (a rate, not a factor) over the whole training."""
    return CosineAnnealingLR(optimizer, T_max=steps, eta_min=final)


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05) -> LRScheduler:
    """Linear warm-up over the fraction ``warmup`` of all steps, then half a cosine to 0."""
    first = max(1, round(warmup * steps))
    rise = LinearLR(optimizer, start_factor=1 / (first + 1), total_iters=first)
    return SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, T_max=max(1, steps - first))], milestones=[first])


def linear(optimizer: Optimizer, steps: int, final: float = 0.0) -> LRScheduler:
    """A straight line from the full rate to the fraction ``final`` of it."""
    return LinearLR(optimizer, start_factor=1.0, end_factor=final, total_iters=steps)


def steps_at(optimizer: Optimizer, steps: int, at: Sequence[float], gamma: float) -> LRScheduler:
    """Multiply the rate by ``gamma`` at each fraction ``at`` of the training: ``at=(0.3, 0.6, 0.8), gamma=0.2``."""
    return MultiStepLR(optimizer, milestones=[round(fraction * steps) for fraction in at], gamma=gamma)


def inverse_sqrt(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The full rate divided by the square root of the step, counted from 1: what convergence proofs of online learning use."""
    return LambdaLR(optimizer, lambda step: (1 + step) ** -0.5)


def one_cycle(optimizer: Optimizer, steps: int, warmup: float = 0.3) -> LRScheduler:
    """Up from a 25th of the rate over the fraction ``warmup`` of the training, then down to almost 0, both along half cosines.

    Momentum (or beta1), where the optimizer has one, goes from 0.95 down to 0.85 and back.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    moves = any("betas" in group or group.get("momentum") for group in optimizer.param_groups)
    # One step more than there are: the scheduler is stepped after the last one too.
    return OneCycleLR(optimizer, rates, total_steps=steps + 1, pct_start=warmup, cycle_momentum=moves)


def exponential(optimizer: Optimizer, steps: int, final: float = 0.03) -> LRScheduler:
    """Multiply the rate by the same factor after every step, so that it ends at the fraction ``final`` of what it was."""
    return LambdaLR(optimizer, lambda step: final ** (step / steps))
