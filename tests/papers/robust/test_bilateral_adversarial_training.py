"""Bilateral training: the formula class by class, exact steps on an affine network, boxes, composition, the claims."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from assay.data import Dataset, Split, load
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import lenet, mlp
from assay.papers.labels.elr import elr
from assay.papers.robust import bilateral_adversarial_training as module
from assay.papers.robust.bilateral_adversarial_training import (
    Bilateral,
    BilateralAdversary,
    adversarial_labels,
    bilateral,
    most_confusing,
    towards_confusion,
)
from assay.recipe import Recipe
from assay.train.loop import fit
from assay.train.mixing import Mixing


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_the_formula(p: list[float], y: int, eps_y: float, gamma: float) -> list[float]:
    wrong = [k for k in range(len(p)) if k != y]
    v = [-math.log(one) for one in p]
    least = min(v[k] for k in wrong)
    mean = sum(v[k] for k in wrong) / len(wrong)
    row = [eps_y / len(wrong) * (v[k] - least + gamma) / (mean - least + gamma) for k in range(len(p))]
    row[y] = 1 - eps_y
    return row


def test_labels_agree_with_the_formula_and_keep_its_invariants() -> None:
    logits = 3 * torch.randn(50, 7, generator=generator(), dtype=torch.float64)
    labels = torch.arange(50) % 7
    found = adversarial_labels(logits, labels, eps_y=0.6, gamma=0.02)
    wanted = [by_the_formula(row, y, 0.6, 0.02) for row, y in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(found.sum(1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(found.gather(1, labels[:, None]), torch.full((50, 1), 0.4, dtype=torch.float64))
    wrong = found.scatter(1, labels[:, None], math.inf)
    assert torch.equal(wrong.argmin(1), most_confusing(logits, labels))
    flat = adversarial_labels(torch.zeros(7, 7), torch.arange(7), eps_y=0.6)
    torch.testing.assert_close(flat, torch.full((7, 7), 0.1).fill_diagonal_(0.4))
    assert torch.equal(adversarial_labels(logits, labels, eps_y=0.0), F.one_hot(labels, 7).double())


def test_no_gradient_flows_into_the_labels() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    assert not adversarial_labels(logits, torch.zeros(4, dtype=torch.int64)).requires_grad


def test_step_on_an_affine_network_is_known() -> None:
    """The gradient of CE(z, MC) with respect to x is W^T (p - e_MC) at x0, whose sign gives the step."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4).double()
    inputs, labels = torch.rand(30, 5, dtype=torch.float64, generator=generator()), torch.arange(30) % 4
    found = towards_confusion(model, inputs, labels, 0.3, 0.0, 1.0, generator(7))
    unit = 2 * torch.rand(30, 5, generator=generator(7), dtype=torch.float64) - 1
    for row in range(30):
        start = (inputs[row] + 0.3 * unit[row]).clamp(0, 1)
        logits = model(start)
        order = [k for k in logits.argsort(descending=True).tolist() if k != labels[row]]
        slope = model.weight.T @ (logits.softmax(0) - F.one_hot(torch.tensor(order[0]), 4))
        moved = torch.maximum(torch.minimum(start - 0.3 * slope.sign(), inputs[row] + 0.3), inputs[row] - 0.3).clamp(0, 1)
        torch.testing.assert_close(found[row], moved.detach())


def test_steps_stay_in_the_ball_and_the_range_and_raise_the_confusing_class() -> None:
    torch.manual_seed(0)
    model = lenet(2, 5, 8).train()
    inputs, labels = torch.rand(40, 2, 8, 8, generator=generator()), torch.arange(40) % 5
    eps = torch.tensor([0.05, 0.1]).view(1, 2, 1, 1)
    moved = towards_confusion(model, inputs, labels, eps, generator=generator(1))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert ((moved - inputs).abs() <= eps + 1e-6).all()
    assert 0 <= moved.min() < moved.max() <= 1
    assert (moved - inputs).abs().amax(dim=(0, 2, 3)).tolist() == pytest.approx([0.05, 0.1], abs=1e-5)
    before, after = (model(x).detach() for x in (inputs, moved))
    confusing = most_confusing(before, labels)
    rise = (after - before).gather(1, confusing[:, None]) - (after - before).gather(1, labels[:, None])
    assert rise.median() > 0
    x, y = BilateralAdversary(0.1)(model, inputs, labels, generator(1))
    torch.testing.assert_close(y, adversarial_labels(model(x), labels))


def recipe(table: Dataset, epochs: int = 6) -> Recipe:
    return Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=epochs, batch_size=32, watch=())


def test_treatment_learns_and_measures_eps_by_the_range_of_each_column(table: Dataset) -> None:
    stretched = Dataset(
        "stretched",
        "classification",
        *(Split(part.inputs * torch.tensor([1.0] * 7 + [10.0]), part.labels) for part in (table.train, table.valid, table.test)),  # type: ignore[operator]
        classes=table.classes,
    )
    hook = bilateral(recipe(stretched), eps=0.1).hooks[0]
    assert isinstance(hook, Bilateral)
    assert isinstance(hook.eps, Tensor)
    span = stretched.train.inputs.amax(0) - stretched.train.inputs.amin(0)  # type: ignore[union-attr]
    torch.testing.assert_close(hook.eps[0], 0.1 * span)
    trained = fit(bilateral(recipe(table, 12), eps=0.02), 0)
    assert trained.accuracy() > 0.9
    sure = [run.logits("test").softmax(1).amax(1).mean() for run in (fit(recipe(table, 12), 0), trained)]
    assert sure[1] < sure[0] - 0.1  # more than a quarter of every label lies elsewhere


def test_composes_with_losses_and_mixing(table: Dataset) -> None:
    plain = recipe(table)
    ends = [fit(made, 0).logits() for made in (elr(bilateral(plain)), bilateral(elr(plain)), elr(plain), bilateral(plain))]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], ends[3])
    mixed = plain.replace(hooks=(Mixing(mixup=1.0),))
    assert not torch.equal(fit(bilateral(mixed), 0).logits(), fit(mixed, 0).logits())


def test_what_cannot_be_meant_is_refused(table: Dataset) -> None:
    numbers = Dataset("n", "regression", *(Split(s.inputs, s.labels.float()) for s in (table.train, table.valid, table.test)))
    with pytest.raises(AssayError, match="no classes"):
        bilateral(recipe(numbers))
    with pytest.raises(AssayError, match="labels say nothing"):
        bilateral(recipe(table), eps_y=0.6)
    with pytest.raises(ValueError, match="eps_y"):
        adversarial_labels(torch.zeros(1, 3), torch.tensor([0]), eps_y=1.0)
    with pytest.raises(ValueError, match="gamma"):
        adversarial_labels(torch.zeros(1, 3), torch.tensor([0]), gamma=0.0)


def test_claims_at_smoke_scale(home: object) -> None:
    try:
        load("fashion-mnist")
    except AssayError as error:
        pytest.skip(str(error))
    lab = Lab(scale="smoke")
    for one in (module.one_step_is_enough, module.adversarial_label_adds):
        measured = one(lab)
        assert {name for want in one.expect for name in (want.arm, want.than)} <= set(measured)  # type: ignore[union-attr]
