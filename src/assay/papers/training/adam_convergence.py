"""Does Adam converge, and when? Small beta2 sends it to the worst point of a line; beta2 near 1 does not.

Adam divides the step by the root of a running mean of squared gradients, whose memory is about 1 / (1 - beta2) steps. Take
linear functions on [-1, 1] that come round and round: one of C steep ones, f(x) = C x, then P - 1 of the others, f(x) = -x,
with C > P - 1, so that their sum is smallest at x = -1. Right after the steep one the denominator is large, so the step that
points the right way is short; when it has forgotten, the many that point the wrong way are long. With a short memory Adam
walks to x = +1 and stays there, whatever the step size. The remedies: a memory long enough for the problem (beta2 near 1), or
AMSGrad, which remembers the largest denominator. (As in torch the maximum is taken before the bias correction, so that in the
first 1 / (1 - beta2) steps the denominator can still fall; in algorithm 2 of the paper, without correction, it never does.)

There is no contradiction with Adam's success. Reddi et al. fix beta2 and then choose the problem; Shi et al. fix the problem
(a finite sum, visited in random order) and show that for beta2 near enough to 1 the iterates end in a region that shrinks to
the critical points.

Sources: Zhang, Chen and Luo, "Does Adam Converge and When?", ICLR blog track 2022; Reddi, Kale and Kumar, "On the Convergence
of Adam and Beyond", ICLR 2018 (theorems 1 and 2, algorithm 2); Shi, Li, Hong and Sun, "RMSprop converges with proper
hyper-parameter", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from assay.errors import AssayError
from assay.nn import mlp
from assay.paper import Above, Below, Cost, Curve, Higher, Lower, Score, claim
from assay.recipe import Recipe, treatment
from assay.train.schedules import inverse_sqrt

if TYPE_CHECKING:
    from assay.lab import Lab
    from assay.paper import Measured
    from assay.train.loop import Trained

Array = NDArray[np.float64]
Variant = Literal["adam", "amsgrad", "sgd"]


def slopes(
    steep: float,
    period: int,
    steps: int,
    order: Literal["cyclic", "shuffled"] = "cyclic",
    generator: np.random.Generator | None = None,
) -> Array:
    """Gradients of the counterexample, which do not depend on x: ``steep`` once in a period, -1 otherwise.

    Args:
        steep: C; above ``period - 1``, so that the sum over a period is smallest at x = -1.
        period: P, how many functions there are. Theorem 1 has 3, theorem 2 has P = C.
        steps: how many gradients.
        order: ``"cyclic"`` (the steep one first), or ``"shuffled"`` anew in every period, as people train.
        generator: of the shuffling.

    Returns:
        (steps,).

    Raises:
        ValueError: the sum would not be smallest at -1.
    """
    if steep <= period - 1:
        raise ValueError(f"steep must be above period - 1 = {period - 1}, not {steep}: the optimum would not be -1")
    rounds = -(-steps // period)
    places = np.zeros(rounds, dtype=int)
    if order == "shuffled":
        places = (generator or np.random.default_rng(0)).integers(period, size=rounds)
    gradients = np.full((rounds, period), -1.0)
    gradients[np.arange(rounds), places] = steep
    return gradients.reshape(-1)[:steps]


def descend(
    gradients: Array,
    variant: Variant = "adam",
    beta1: Array | float = 0.0,
    beta2: Array | float = 0.999,
    lr: float = 0.1,
    start: Array | float = 0.0,
    eps: float = 1e-8,
    last: int = 300,
) -> Array:
    """Projected descent on [-1, 1] with step size ``lr / sqrt(t)``, for a whole grid of settings at once.

    Args:
        gradients: (T, ...) gradient at each step; trailing axes broadcast with the grid.
        variant: ``"adam"`` (with ``beta1=0`` RMSprop with bias correction), ``"amsgrad"`` or ``"sgd"``.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squared gradients.
        lr: step size at the first step.
        start: where x begins.
        eps: added to the root, as in ``torch.optim.Adam``.
        last: the mean of so many last iterates is returned, since x swings within a period.

    Returns:
        Where x ends, for every setting of the grid.
    """
    shape = np.broadcast_shapes(gradients.shape[1:], np.shape(beta1), np.shape(beta2), np.shape(start))
    x = np.broadcast_to(np.asarray(start, dtype=np.float64), shape).copy()
    m, v, highest, total = (np.zeros(shape) for _ in range(4))
    decay1, decay2 = np.asarray(beta1, dtype=np.float64), np.asarray(beta2, dtype=np.float64)
    for t, g in enumerate(gradients, start=1):
        rate = lr / t**0.5
        if variant == "sgd":
            x -= rate * g
        else:
            m += (1 - decay1) * (g - m)
            v += (1 - decay2) * (g * g - v)
            if variant == "amsgrad":
                np.maximum(highest, v, out=highest)  # the largest so far, before bias correction
            second = highest if variant == "amsgrad" else v
            x -= rate * (m / (1 - decay1**t)) / (np.sqrt(second / (1 - decay2**t)) + eps)
        np.clip(x, -1, 1, out=x)
        if t > len(gradients) - last:
            total += x
    return total / min(last, len(gradients))


def divergence_bound(steep: float) -> float:
    """The beta2 below which theorem 2 proves that Adam with beta1 = 0 does not converge, for P = C = ``steep`` >= 5.

    The smaller of C^(-4 / (C - 2)) and 1 - (9 / (2 C))^2. It is sufficient, far from necessary.
    """
    if steep < 5:
        raise ValueError(f"the theorem needs steep >= 5, not {steep}")
    return float(min(steep ** (-4 / (steep - 2)), 1 - (9 / (2 * steep)) ** 2))


@treatment
def amsgrad(recipe: Recipe) -> Recipe:
    """Train with AMSGrad: the recipe's Adam or AdamW with torch's ``amsgrad=True``."""
    made = recipe.optimizer
    kind = getattr(made, "func", made)
    if kind not in (torch.optim.Adam, torch.optim.AdamW):
        raise AssayError(f"AMSGrad is a change of Adam, and this recipe trains with {getattr(kind, '__name__', kind)}.")
    return recipe.replace(optimizer=partial(made, amsgrad=True))


# -------------------------------------------------------------------------------------------------------- the claims

_STEEP = (3.0, 6.0, 10.0)
_BETAS = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999])


def _ends(lab: Lab, gradients: Array, variant: Variant = "adam", betas: Sequence[float] | Array = _BETAS) -> Array:
    """Where x ends for every beta2 of the grid, from a start that the seed draws: (..., betas)."""
    start = np.random.default_rng(lab.seed).uniform(-1, 1)
    return descend(gradients[..., None], variant, beta2=np.asarray(betas), start=start)


def _line(ends: Array) -> Curve:
    return Curve(ends.tolist(), x=_BETAS.tolist(), x_name="beta2", y_name="where x ends (-1 is best)")


@claim(
    "One steep function in three: for every C of 3, 6 and 10 Adam (beta1 = 0) ends at the worst point with beta2 = 0.02 and at "
    "the best with 0.999, the beta2 that separates the two falls as C grows, and AMSGrad and plain descent end at the best for "
    "every beta2.",
    expect=(
        Above("Adam, beta2 0.02, lowest end", 0.9),
        Below("Adam, beta2 0.999, highest end", -0.9),
        Below("AMSGrad, highest end", -0.9),
        Below("SGD, highest end", -0.9),
        Lower("threshold, C = 6", than="threshold, C = 3"),
        Lower("threshold, C = 10", than="threshold, C = 6"),
    ),
    scaled_down="Nothing: the problem is theorem 1's. 20,000 steps from a random start; the mean of the last 300 points counts.",
    unit="where x ends in [-1, 1] (-1 is best), or a threshold of beta2",
)
def short_memory_ends_at_the_worst_point(lab: Lab) -> Measured:
    steps = lab.pick(smoke=3_000, laptop=20_000, full=100_000)
    lines = {steep: slopes(steep, 3, steps) for steep in _STEEP}
    together = np.stack(list(lines.values()), axis=1)  # (T, 3)
    adam, careful, plain = (_ends(lab, together, variant) for variant in ("adam", "amsgrad", "sgd"))
    arms: dict[str, float | Curve] = {
        "Adam, beta2 0.02, lowest end": adam[:, 0].min(),
        "Adam, beta2 0.999, highest end": adam[:, -1].max(),
        "AMSGrad, highest end": careful.max(),
        "SGD, highest end": plain.max(),
    }
    for steep, ends in zip(lines, adam, strict=True):
        arms[f"Adam, C = {steep:g}"] = _line(ends)
        arms[f"threshold, C = {steep:g}"] = _threshold(ends)
    return arms


def _threshold(ends: Array) -> float:
    """Where x, as a function of beta2, crosses 0 on its way from +1 to -1 (between two points of the grid: a straight line)."""
    wrong = np.flatnonzero(ends > 0)
    if not len(wrong):
        return float(_BETAS[0])
    low = int(wrong[-1])
    if low + 1 == len(_BETAS):
        return float(_BETAS[-1])
    share = ends[low] / (ends[low] - ends[low + 1])
    return float(_BETAS[low] + share * (_BETAS[low + 1] - _BETAS[low]))


@claim(
    "One steep function in C: with beta2 at the bound of theorem 2 Adam (beta1 = 0) ends on the wrong side for every C from 5 to "
    "20, while with beta2 = 0.999 it ends on the right one; so the bound holds, and it is far from tight.",
    expect=(Above("Adam at the bound, lowest end", 0.5), Below("Adam, beta2 0.999, highest end", -0.5)),
    scaled_down="Nothing: the problem is theorem 2's. 300,000 steps from a random start.",
    unit="where x ends in [-1, 1] (-1 is best)",
)
def the_bound_of_theorem_2_is_sufficient(lab: Lab) -> Measured:
    steep = np.arange(5.0, 21.0)
    steps = lab.pick(smoke=3_000, laptop=300_000, full=2_000_000)
    gradients = np.stack([slopes(c, int(c), steps) for c in steep], axis=1)  # (T, 16)
    start = np.random.default_rng(lab.seed).uniform(-1, 1)
    bounds = np.array([divergence_bound(c) for c in steep])
    at_bound, careful = (descend(gradients, beta2=beta2, start=start) for beta2 in (bounds, 0.999))
    line = partial(Curve, x=steep.tolist(), x_name="C", y_name="where x ends (-1 is best)")
    return {
        "Adam at the bound, lowest end": line(at_bound.tolist(), value=at_bound.min()),
        "Adam, beta2 0.999, highest end": line(careful.tolist(), value=careful.max()),
        "AMSGrad at the bound, highest end": descend(gradients, "amsgrad", beta2=bounds, start=start).max(),
    }


@claim(
    "In random order, as people train, Adam (beta1 = 0) on one steep function in 10 (C = 10) ends nearer to the best point with "
    "beta2 = 0.99 than with 0.9, and with 0.999 within 0.1 of it.",
    expect=(Lower("gap, beta2 0.99", than="gap, beta2 0.9"), Below("gap, beta2 0.999", 0.1)),
    scaled_down="Nothing: 300,000 steps from a random start, the ten functions shuffled anew every time round.",
    unit="distance of x from the best point",
)
def long_memory_mends_it_in_random_order(lab: Lab) -> Measured:
    steps = lab.pick(smoke=3_000, laptop=300_000, full=2_000_000)
    ends = _ends(lab, slopes(10.0, 10, steps, "shuffled", np.random.default_rng(lab.seed)))
    at = dict(zip(_BETAS.tolist(), ends.tolist(), strict=True))
    gaps = {f"gap, beta2 {beta2:g}": at[beta2] + 1 for beta2 in (0.5, 0.9, 0.99, 0.999)}
    return {**gaps, "Adam": _line(ends)}


_RATES = (1e-3, 3e-3, 1e-2, 3e-2)


def _network(lab: Lab, batch_size: int, beta2: float, rate: float, careful: bool = False) -> Recipe:
    data = lab.data("mnist5k")
    if lab.scale == "smoke":
        data = data.subset(train=200, test=50)
    recipe = Recipe(
        data,
        model=partial(mlp, 784, 10, (128,)),
        optimizer=partial(torch.optim.Adam, lr=rate, betas=(0.0, beta2)),
        schedule=inverse_sqrt,
        epochs=lab.pick(smoke=1, laptop=5, full=50),
        batch_size=batch_size,
        watch=(),
    )
    return amsgrad(recipe) if careful else recipe


def _loss(lab: Lab, batch_size: int, beta2: float, careful: bool = False) -> Score:
    """Lowest final training loss over the rates, as a power of ten: every setting gets the same four trials."""
    runs: list[Trained] = [lab.train(_network(lab, batch_size, beta2, rate, careful)) for rate in _RATES]
    losses = [max(run.loss("train"), 1e-12) for run in runs]
    best = int(np.argmin(losses))
    seconds = [run.seconds for run in runs]
    return Score(float(np.log10(losses[best])), Cost(seconds=sum(seconds), parameters=runs[best].parameters))


@claim(
    "The same on a real task: in minibatches of 8 digits Adam (beta1 = 0, the rate tuned for each beta2) ends at a higher "
    "training loss with beta2 = 0.1 than with 0.999, and the harm is smaller in batches of 512.",
    expect=(
        Higher("batch 8, beta2 0.1", than="batch 8, beta2 0.999"),
        Higher("harm in batches of 8", than="harm in batches of 512"),
    ),
    scaled_down="MNIST 5k and a perceptron (784-128-10), 5 epochs; the rate falls with the root of the step, best of four rates.",
    unit="final training loss, as a power of ten (0.3 is a factor of two)",
)
def short_memory_hurts_on_digits(lab: Lab) -> Measured:
    betas = lab.pick(smoke=(0.1, 0.999), laptop=(0.1, 0.5, 0.9, 0.999), full=(0.1, 0.5, 0.9, 0.99, 0.999))
    arms = {f"batch {size}, beta2 {beta2:g}": _loss(lab, size, beta2) for size in (8, 64, 512) for beta2 in betas}
    arms["batch 8, beta2 0.1, AMSGrad"] = _loss(lab, 8, 0.1, careful=True)
    harm = {
        f"harm in batches of {size}": Score(arms[f"batch {size}, beta2 0.1"] - arms[f"batch {size}, beta2 0.999"])
        for size in (8, 64, 512)
    }
    return {**arms, **harm}
