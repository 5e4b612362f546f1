"""Time to quality: which method reaches what the baseline reaches, and at what price?

The survey's rules for such a comparison: the baseline *and* every method are trained at several lengths, each with its own
schedule brought to its end; the price is counted in seconds on a stated machine and in operations; a speed-up is the ratio of
prices at equal quality, read from the two curves; all are tuned with as many trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from assay import clock
from assay.errors import AssayError
from assay.recipe import Recipe
from assay.train.compare import accuracy, compare
from assay.train.hooks import InputHook, Run
from assay.train.loop import Trained, fit

if TYPE_CHECKING:
    import pandas as pd

Price = Literal["seconds", "flops"]
BASELINE = "baseline"


def price_at(prices: Sequence[float], qualities: Sequence[float], quality: float) -> tuple[float, Literal["", "<", ">"]]:
    """What it costs to reach a quality, read from trainings of several lengths.

    Between two lengths the curve is a straight line over the logarithm of the price. A training that reaches less than a shorter
    one does not count: one would take the shorter one.

    Args:
        prices: of the trainings, positive, in any order.
        qualities: what they reached, higher is better.
        quality: what is to be reached.

    Returns:
        The price, and ``"<"`` where the shortest training reaches more (the true price is at most that of it), ``">"`` where none
        gets there (the true price is above that of the longest), else ``""``.
    """
    order = np.argsort(prices)
    logs = np.log(np.asarray(prices, dtype=float)[order])
    best = np.maximum.accumulate(np.asarray(qualities, dtype=float)[order])
    if quality <= best[0]:
        return float(np.exp(logs[0])), "" if quality == best[0] else "<"
    if quality > best[-1]:
        return float(np.exp(logs[-1])), ">"
    place = int(np.searchsorted(best, quality))  # the first that reaches it
    share = (quality - best[place - 1]) / (best[place] - best[place - 1])
    return float(np.exp(logs[place - 1] + share * (logs[place] - logs[place - 1]))), ""


def training_flops(recipe: Recipe, examples: int = 256) -> float:
    """Floating-point operations of convolutions and matrix products in a whole training, forwards and backwards.

    Counted by torch's own counter in a training of the same length on a few batches (counting slows a training down), and
    scaled to all. So whatever a method really computes or saves is in it.

    Args:
        recipe: what to count; its hooks must go by the share of the training that is over, or by epochs.
        examples: how many to count with, rounded down to whole batches.
    """
    count = len(recipe.data.train)
    few = min(count, max(1, examples // recipe.batch_size) * recipe.batch_size)
    part = recipe.replace(data=recipe.data.subset(train=few, seed=0), watch=(), devices=1)
    with FlopCounterMode(display=False) as counter:
        fit(part, seed=0)
    return float(counter.get_total_flops()) * count / few


class _Stopwatch(InputHook):
    """Adds up what passes between the moments of a step, over all epochs but the first, which warms everything up."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)
        self.last: float | None = None

    def _mark(self, name: str, run: Run) -> None:
        now = clock.seconds(run.device)
        if self.last is not None and run.epoch > 0:
            self.spent[name] += now - self.last
        self.last = now

    def before_forward(self, run: Run) -> None:
        self._mark("data", run)

    def before_loss(self, run: Run) -> None:
        self._mark("forward", run)

    def after_backward(self, run: Run) -> None:
        self._mark("backward", run)

    def after_step(self, run: Run) -> None:
        self._mark("optimizer", run)

    def after_epoch(self, run: Run) -> None:
        self.last = None  # what happens between epochs is no part of a step


