"""Standard recipes fit their data."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.nn import mlp
from assay.papers.labels.elr import elr
from assay.papers.labels.ncr import ncr
from assay.papers.training.encouraging_loss import encouraging_loss
from assay.recipe import Recipe, with_loss
from assay.recipes import lenet_on
from assay.train.loop import fit


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


def _blobs() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 8, generator=generator)
    split = Split(inputs, (inputs[:, 0] > 0).long())
    return Dataset("blobs", "classification", split, split, split, classes=("a", "b"))


def _curve(recipe: Recipe) -> list[float]:
    return fit(recipe, seed=0).history["train_loss"]


def test_losses_compose_as_corrections_to_cross_entropy_in_any_order():
    plain = Recipe(_blobs(), model=partial(mlp, 8, 2, (16,)), epochs=4, batch_size=32)
    smooth = partial(F.cross_entropy, label_smoothing=0.2)
    both = with_loss(plain.replace(loss=smooth), encouraging_loss)
    logits, labels = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1])
    expected = smooth(logits, labels) + encouraging_loss(logits, labels) - F.cross_entropy(logits, labels)
    torch.testing.assert_close(both.loss(logits, labels), expected)
    assert with_loss(plain, smooth).loss is smooth

    one, other = elr(ncr(plain.replace(loss=smooth))), ncr(elr(plain.replace(loss=smooth)))
    assert _curve(one) == pytest.approx(_curve(other), rel=1e-5)
    assert one.loss.wants == ("index", "features", "epoch")
    for part in (elr(plain), ncr(plain), elr(ncr(plain))):
        assert _curve(one) != pytest.approx(_curve(part), rel=1e-3)


def test_numbers_have_no_cross_entropy():
    data = dataclasses.replace(_blobs(), task="regression", classes=())
    with pytest.raises(AssayError, match=r"EarlyLearningRegularization.*no classes"):
        elr(Recipe(data, model=partial(mlp, 8, 1), loss=F.mse_loss))
