"""Human labels: the divergence from people and the gradient p - q, the controls, the hook, the claims at smoke scale."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from assay.data import Dataset, Split, load
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.labels.elr import elr
from assay.papers.robust import human_uncertainty as module
from assay.papers.robust.human_uncertainty import (
    HumanLabels,
    class_means,
    entropy,
    human_labels,
    permuted_in_class,
    second_best_accuracy,
    smoothed_alike,
    soft_labels,
    votes_of_repeats,
)
from assay.recipe import Recipe
from assay.train.loop import fit
from assay.train.mixing import Mixing


def people(count: int = 60, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Votes (N, K) of 20 people an example who mostly agree, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    chances = 0.5 * torch.rand(count, classes, generator=generator) + 2 * F.one_hot(labels, classes)
    said = torch.multinomial(chances, 20, replacement=True, generator=generator)
    return F.one_hot(said, classes).sum(dim=1).float(), labels


def test_loss_is_the_divergence_from_people_and_its_gradient_p_minus_q() -> None:
    votes, labels = people()
    shares = soft_labels(votes, labels)
    logits = torch.randn(60, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = F.cross_entropy(logits, shares)
    apart = torch.distributions.kl_divergence(
        torch.distributions.Categorical(probs=shares), torch.distributions.Categorical(logits=logits)
    )
    torch.testing.assert_close(loss, (apart + entropy(shares)).mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, (logits.softmax(1) - shares).detach() / 60)


def test_shares_are_votes_over_their_number_and_labels_where_nobody_looked() -> None:
    votes = torch.tensor([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert soft_labels(votes, torch.tensor([0, 2])).tolist() == [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]
    with pytest.raises(ValueError, match="negative"):
        soft_labels(-votes, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="votes must be"):
        soft_labels(votes, torch.tensor([0]))


def test_equal_inputs_are_answers_about_one_example() -> None:
    labels = torch.tensor([0, 1, 1, 2, 0])
    wanted = [[1, 2, 0], [1, 2, 0], [1, 2, 0], [0, 0, 1], [1, 0, 0]]
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [0.0, 0.0]])
    assert votes_of_repeats(rows, labels, 3).tolist() == wanted
    assert votes_of_repeats(("a", "a", "a", "b", "c"), labels, 3).tolist() == wanted


def test_second_best_accuracy_counts_clear_second_places_only() -> None:
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.8, 0.1, 0.1], [1.0, 0.0, 0.0], [0.5, 0.1, 0.4]])
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.1, 0.3], [0.6, 0.1, 0.3], [0.6, 0.3, 0.1]])
    assert second_best_accuracy(probs, shares) == 0.5  # right in the first, wrong in the last
    assert second_best_accuracy(probs[:, :2], shares[:, :2]) == 1.0
    assert second_best_accuracy(shares[:1].log(), shares[:1]) == 1.0


def test_controls_keep_what_they_are_to_keep() -> None:
    votes, labels = people()
    shares = soft_labels(votes, labels)
    smooth = smoothed_alike(shares, labels)
    torch.testing.assert_close(entropy(smooth).mean(), entropy(shares).mean(), atol=1e-5, rtol=0)
    off = smooth.scatter(1, labels[:, None], torch.nan)
    assert off[~off.isnan()].std().item() < 1e-7
    assert torch.equal(smooth.argmax(1), labels)
    means = class_means(shares, labels)
    other = permuted_in_class(shares, labels, torch.Generator().manual_seed(0))
    for label in range(5):
        own = labels == label
        for control in (means, other):  # class marginals are kept
            torch.testing.assert_close(control[own].mean(0), shares[own].mean(0))
        assert (means[own] == means[own][0]).all()
        assert sorted(other[own].tolist()) == sorted(shares[own].tolist())
    assert not (other == shares).all(dim=1).all()
    certain = F.one_hot(labels, 5).float()
    assert torch.equal(smoothed_alike(certain, labels), certain)


def test_nobody_keeps_their_own_answers_when_permuted() -> None:
    labels = torch.arange(40) % 4
    shares = torch.arange(40.0)[:, None].repeat(1, 4)
    assert not (permuted_in_class(shares, labels, torch.Generator().manual_seed(3)) == shares).any()


def table_of_answers(table: Dataset) -> tuple[Recipe, Tensor]:
    """The half-spaces of the fixture with three classes, and votes on them."""
    votes = torch.ones(400, 2) + 8 * F.one_hot(table.train.labels, 2)
    return Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=8, batch_size=32, watch=()), votes


def test_network_becomes_as_unsure_as_people(table: Dataset) -> None:
    plain, votes = table_of_answers(table)
    hard, soft = fit(plain, 0), fit(human_labels(plain, votes), 0)
    sure = [run.logits("test").softmax(1).amax(1).mean().item() for run in (hard, soft)]
    assert 0.7 < sure[1] < 0.9 < 0.93 < sure[0]  # nine of ten agree; near the border the network is less sure than they
    assert soft.accuracy() > 0.9


def test_treatment_takes_repeats_as_answers(table: Dataset) -> None:
    plain, _ = table_of_answers(table)
    twice = Split(table.train.inputs.repeat(2, 1), torch.cat([table.train.labels, 1 - table.train.labels]))
    data = Dataset("twice", "classification", twice, table.valid, table.test, table.classes)
    found = human_labels(plain.replace(data=data)).hooks[0]
    assert isinstance(found, HumanLabels)
    assert torch.equal(found.shares, torch.full((800, 2), 0.5))


def test_composes_with_losses_and_mixing_in_any_order(table: Dataset) -> None:
    plain, votes = table_of_answers(table)
    human = partial(human_labels, votes=votes)
    ends = [fit(recipe, 0).logits() for recipe in (elr(human(plain)), human(elr(plain)), elr(plain), human(plain))]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], ends[3])
    mixed = plain.replace(hooks=(Mixing(mixup=1.0),))
    assert not torch.equal(fit(human(mixed), 0).logits(), fit(mixed, 0).logits())
    assert isinstance(human(mixed).hooks[1], Mixing)


def test_what_does_not_fit_is_refused(table: Dataset) -> None:
    plain, votes = table_of_answers(table)
    with pytest.raises(AssayError, match="several people"):
        human_labels(plain)
    with pytest.raises(AssayError, match="a row for every training example"):
        human_labels(plain, votes[:10])
    fewer = human_labels(plain, votes).replace(data=table.holdout(0.5, seed=0))
    with pytest.raises(AssayError, match="take examples away first"):
        fit(fewer, 0)
    numbers = Dataset("n", "regression", *(Split(s.inputs, s.labels.float()) for s in (table.train, table.valid, table.test)))
    with pytest.raises(AssayError, match="has none"):
        human_labels(plain.replace(data=numbers), votes)


def real(name: str) -> Dataset:
    try:
        return load(name)
    except AssayError as error:
        pytest.skip(str(error))


def test_votes_belong_to_the_photos() -> None:
    votes, photos = real("cifar10h-4k"), real("cifar10-20k")
    assert isinstance(votes.train.inputs, Tensor)
    assert votes.train.inputs.shape == (4000, 10)
    assert 45 < votes.train.inputs.sum(1).min() <= votes.train.inputs.sum(1).max() < 70
    assert (votes.train.labels == photos.test.labels).double().mean() > 0.99  # a wrong order would give a tenth


def test_claims_at_smoke_scale(home: object) -> None:
    real("cifar10h-4k")
    lab = Lab(scale="smoke")
    for one in (module.soft_beats_hard, module.the_image_matters, module.more_robust):
        measured = one(lab)
        assert {name for want in one.expect for name in (want.arm, want.than)} <= set(measured)  # type: ignore[union-attr]
