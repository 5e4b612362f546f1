"""The encouraging loss against its closed-form gradients, its limits, and its claims at smoke scale."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.training.encouraging_loss import (
    as_accurate_with_larger_margins,
    bonus,
    encouraging,
    encouraging_loss,
    focal_loss,
    halted_cross_entropy,
    helps_rare_classes,
    margin,
    no_remedy_for_wrong_labels,
    well_classified_examples_matter,
)
from assay.recipe import Recipe
from assay.train.loop import Trained, fit


def batch(size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that give the true class anything between nothing and almost everything."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(5, (size,), generator=generator)


@pytest.mark.parametrize("log_end", [0.25, 0.5, 0.75, 1.0])
def test_gradients_equal_the_closed_form(log_end: float) -> None:
    """True logit: -1 up to LE, then -(1 - p)(1 + p / (1 - LE)); the others share it in proportion to their probability."""
    logits, labels = batch()
    (gradient,) = torch.autograd.grad(encouraging_loss(logits, labels, log_end) * len(labels), logits)
    probs = logits.detach().softmax(1)
    p = probs.gather(1, labels[:, None])
    assert p.min() < 0.01
    assert p.max() > 0.95
    slope = torch.where(p > log_end, (1 - p) * (1 + p / (1 - min(log_end, 0.999))), torch.ones_like(p))
    expected = slope * probs / (1 - p)
    expected.scatter_(1, labels[:, None], -slope)
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-7)


def test_the_full_bonus_is_minus_the_log_odds() -> None:
    logits, labels = batch()
    p = logits.softmax(1).gather(1, labels[:, None])
    torch.testing.assert_close(encouraging_loss(logits, labels, 1.0), -(p / (1 - p)).log().mean())


def test_two_classes_give_a_line() -> None:
    logits = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    assert encouraging_loss(logits, torch.tensor([0]), 1.0).item() == pytest.approx(-(0.3 + 1.2))


def test_the_bonus_is_smooth_at_the_log_end_and_nothing_at_zero() -> None:
    p = torch.tensor([0.75 - 1e-6, 0.75 + 1e-6], dtype=torch.float64, requires_grad=True)
    values = bonus(p.log(), 0.75)
    (slopes,) = torch.autograd.grad(values.sum(), p)
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-4)
    assert values[0].item() == pytest.approx(math.log(0.25), abs=1e-4)
    assert slopes.tolist() == pytest.approx([-4, -4], rel=1e-4)
    assert bonus(torch.tensor([-800.0])).item() == pytest.approx(0)


def test_smoothing_by_hand() -> None:
    logits, labels = batch(3)
    p = logits.softmax(1)
    target = F.one_hot(labels, 5) * 0.8 + 0.2 / 5
    given = torch.where(p > 0.5, math.log(0.5) - (p - 0.5) / 0.5, (1 - p).log())
    expected = (target * (given - p.log())).sum() / 3
    torch.testing.assert_close(encouraging_loss(logits, labels, 0.5, label_smoothing=0.2), expected)
    torch.testing.assert_close(
        encouraging_loss(logits, labels, 0.5, label_smoothing=1e-12), encouraging_loss(logits, labels, 0.5), atol=1e-8, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("log_end", [0.75, 1.0])
def test_stays_finite_where_everything_is_certain(dtype: torch.dtype, log_end: float) -> None:
    logits = torch.tensor([[60.0, 0, 0], [0, 60.0, 0]], dtype=dtype, requires_grad=True)
    loss = encouraging_loss(logits, torch.tensor([0, 0]), log_end)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_controls_by_hand() -> None:
    logits, labels = batch()
    p = logits.softmax(1).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(focal_loss(logits, labels, 2.0), (-((1 - p) ** 2) * p.log()).mean())
    torch.testing.assert_close(focal_loss(logits, labels, 0.0), F.cross_entropy(logits, labels))
    torch.testing.assert_close(halted_cross_entropy(logits, labels, 0.5), (-p.log() * (p <= 0.5)).mean())
    torch.testing.assert_close(halted_cross_entropy(logits, labels, 1.0), F.cross_entropy(logits, labels))
    live = p <= 0.5
    torch.testing.assert_close(halted_cross_entropy(logits, labels, 0.5, rescale=True), -p[live].log().mean())
    certain = torch.tensor([[80.0, 0.0]], requires_grad=True)
    focal_loss(certain, torch.tensor([0]), 0.5).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()


def test_the_margin_is_the_distance_to_the_nearest_border(table: Dataset) -> None:
    """Three classes in the plane, h = x: distances by hand; longer weights or features leave the share as it is."""
    net = nn.Linear(2, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        net.bias.zero_()
    split = Split(torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0, 2]))
    data = Dataset("three", "classification", split, split, split, classes=("a", "b", "c"))
    trained = Trained(Recipe(data, model=lambda: net), net, {}, 0.0, 0, 0)
    # (3, 0) is 3 / sqrt 2 from class 1; (1, 1) lies on a border; (0, 2) is 2 / sqrt 2 on the wrong side of class 1.
    assert margin(trained) == pytest.approx((1 / 2**0.5 + 0 - 1 / 2**0.5) / 3, abs=1e-6)
    with torch.no_grad():
        net.weight.mul_(7)
    assert margin(trained) == pytest.approx(0, abs=1e-6)
    assert not net._forward_pre_hooks


def test_treatment_and_bad_settings(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=10, batch_size=32)
    treated = encouraging(plain, log_end=0.5)
    assert treated.replace(loss=plain.loss) == plain
    assert fit(treated, 0).history["train_loss"] != fit(plain, 0).history["train_loss"]
    smoothed = encouraging(plain.replace(loss=partial(F.cross_entropy, label_smoothing=0.1)))
    assert smoothed.loss.keywords["label_smoothing"] == 0.1
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2])
    shares = F.one_hot(labels, 3).float()
    torch.testing.assert_close(encouraging_loss(logits, shares), encouraging_loss(logits, labels))
    for wrong in (0.0, 1.5, 1 - 1e-7):
        with pytest.raises(ValueError, match="log_end"):
            encouraging_loss(torch.zeros(1, 2), torch.tensor([0]), wrong)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert "encouraging, margin" in as_accurate_with_larger_margins(lab)
    assert set(well_classified_examples_matter(lab)) > {"cross-entropy", "halted"}
    assert "cross-entropy, classes balanced" in helps_rare_classes(lab)
    assert set(no_remedy_for_wrong_labels(lab)) == {"cross-entropy", "encouraging", "focal", "halted"}
