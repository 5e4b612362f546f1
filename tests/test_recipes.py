"""Standard recipes fit their data."""

from __future__ import annotations

import pytest
import torch

from assay.data import Dataset, Split
from assay.recipes import lenet_on


def test_lenet_fits_the_images_and_its_rate_falls_to_zero():
    images, labels = torch.rand(6, 3, 16, 16), torch.arange(6) % 3
    split = Split(images, labels)
    recipe = lenet_on(Dataset("colours", "classification", split, split, split, classes=("a", "b", "c")), epochs=2)
    model = recipe.model()
    assert model(images).shape == (6, 3)
    optimizer = recipe.optimizer(model.parameters())
    schedule = recipe.schedule(optimizer, 10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0.05
    assert rates == sorted(rates, reverse=True)
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-9)
