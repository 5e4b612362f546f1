"""What a comparison says about made-up trials, by hand; and a small one on real trainings."""

import math
from functools import partial

import pytest
import torch

from assay.data import Dataset
from assay.errors import AssayError
from assay.nn import mlp
from assay.recipe import Recipe
from assay.train.compare import Trial, Trials, compare, low_loss


def trial(arm: str, setting: float, seed: int, valid: float, test: float = 0.5) -> Trial:
    return Trial(arm, setting, seed, valid, test, seconds=2.0, curve=(valid / 2, valid), at=(1.0, 2.0))


MADE_UP = Trials(
    (
        *(
            trial("a", rate, 0, valid, test)
            for rate, valid, test in ((0.01, 0.8, 0.3), (0.1, 0.9, 0.6), (1.0, math.nan, math.nan))
        ),
        *(trial("a", rate, 1, valid, test) for rate, valid, test in ((0.01, 0.7, 0.4), (0.1, 0.71, 0.7), (1.0, 0.1, 0.9))),
        *(trial("b", rate, 0, valid, test) for rate, valid, test in ((1.0, 0.6, 0.7), (0.1, 0.6, 0.1), (0.01, 0.599, 0.1))),
        *(trial("b", rate, 1, valid, test) for rate, valid, test in ((1.0, 0.2, 0.1), (0.1, 0.3, 0.2), (0.01, 0.4, 0.5))),
    )
)


def test_settings_are_chosen_on_held_out_data_and_reported_on_test_data() -> None:
    assert MADE_UP.chosen("a", 0).test == 0.6
    assert MADE_UP.chosen("a", 1).test == 0.7  # a setting with a test quality of 0.9 was not chosen
    assert MADE_UP.chosen("b", 0).setting == 0.1  # of equally good ones the smallest
    table = MADE_UP.table()
    assert list(table.index) == ["a", "b"]
    assert table.loc["a", "test"] == pytest.approx(0.65)
    assert (table.loc["a", "lowest"], table.loc["a", "highest"], table.loc["a", "wins"]) == (0.6, 0.7, 1.0)
    assert (table.loc["b", "at_edge"], table.loc["a", "at_edge"]) == (0.5, 0.0)
    assert (table.loc["a", "seconds"], table.loc["a", "seconds_in_all"]) == (2.0, 6.0)
    assert MADE_UP.band("a") == ([1.0, 2.0], pytest.approx([0.4025, 0.805]), [0.355, 0.71], [0.45, 0.9])


def test_how_far_a_setting_may_be_off() -> None:
    """Three points, a factor of ten apart, each of which stands for one factor of ten."""
    assert MADE_UP.usable("a", 0) == pytest.approx(1.0)
    assert MADE_UP.usable("a", 1) == pytest.approx(2.0)
    assert MADE_UP.usable("b", 0) == pytest.approx(3.0)
    assert MADE_UP.usable("b", 0, within=0.0) == pytest.approx(2.0)


def test_unequal_numbers_of_trials_are_refused_and_so_is_nothing_left() -> None:
    with pytest.raises(AssayError, match="more trials find better settings"):
        Trials((trial("a", 0.1, 0, 0.5), trial("a", 0.2, 0, 0.5), trial("b", 0.1, 0, 0.5)))
    with pytest.raises(AssayError, match="smaller settings"):
        Trials((trial("a", 0.1, 0, math.nan),)).chosen("a", 0)


def test_recipes_are_compared_and_a_diverged_one_has_lost(table: Dataset) -> None:
    plain = Recipe(table.holdout(0.25, seed=0), model=partial(mlp, 8, 2, (16,)), epochs=2, batch_size=32, watch=("valid",))

    def sgd(rate: float) -> Recipe:
        return plain.replace(optimizer=partial(torch.optim.SGD, lr=rate))

    def adam(rate: float) -> Recipe:
        return plain.replace(optimizer=partial(torch.optim.Adam, lr=rate))

    found = compare({"SGD": sgd, "Adam": adam}, {"SGD": (1e-3, 0.3, 1e30), "Adam": (1e-4, 1e-3, 1e-2)}, seeds=(0, 1))
    assert found.chosen("SGD", 0).setting == 0.3
    assert math.isnan(found.of("SGD", 0)[-1].valid)
    assert len(found.chosen("Adam", 1).curve) == 2
    assert found.table().loc["Adam", "test"] > 0.7
    by_loss = compare({"SGD": sgd}, (1e-3, 0.3), seeds=(0,), quality=low_loss)
    assert by_loss.chosen("SGD", 0).valid < 0


def test_what_cannot_be_compared_is_refused(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=2)
    with pytest.raises(AssayError, match="held out"):
        compare({"a": lambda rate: plain}, (1.0,))
    held = plain.replace(data=table.holdout(0.25, seed=0))
    longer, other = held.replace(epochs=3), held.replace(data=table.holdout(0.25, seed=1))
    with pytest.raises(AssayError, match="equal lengths"):
        compare({"a": lambda rate: held, "b": lambda rate: longer}, (1.0,))
    with pytest.raises(AssayError, match="different data"):
        compare({"a": lambda rate: held, "b": lambda rate: other}, (1.0,))
    with pytest.raises(AssayError, match="nothing to compare"):
        compare({}, (1.0,))
