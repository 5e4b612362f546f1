"""Budgets: which methods are left out, equal seeds for all arms, and an end that is kept. Time is told by the tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from assay.data import Dataset
from assay.lab import memory
from assay.own import budget, try_, trying
from assay.own.budget import TimeIsOver, affordable, alarm, in_words, training_seconds
from assay.own.commands import duration
from assay.recipe import Recipe, treatment


@treatment
def smooth(recipe: Recipe) -> Recipe:
    return recipe.replace(loss=partial(F.cross_entropy, label_smoothing=0.2))


@treatment
def longer(recipe: Recipe) -> Recipe:
    return recipe.replace(epochs=recipe.epochs * 50)


class Clock:
    """Time that passes when a training says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.referred = False

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, home: object) -> Clock:
    """A second for each epoch of a training, told of in between; five for the reference, which is done once."""
    clock = Clock()
    methods = {f.__name__: f for f in (smooth, longer)}
    monkeypatch.setattr(trying, "find", methods.__getitem__)
    monkeypatch.setattr(trying.clock, "monotonic", clock.monotonic)
    plain = trying.baseline
    monkeypatch.setattr(trying, "baseline", lambda data: plain(data).replace(epochs=2))
    monkeypatch.setattr(trying, "training_seconds", lambda recipe, device, steps: float(recipe.epochs))
    train = memory.train

    def trained(recipe: Recipe, seed: int, device: torch.device, report: Any = None) -> Any:
        for epoch in range(recipe.epochs if report is not None else 0):
            clock.now += 1
            report(epoch + 1, recipe.epochs, "an epoch")
        return train(recipe.replace(epochs=1), seed, device)

    def referred(function: Any, **arguments: Any) -> Any:
        clock.now += 5 * (not clock.referred)
        clock.referred = True
        return remember(function, **arguments)

    @contextmanager
    def never(seconds: float | None) -> Iterator[None]:  # a real alarm would go by the clock on the wall
        yield

    remember = memory.remember
    monkeypatch.setattr(trying, "alarm", never)
    monkeypatch.setattr(memory, "train", trained)
    monkeypatch.setattr(memory, "remember", referred)
    return clock


def test_all_arms_have_the_same_seeds_and_the_end_is_kept(clock: Clock, table: Dataset) -> None:
    # The first seed takes 2 + 2 + 5, the others 2 + 2: the fifth is not begun, as it would not be done.
    trial = try_(["smooth"], on=table, seeds=5, budget=22)
    assert [set(scores) for scores in trial.arms.values()] == [{0, 1, 2, 3}] * 3
    assert clock.now == 21
    assert not trial.complete
    assert any("after 4 of 5 seeds" in note for note in trial.notes)


def test_time_that_is_over_within_a_seed_leaves_equal_seeds(
    clock: Clock, table: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying._Progress, "require_round", lambda *_: None)  # as if the forecast had been wrong
    trial = try_(["smooth"], on=table, seeds=5, budget=23)
    assert [set(scores) for scores in trial.arms.values()] == [{0, 1, 2, 3}] * 3
    assert clock.now == 24
    assert trial.best() is not None


def test_methods_that_cannot_be_done_in_time_are_left_out_and_say_so(clock: Clock, table: Dataset) -> None:
    trial = try_(["longer", "smooth"], on=table, seeds=3, budget=60)
    assert list(trial.verdicts) == ["smooth"]
    assert trial.refused["longer"].startswith("a training takes about 2m, too long for the budget: --budget ")
    assert duration(trial.refused["longer"].split()[-3]) > 300
    assert trial.complete


def test_looking_at_methods_ends_with_the_budget(clock: Clock, table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*arguments: Any) -> Recipe:
        clock.now += 30
        return treated(*arguments)

    treated = trying.treated
    monkeypatch.setattr(trying, "treated", slowly)
    steps = []
    monkeypatch.setattr(trying, "training_seconds", lambda recipe, device, count: steps.append(count) or 1.0)
    trial = try_(["smooth", "longer"], on=table, seeds=1, budget=20)
    assert trial.refused == {"longer": "time was over before it could be looked at"}
    assert steps == [4, 1]  # the baseline's, and those of a method that was slow to look at
    assert clock.now == 30


def test_trainings_that_are_remembered_cost_nothing(clock: Clock, table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "known", lambda recipe, seed, device: True)
    trial = try_(["longer", "smooth"], on=table, seeds=3, budget=60)
    assert set(trial.verdicts) == {"longer", "smooth"}


def test_a_reference_that_takes_too_long_is_left_out(clock: Clock, table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []

    def rings(seconds: float | None) -> Any:
        allowed.append(seconds)
        raise TimeIsOver

    monkeypatch.setattr(trying, "alarm", rings)
    trial = try_(["smooth"], on=table, seeds=2, budget=104)
    assert allowed == [20]  # a fifth of what is left after a seed of both networks
    assert trial.refused["gradient boosting"] == "it was not done after 20 s of the budget"
    assert set(trial.arms) == {"baseline", "smooth"}
    assert trial.complete


@pytest.mark.parametrize(
    ("seconds", "left", "refused"),
    [
        ({"b": 1, "x": 1, "y": 1}, 100, []),
        ({"b": 1, "x": 10, "y": 20}, 40, ["y"]),
        ({"b": 1, "x": 30, "y": 20, "z": 2}, 40, ["x", "y"]),
        ({"b": 9, "x": 9}, 1, []),  # one method always stays: perhaps the forecast is wrong
        ({"b": 50, "x": 1, "y": 2}, 100, ["y"]),  # the baseline stays, however dear it is
    ],
)
def test_the_dearest_go_first(seconds: dict[str, float], left: float, refused: list[str]) -> None:
    assert list(affordable(seconds, 5, left, "b")) == refused


def test_forecast_counts_epochs_and_examples(table: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = trying.baseline(table)
    seen = []

    def fit(recipe: Recipe, seed: int, device: torch.device) -> None:
        seen.append(len(recipe.data.train))
        clock.now += len(recipe.data.train) * recipe.epochs

    clock = Clock()
    monkeypatch.setattr(budget, "fit", fit)
    monkeypatch.setattr(budget.clock, "monotonic", clock.monotonic)
    short, long = (training_seconds(recipe.replace(epochs=n), torch.device("cpu")) for n in (2, 4))
    assert seen == [4 * recipe.batch_size] * 2
    assert long - short == pytest.approx(2 * len(table.train))


def test_alarm_stops_work_that_does_not_report() -> None:
    before = time.monotonic()
    with pytest.raises(TimeIsOver), alarm(0.02):
        for _ in _forever():
            pass
    assert time.monotonic() - before < 60
    with alarm(1000), alarm(None):
        pass


def _forever() -> Iterator[int]:
    while True:
        yield 1


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1s"), (90, "2m"), (3599, "1h"), (3600 * 1.5, "1h30m")])
def test_times_as_they_are_given(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
    assert duration(words) >= seconds
