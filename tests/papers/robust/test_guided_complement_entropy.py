"""Guided complement entropy: numpy by the formula, closed forms, gradients, shares of classes, the claims at smoke scale."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from assay.data import Dataset, Split, load
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.labels.elr import elr
from assay.papers.robust import guided_complement_entropy as module
from assay.papers.robust.guided_complement_entropy import guided_complement, guided_complement_entropy
from assay.recipe import Recipe
from assay.train.loop import fit


def batch(classes: int = 6, size: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=generator)


def by_the_formula(logits: np.ndarray, labels: np.ndarray, alpha: float) -> float:
    """Equation 4, example by example and class by class, over probabilities."""
    total = 0.0
    for row, right in zip(logits, labels, strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        inner = 0.0
        for j in range(len(p)):
            if j != right:
                c = p[j] / (1 - p[right])
                inner += c * math.log(c)
        total += p[right] ** alpha * inner
    return total / len(labels) / math.log(logits.shape[1])


@pytest.mark.parametrize("alpha", [1 / 3, 1 / 2, 1 / 6])
def test_agrees_with_the_formula(alpha: float) -> None:
    logits, labels = batch()
    wanted = by_the_formula(logits.numpy(), labels.numpy(), alpha)
    assert guided_complement_entropy(logits, labels, alpha).item() == pytest.approx(wanted, abs=1e-12)
    assert guided_complement_entropy(logits.half(), labels, alpha).item() == pytest.approx(wanted, abs=1e-3)


def test_gradient_is_that_of_the_numbers() -> None:
    logits, labels = batch(5, 4)
    shares = torch.rand(4, 5, dtype=torch.float64).softmax(1)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: guided_complement_entropy(z, labels), logits)
    assert torch.autograd.gradcheck(lambda z: guided_complement_entropy(z, shares), logits)


@pytest.mark.parametrize("classes", [3, 10])
def test_its_lowest_value_is_where_the_right_class_is_sure_and_the_others_alike(classes: int) -> None:
    logits = torch.zeros(1, classes, dtype=torch.float64)
    logits[0, 1] = 60.0
    lowest = -math.log(classes - 1) / math.log(classes)
    assert guided_complement_entropy(logits, torch.tensor([1])).item() == pytest.approx(lowest, abs=1e-12)
    tilted = logits.clone()
    tilted[0, 0] = 0.5
    assert guided_complement_entropy(tilted, torch.tensor([1])).item() > lowest
    flat = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    loss = guided_complement_entropy(flat, torch.tensor([1]))
    assert loss.item() == pytest.approx(classes ** (-1 / 3) * lowest, abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, flat)  # training starts: the right logit rises, the others fall alike
    assert gradient[0, 1] < 0
    assert gradient[0, [0, 2]].tolist() == pytest.approx([-gradient[0, 1].item() / (classes - 1)] * 2)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[300.0, 0.0, 1.0, -300.0], [-300.0, 0.0, 1.0, 300.0]], requires_grad=True)
    loss = guided_complement_entropy(logits, torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, 1] != 0  # the wrong classes are pulled together also where 1 - p is nothing in float32


def test_shares_count_every_class_by_its_share() -> None:
    logits, labels = batch()
    whole = F.one_hot(labels, 6).double()
    torch.testing.assert_close(guided_complement_entropy(logits, whole), guided_complement_entropy(logits, labels))
    mixed = guided_complement_entropy(logits, 0.3 * whole + 0.7 * whole.roll(1, 0))
    parts = 0.3 * guided_complement_entropy(logits, labels) + 0.7 * guided_complement_entropy(logits, labels.roll(1))
    torch.testing.assert_close(mixed, parts)


def three(table: Dataset) -> Recipe:
    def again(split: Split) -> Split:
        return Split(split.inputs, split.labels + (split.inputs[:, 2] > 0.5).long())  # type: ignore[index]

    data = Dataset("three", "classification", *map(again, (table.train, table.valid, table.test)), ("a", "b", "c"))
    return Recipe(data, model=partial(mlp, 8, 3, (32,)), epochs=15, batch_size=32, watch=())


def test_treatment_learns_alone_and_composes(table: Dataset) -> None:
    plain = three(table)
    alone = fit(guided_complement(plain), 0)
    assert alone.accuracy() > 0.8
    ends = [fit(recipe, 0).logits() for recipe in (elr(guided_complement(plain)), guided_complement(elr(plain)), elr(plain))]
    torch.testing.assert_close(ends[0], ends[1], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(ends[0], ends[2])
    assert not torch.allclose(ends[0], alone.logits())


def test_two_classes_are_refused(table: Dataset) -> None:
    with pytest.raises(AssayError, match="it needs three"):
        guided_complement(three(table).replace(data=table))
    with pytest.raises(ValueError, match="always 0"):
        guided_complement_entropy(torch.zeros(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="alpha"):
        guided_complement_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), alpha=0.0)


def test_claims_at_smoke_scale(home: object) -> None:
    try:
        load("fashion-mnist")
    except AssayError as error:
        pytest.skip(str(error))
    measured = module._both(Lab(scale="smoke"))
    for one in (module.more_robust_than_cross_entropy, module.survives_margin_attack, module.more_than_label_smoothing):
        assert {name for want in one.expect for name in (want.arm, want.than)} <= set(measured)  # type: ignore[union-attr]
    assert all(measured[f"{arm}: worst"] <= measured[f"{arm}: PGD, margin"] for arm in ("cross-entropy, digits",))