def where_time_goes(recipe: Recipe, steps: int = 50, seed: int = 0, device: torch.device | str = "cpu") -> dict[str, float]:
    """Which part of a training is the bottleneck: a method that spares another part saves operations and no time.

    Args:
        recipe: what is trained, for two short epochs of which the second is timed.
        steps: of the second epoch, at most, two at least; fewer where the data are over before.
        seed: of the training.
        device: where to train; one device, whatever the recipe says.

    Returns:
        Shares of the time, which add up to 1: ``"data"`` (gathering and augmenting a batch, and what hooks do to it),
        ``"forward"``, ``"backward"`` (the loss and its gradients, clipping) and ``"optimizer"`` (with its schedule).

    Raises:
        AssayError: batches are cut into parts (``accumulate``), whose passes alternate, or there is one batch only.
    """
    if recipe.accumulate > 1:
        raise AssayError("Batches that are cut into parts cannot be timed so: take accumulate=1 and a smaller batch_size.")
    few = min(len(recipe.data.train), steps * recipe.batch_size)
    if few <= recipe.batch_size:
        raise AssayError(
            f"{steps} steps of {recipe.batch_size} examples out of {recipe.data.name!r} make a single batch, and a step is timed "
            "from the second one on: take more steps or a smaller batch_size."
        )
    watch = _Stopwatch()
    data, hooks = recipe.data.subset(train=few, seed=seed), (*recipe.hooks, watch)
    part = recipe.replace(data=data, epochs=2, watch=(), hooks=hooks, devices=1)
    fit(part, seed, device)
    whole = sum(watch.spent.values())
    return {name: spent / whole for name, spent in watch.spent.items()}


@dataclass(frozen=True)
class Point:
    """One training of one length.

    Args:
        method: the method's name, or ``"baseline"``.
        seed: points of one seed share data, order and initial weights.
        epochs: its length.
        rate: learning rate, the best of as many trials for each method.
        seconds: price on this machine; evaluation is not counted.
        flops: price in operations (:func:`training_flops`).
        valid: quality on held-out data, higher is better.
        test: quality on test data.
    """

    method: str
    seed: int
    epochs: int
    rate: float
    seconds: float
    flops: float
    valid: float
    test: float


