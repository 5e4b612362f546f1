"""Hooks that several papers share."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from assay.data import Dataset, Split
from assay.recipe import Recipe
from assay.train.hooks import BestEpoch
from assay.train.loop import fit


def noise() -> Dataset:
    """Twenty training examples in twenty dimensions, of which one counts: a network overfits."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 20, generator=generator)
    labels = (inputs[:, 0] + torch.randn(60, generator=generator) > 0).long()
    part = [Split(inputs[i : i + 20], labels[i : i + 20]) for i in (0, 20, 40)]
    return Dataset("noise", "classification", part[0], part[1], part[2], ("a", "b"))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))


@pytest.mark.parametrize(("by", "lowest"), [("valid_accuracy", False), ("valid_loss", True), ("train_loss", True)])
def test_best_epoch_brings_its_weights_back(by: str, lowest: bool) -> None:
    # At this rate the training loss rises now and then, too.
    optimizer = partial(torch.optim.SGD, lr=0.5 if by == "train_loss" else 0.05, momentum=0.9)
    hook = BestEpoch(by, lowest)
    recipe = Recipe(noise(), model=net, optimizer=optimizer, epochs=30, batch_size=5, hooks=(hook,), watch=("valid",))
    trained = fit(recipe, seed=0)
    reached = trained.history[by]
    best = min(reached) if lowest else max(reached)
    assert reached[-1] != best  # so that there is something to bring back
    last = len(reached) - reached[::-1].index(best)
    stopped = fit(recipe.replace(epochs=last, hooks=()), seed=0)
    torch.testing.assert_close(trained.model.state_dict(), stopped.model.state_dict())
    assert not trained.memory
