"""A fair comparison: every arm gets as many trials, the best of them is chosen on held-out data, test data decide nothing.

from functools import partial
import torch
from assay.train.compare import compare

def adam(rate): return plain.replace(optimizer=partial(torch.optim.Adam, lr=rate))
def sgd(rate): return plain.replace(optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9))

found = compare({"Adam": adam, "SGD": sgd}, {"Adam": (1e-4, 1e-3, 1e-2), "SGD": (0.01, 0.1, 1.0)}, seeds=(0, 1, 2))
print(found.table())
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from assay.errors import AssayError, Diverged
from assay.recipe import Recipe
from assay.train.loop import Trained, fit

if TYPE_CHECKING:
    import pandas as pd

    from assay.data import Split


@dataclass(frozen=True)
class Trial:
    """One training of one arm with one setting.

    Args:
        arm: what was trained.
        setting: the value of the grid, e.g. a learning rate.
        seed: trials of one seed share their data, order and initial weights.
        valid: quality on held-out data, by which a setting is chosen; higher is better, not finite if it diverged.
        test: quality on test data, which is reported.
        seconds: what it took.
        curve: quality on held-out data as the training went on.
        at: where the points of the curve were taken (steps, epochs or seconds).
    """

    arm: str
    setting: float
    seed: int
    valid: float
    test: float
    seconds: float = 0.0
    curve: tuple[float, ...] = ()
    at: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trials:
    """All trials of a comparison, and what follows from them.

    Raises:
        AssayError: the arms had different numbers of trials, so that the one with more would be favoured.
    """

    trials: tuple[Trial, ...]

    def __post_init__(self) -> None:
        counts = {(arm, seed): len(self.of(arm, seed)) for arm in self.arms for seed in self.seeds}
        if len(set(counts.values())) != 1:
            most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
            raise AssayError(
                f"{most[0]!r} had {counts[most]} trials and {least[0]!r} {counts[least]}: more trials find better settings, so "
                "give every arm as many for every seed."
            )

    @property
    def arms(self) -> tuple[str, ...]:
        """Names, in the order in which they came."""
        return tuple(dict.fromkeys(trial.arm for trial in self.trials))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, in the order in which they came."""
        return tuple(dict.fromkeys(trial.seed for trial in self.trials))

    def of(self, arm: str, seed: int) -> tuple[Trial, ...]:
        """The trials of one arm with one seed, from the smallest setting to the largest."""
        return tuple(sorted((t for t in self.trials if (t.arm, t.seed) == (arm, seed)), key=lambda trial: trial.setting))

    def chosen(self, arm: str, seed: int) -> Trial:
        """The trial with the highest quality on held-out data; of equally good ones that with the smallest setting.

        Raises:
            AssayError: every trial diverged.
        """
        sound = [trial for trial in self.of(arm, seed) if math.isfinite(trial.valid)]
        if not sound:
            raise AssayError(f"Every trial of {arm!r} with seed {seed} diverged; give it smaller settings.")
        return max(sound, key=lambda trial: trial.valid)

    def usable(self, arm: str, seed: int, within: float = 0.01) -> float:
        """How many factors of ten the setting may be off: the range whose held-out quality is ``within`` the arm's best.

        It is counted in points of the grid, each of which stands for the distance to the next one.
        """
        trials = self.of(arm, seed)
        best = self.chosen(arm, seed).valid
        apart = math.log10(trials[-1].setting / trials[0].setting) / max(1, len(trials) - 1)
        return apart * sum(trial.valid >= best - within for trial in trials)

    def at_edge(self, arm: str) -> float:
        """Share of the seeds whose chosen setting is the smallest or largest of the grid, which should then be wider."""
        ends = [self.of(arm, seed) for seed in self.seeds]
        return float(np.mean([self.chosen(arm, seed) in (t[0], t[-1]) for seed, t in zip(self.seeds, ends, strict=True)]))

    def band(self, arm: str) -> tuple[list[float], list[float], list[float], list[float]]:
        """Held-out quality of the chosen trials over their training: points, mean, lowest and highest over the seeds."""
        chosen = [self.chosen(arm, seed) for seed in self.seeds]
        curves = np.array([trial.curve for trial in chosen])
        points = np.mean([trial.at for trial in chosen], axis=0)
        return points.tolist(), curves.mean(axis=0).tolist(), curves.min(axis=0).tolist(), curves.max(axis=0).tolist()

    def table(self) -> pd.DataFrame:
        """One row an arm, the best first: test quality of the chosen trials with its spread over seeds, settings, price.

        Columns: ``test`` (mean over seeds), ``lowest``, ``highest``, ``wins`` (share of the seeds in which no arm is better on
        test data), ``setting`` (median of the chosen ones), ``at_edge``, ``usable`` (factors of ten), ``seconds`` (of one chosen
        training) and ``seconds_in_all`` (of all its trials with one seed, which is what the choice really costs).
        """
        import pandas as pd

        chosen = {arm: [self.chosen(arm, seed) for seed in self.seeds] for arm in self.arms}
        test = {arm: np.array([trial.test for trial in trials]) for arm, trials in chosen.items()}
        best = np.max(list(test.values()), axis=0)
        rows = {
            arm: {
                "test": test[arm].mean(),
                "lowest": test[arm].min(),
                "highest": test[arm].max(),
                "wins": (test[arm] == best).mean(),
                "setting": float(np.median([trial.setting for trial in trials])),
                "at_edge": self.at_edge(arm),
                "usable": float(np.mean([self.usable(arm, seed) for seed in self.seeds])),
                "seconds": float(np.mean([trial.seconds for trial in trials])),
                "seconds_in_all": float(np.mean([sum(t.seconds for t in self.of(arm, seed)) for seed in self.seeds])),
            }
            for arm, trials in chosen.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").sort_values("test", ascending=False, kind="stable")


def accuracy(trained: Trained, split: str) -> float:
    """Share of the split that is classified as labelled."""
    return float(trained.accuracy(split))


def low_loss(trained: Trained, split: str) -> float:
    """The split's mean loss, turned round so that higher is better; for regression."""
    return -trained.loss(split)


def compare(
    arms: Mapping[str, Callable[[float], Recipe]],
    grid: Sequence[float] | Mapping[str, Sequence[float]],
    seeds: Sequence[int] = (0, 1, 2),
    train: Callable[[Recipe, int], Trained] = fit,
    quality: Callable[[Trained, str], float] = accuracy,
) -> Trials:
    """Train every arm with every setting of its grid and every seed.

    Args:
        arms: name -> ``setting -> recipe``. All recipes must be measured on the same splits ``valid`` (``data.holdout``) and
            ``test``, and take equally many epochs.
        grid: settings for all arms, or for each its own, equally many.
        seeds: what is repeated. The spread over them is shown beside every mean.
        train: ``(recipe, seed) -> Trained``; inside a claim ``lab.train``, which remembers.
        quality: ``(trained, split) -> number``, higher is better.

    Returns:
        The trials. One that diverges has lost; it is no error.

    Raises:
        AssayError: there is nothing held out, or the arms differ in data or length.
    """
    settings = {name: list(grid[name] if isinstance(grid, Mapping) else grid) for name in arms}
    recipes = {name: [make(setting) for setting in settings[name]] for name, make in arms.items()}
    _require_alike([recipe for made in recipes.values() for recipe in made])
    trials = []
    for seed in seeds:
        for name, made in recipes.items():
            for setting, recipe in zip(settings[name], made, strict=True):
                trials.append(_trial(name, setting, seed, recipe, train, quality))
    return Trials(tuple(trials))


def _trial(
    name: str,
    setting: float,
    seed: int,
    recipe: Recipe,
    train: Callable[[Recipe, int], Trained],
    quality: Callable[[Trained, str], float],
) -> Trial:
    try:
        trained = train(recipe, seed)
    except Diverged:
        return Trial(name, setting, seed, math.nan, math.nan)
    curve = tuple(trained.history.get("valid_accuracy", ()))
    at = tuple(float(epoch) for epoch in range(1, len(curve) + 1))
    return Trial(name, setting, seed, quality(trained, "valid"), quality(trained, "test"), trained.seconds, curve, at)


def _require_alike(recipes: Sequence[Recipe]) -> None:
    if not recipes:
        raise AssayError("There is nothing to compare: give at least one arm and one setting.")
    first = recipes[0]
    if not len(first.data.valid):
        raise AssayError(f"{first.data.name} has nothing held out to choose settings on: take data.holdout(0.1, seed=0).")
    for recipe in recipes:
        if not (_same(recipe.data.valid, first.data.valid) and _same(recipe.data.test, first.data.test)):
            raise AssayError("The arms are measured on different data, so their numbers do not compare.")
        if recipe.epochs != first.epochs:
            raise AssayError(
                f"One arm trains for {recipe.epochs} epochs and another for {first.epochs}: compare them at equal lengths."
            )


def _same(one: Split, other: Split) -> bool:
    if one is other:
        return True
    if isinstance(one.inputs, Tensor) and isinstance(other.inputs, Tensor):
        return torch.equal(one.inputs, other.inputs) and torch.equal(one.labels, other.labels)
    return one.inputs == other.inputs and torch.equal(one.labels, other.labels)