@dataclass(frozen=True)
class Benchmark:
    """Trainings of several lengths for every method and seed, and the speed-ups that follow."""

    points: tuple[Point, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names, the baseline first."""
        return tuple(dict.fromkeys(point.method for point in self.points))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, in the order in which they came."""
        return tuple(dict.fromkeys(point.seed for point in self.points))

    def of(self, method: str, seed: int) -> tuple[Point, ...]:
        """The trainings of a method with a seed, from short to long."""
        return tuple(sorted((p for p in self.points if (p.method, p.seed) == (method, seed)), key=lambda point: point.epochs))

    def speedup(
        self, method: str, seed: int, price: Price = "seconds", on: Literal["valid", "test"] = "test", epochs: int | None = None
    ) -> tuple[float, Literal["", "<", ">"]]:
        """How much cheaper the method reaches what the baseline reaches within ``epochs`` (its middle length): price over price.

        Where a shorter training of the baseline reaches as much, its price is the baseline's, as it would be the method's.

        Returns:
            The ratio, and ``"<"`` or ``">"`` where it is only known to be below or above that (see :func:`price_at`).

        Raises:
            AssayError: the baseline has no training as short as that.
        """
        lengths = self.of(BASELINE, seed)
        most = lengths[len(lengths) // 2].epochs if epochs is None else epochs
        within = [point for point in lengths if point.epochs <= most]
        if not within:
            raise AssayError(f"The baseline's shortest training has {lengths[0].epochs} epochs, so nothing is known of {most}.")
        goal = max(within, key=lambda point: float(getattr(point, on)))  # of equally good ones the shortest
        own = self.of(method, seed)
        needed, bound = price_at([getattr(p, price) for p in own], [getattr(p, on) for p in own], getattr(goal, on))
        turned: dict[str, Literal["", "<", ">"]] = {"": "", "<": ">", ">": "<"}
        return getattr(goal, price) / needed, turned[bound]

    def saved(self, method: str, seed: int, price: Price = "seconds") -> float:
        """Share of the baseline's price that the method saves at the longest length, whatever the quality; negative: it costs."""
        mine, theirs = self.of(method, seed)[-1], self.of(BASELINE, seed)[-1]
        return 1 - float(getattr(mine, price)) / float(getattr(theirs, price))

    def table(self) -> pd.DataFrame:
        """One row a method, the fastest first.

        Columns: ``speedup`` (geometric mean over seeds, in seconds at equal test quality) with ``lowest`` and ``highest``,
        ``bounded`` (share of the seeds for which it is only a bound), ``speedup_flops``, ``seconds_saved`` and ``flops_saved``
        (shares, at the longest length), ``gain`` (test quality above the baseline's there).
        """
        import pandas as pd

        rows = {}
        for method in self.methods:
            gains = [self.of(method, seed)[-1].test - self.of(BASELINE, seed)[-1].test for seed in self.seeds]
            ratios = [self.speedup(method, seed) for seed in self.seeds]
            flops = [self.speedup(method, seed, "flops")[0] for seed in self.seeds]
            rows[method] = {
                "speedup": math.exp(np.mean(np.log([ratio for ratio, _ in ratios]))),
                "lowest": min(ratio for ratio, _ in ratios),
                "highest": max(ratio for ratio, _ in ratios),
                "bounded": float(np.mean([bool(bound) for _, bound in ratios])),
                "speedup_flops": math.exp(np.mean(np.log(flops))),
                "seconds_saved": float(np.mean([self.saved(method, seed) for seed in self.seeds])),
                "flops_saved": float(np.mean([self.saved(method, seed, "flops") for seed in self.seeds])),
                "gain": float(np.mean(gains)),
            }
        return pd.DataFrame.from_dict(rows, orient="index").sort_values("speedup", ascending=False, kind="stable")


def benchmark(
    plain: Recipe,
    methods: Mapping[str, Callable[[Recipe], Recipe]],
    epochs: Sequence[int] = (4, 8, 16),
    rates: Sequence[float] = (0.03, 0.1, 0.3),
    seeds: Sequence[int] = (0, 1, 2),
    train: Callable[[Recipe, int], Trained] = fit,
    quality: Callable[[Trained, str], float] = accuracy,
) -> Benchmark:
    """Train the baseline and every method at several lengths.

    Args:
        plain: the baseline, with held-out data (``data.holdout``) and a schedule that ends with the training.
        methods: name -> treatment. One that brings an optimizer of its own takes no notice of ``rates``, and so is not tuned.
        epochs: lengths, at least two. At the middle one each method's learning rate is chosen on held-out data; the other lengths
            take it over.
        rates: learning rates to choose among, the same number of trials for the baseline and for every method.
        seeds: what is repeated.
        train: ``(recipe, seed) -> Trained``; inside a claim ``lab.train``, which remembers.
        quality: ``(trained, split) -> number``, higher is better.

    Raises:
        AssayError: nothing is held out, there is a single length, or a method cannot be put on this recipe.
        Diverged: the rate chosen at the middle length fails at another; where all fail there, it is a plain AssayError.
    """
    lengths = sorted(set(epochs))
    if len(lengths) < 2:
        raise AssayError("A curve needs at least two lengths: give epochs=(4, 8, 16), say.")
    middle = lengths[len(lengths) // 2]

    def made(method: Callable[[Recipe], Recipe], length: int, rate: float) -> Recipe:
        return method(plain.replace(epochs=length, optimizer=partial(plain.optimizer, lr=rate)))

    points = []
    for name, method in {BASELINE: _as_it_is, **methods}.items():
        flops = {length: training_flops(made(method, length, rates[0])) for length in lengths}
        for seed in seeds:
            best = compare({name: partial(made, method, middle)}, rates, (seed,), train, quality).chosen(name, seed)
            points.append(Point(name, seed, middle, best.setting, best.seconds, flops[middle], best.valid, best.test))
            for length in lengths:
                if length != middle:
                    trained = train(made(method, length, best.setting), seed)
                    valid, test = quality(trained, "valid"), quality(trained, "test")
                    points.append(Point(name, seed, length, best.setting, trained.seconds, flops[length], valid, test))
    return Benchmark(tuple(points))


def _as_it_is(recipe: Recipe) -> Recipe:
    return recipe
