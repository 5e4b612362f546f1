"""The two terms against closed forms and the authors' way to train the centres; the treatment on all kinds of data; claims."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.own.baselines import baseline
from assay.paper import Cost
from assay.papers.labels import inducing_neural_collapse as paper
from assay.papers.labels.elr import elr
from assay.papers.labels.inducing_neural_collapse import (
    NeuralCollapseLoss,
    NeuralCollapseRegularizer,
    adds_to_balanced_classes,
    collapse,
    inducing_neural_collapse,
    inter_class,
    intra_class,
    rare_classes_gain,
    restores_equal_angles,
    restores_equal_angles_on_photos,
)
from assay.recipe import Recipe, per_example
from assay.train.loop import fit
from assay.view import View


def batch(seed: int = 0, classes: int = 5, dim: int = 6, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels in which the last class is absent."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator, dtype=torch.float64).relu()
    return features, torch.randint(classes - 1, (count,), generator=generator)


def simplex(classes: int) -> torch.Tensor:
    return torch.eye(classes, dtype=torch.float64) * 3 + 0.7  # moved off the origin: the centre of all is taken away


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_equal_angles_are_the_optimum_of_the_second_term(classes: int) -> None:
    """A kink: all neighbours are equally near, so that the gradient is one of many and says nothing; every step away costs."""
    centers = simplex(classes)
    best = inter_class(centers).item()
    assert best == pytest.approx(-math.acos(-1 / (classes - 1)))
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1, 1.0):
        steps = size * torch.randn(20, classes, classes, generator=generator, dtype=torch.float64)
        assert all(inter_class(centers + step) > best for step in steps)


def descended(classes: int, dim: int) -> float:
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    for step in range(1500):
        (gradient,) = torch.autograd.grad(inter_class(centers), centers)
        with torch.no_grad():
            centers -= 5 * 0.995**step * gradient
    return inter_class(centers).item()


def test_centres_reach_equal_angles_where_there_is_room_and_cannot_where_there_is_none() -> None:
    best = -math.acos(-1 / 4)
    assert descended(5, 4) == pytest.approx(best, abs=1e-2)
    assert descended(5, 9) == pytest.approx(best, abs=1e-2)
    assert descended(5, 2) == pytest.approx(-math.radians(72), abs=2e-2)  # a pentagon


def test_first_term_equals_its_definition() -> None:
    features, labels = batch()
    centers = torch.randn(5, 6, dtype=torch.float64)
    by_class = [(features[labels == k] - centers[k]).square().sum(1).mean() for k in labels.unique().tolist()]
    torch.testing.assert_close(intra_class(features, labels, centers), torch.stack(by_class).sum() / 5)


def test_first_term_is_zero_on_the_centres_only_and_blind_to_frequencies() -> None:
    features, labels = batch()
    centers = torch.randn(5, 6, dtype=torch.float64)
    assert intra_class(centers[labels], labels, centers) == 0
    assert intra_class(centers[labels] + 1e-3 * (torch.arange(12) == 7)[:, None], labels, centers) > 0
    often = torch.cat([torch.arange(12), *[(labels == 1).nonzero().flatten()] * 5])
    torch.testing.assert_close(intra_class(features[often], labels[often], centers), intra_class(features, labels, centers))


def test_shares_of_classes_are_labels_too() -> None:
    features, labels = batch()
    features.requires_grad_()
    shares = F.one_hot(labels, 5).double()
    results = []
    for given in (labels, shares):
        torch.manual_seed(0)
        regularizer = NeuralCollapseRegularizer(5, 6, intra=0.3).double()
        loss = regularizer(features, given)
        results.append((loss, *torch.autograd.grad(loss, features), regularizer.centers))
    torch.testing.assert_close(results[0], results[1])
    mixed = 0.25 * shares + 0.75 * shares.roll(1, 0)
    distances = torch.cdist(features, results[0][2]).square()
    wanted = sum((distances[:, k] * mixed[:, k]).sum() / mixed[:, k].sum() for k in range(4)) / 5
    torch.testing.assert_close(intra_class(features, mixed, results[0][2]), wanted)


def test_centres_follow_shares_of_classes_down_the_slope_of_the_loss() -> None:
    features, labels = batch()
    shares = 0.3 * F.one_hot(labels, 5).double() + 0.7 * F.one_hot((labels + 2) % 5, 5).double()
    regularizer = NeuralCollapseRegularizer(5, 6, intra=0.2, inter=0.0).double()
    before = regularizer.centers.clone().requires_grad_()
    (slope,) = torch.autograd.grad(intra_class(features, shares, before), before)
    regularizer(features, shares)
    torch.testing.assert_close(regularizer.centers, (before - 0.5 * slope).detach())


def test_loss_is_cross_entropy_and_the_two_terms_and_moves_the_features() -> None:
    features, labels = batch()
    features.requires_grad_()
    logits = torch.randn(12, 5, dtype=torch.float64)
    settings = {"intra": 0.3, "inter": 0.7, "center_lr": 0.2}
    torch.manual_seed(0)
    loss = NeuralCollapseLoss(5, 6, **settings).double()
    torch.manual_seed(0)
    regularizer = NeuralCollapseRegularizer(5, 6, **settings).double()
    found, wanted = loss(logits, labels, features), F.cross_entropy(logits, labels) + regularizer(features, labels)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(total, features)[0] for total in (found, wanted)))
    assert torch.equal(loss.regularizer.centers, regularizer.centers)


@pytest.mark.parametrize("inter", [0.0, 0.1, 2.0])
def test_centres_and_features_move_as_with_an_optimizer_of_their_own(inter: float) -> None:
    """The authors' loop: plain SGD on the centres at rate 1/2, their gradient divided by the first weight."""
    torch.manual_seed(1)
    regularizer = NeuralCollapseRegularizer(5, 6, intra=0.02, inter=inter).double()
    centers = nn.Parameter(regularizer.centers.clone())
    optimizer = torch.optim.SGD([centers], lr=0.5)
    for seed in range(6):
        features, labels = batch(seed)
        ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
        loss = regularizer(ours, labels)
        loss.backward()
        units = F.normalize(centers - centers.mean(0), dim=1)
        cosines = units @ units.T - 2 * torch.eye(5)
        apart = -cosines.max(dim=1).values.clamp(-0.99999, 0.99999).acos().mean()
        distances = (theirs[:, None] - centers).square().sum(2) * F.one_hot(labels, 5)
        near = (distances.sum(0) / F.one_hot(labels, 5).sum(0).clamp_min(1)).mean()
        other = 0.02 * near + inter * apart
        optimizer.zero_grad()
        other.backward()
        assert centers.grad is not None
        centers.grad /= 0.02
        optimizer.step()
        torch.testing.assert_close(loss, other)
        torch.testing.assert_close(ours.grad, theirs.grad)
        torch.testing.assert_close(regularizer.centers, centers.detach())


def test_looking_at_the_loss_moves_nothing_and_the_centres_are_saved() -> None:
    features, labels = batch()
    regularizer = NeuralCollapseRegularizer(5, 6)
    assert not list(regularizer.parameters())
    before = regularizer.centers.clone()
    regularizer.eval()(features.float(), labels)
    assert torch.equal(regularizer.centers, before)
    regularizer.train()(features.float(), labels)
    assert not torch.equal(regularizer.centers, before)
    other = NeuralCollapseRegularizer(5, 6)
    other.load_state_dict(regularizer.state_dict())
    assert torch.equal(other.centers, regularizer.centers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stays_finite_in_every_precision(dtype: torch.dtype) -> None:
    regularizer = NeuralCollapseRegularizer(3, 4)
    features = torch.zeros(2, 4, dtype=dtype, requires_grad=True)
    for _ in range(50):
        loss = regularizer(features, torch.tensor([0, 0]))
    loss.backward()
    assert loss.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert regularizer.centers.isfinite().all()


@pytest.mark.parametrize("wrong", [{"intra": 0.0}, {"inter": -1.0}, {"center_lr": -0.1}])
def test_bad_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        NeuralCollapseRegularizer(5, 6, **wrong)


@pytest.mark.parametrize("shape", [(4, 7), (4, 6, 1, 1)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"features must be \(B, 6\)"):
        NeuralCollapseRegularizer(5, 6)(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))


def made(inputs: torch.Tensor | tuple[str, ...], classes: int) -> Dataset:
    labels = torch.arange(len(inputs)) % classes
    split = Split(inputs, labels)
    return Dataset("made", "classification", split, split.take(torch.arange(0)), split, tuple("abcdef"[:classes]))


KINDS = {
    "images": made(torch.rand(24, 1, 12, 12), 3),
    "table": made(torch.rand(24, 5), 2),
    "text": made(tuple(f"word{n % 3} is not word{n}" for n in range(24)), 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_treatment_works_on_every_kind_of_data(kind: str) -> None:
    plain = baseline(KINDS[kind]).replace(epochs=1)
    treated = inducing_neural_collapse(plain, intra=0.03, inter=0.2, center_lr=0.4)
    assert treated == plain.replace(loss=per_example(NeuralCollapseLoss, intra=0.03, inter=0.2, center_lr=0.4))
    first, second = fit(treated, 0), fit(treated, 0)
    assert first.history == second.history
    assert first.history["train_loss"] != fit(plain, 0).history["train_loss"]


@pytest.mark.parametrize("order", [(elr, inducing_neural_collapse), (inducing_neural_collapse, elr)])
def test_it_goes_together_with_another_loss(table: Dataset, order: tuple[partial[Recipe], ...]) -> None:
    recipe = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=2)
    for treatment in order:
        recipe = treatment(recipe)
    alone = [fit(one(recipe.replace(loss=F.cross_entropy)), 0).history["train_loss"] for one in (elr, inducing_neural_collapse)]
    assert fit(recipe, 0).history["train_loss"] not in alone


def test_numbers_to_predict_are_refused(table: Dataset) -> None:
    split = Split(torch.rand(4, 2), torch.rand(4))
    numbers = Dataset("n", "regression", split, split, split)
    with pytest.raises(AssayError, match="cross-entropy"):
        inducing_neural_collapse(Recipe(numbers, model=partial(mlp, 2, 1)))


def test_probe_finds_classes_that_lie_apart_and_an_example_that_does_not_belong() -> None:
    """Far from the origin, as features behind a ReLU are: angles are seen from the centre of the classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(3))
        model[1].bias.zero_()
    corners = torch.eye(3) + 5
    labels = torch.arange(3).repeat(2)
    shown = torch.tensor([[1.0, 0, 0], [0.2, 0.9, 0.0]]) + 5
    view = View(model, shown, torch.tensor([0, 0]), None, corners[labels], labels, "table", ("a", "b", "c"))
    seen = collapse(view)
    assert seen.numbers["smallest angle between classes, degrees"] == pytest.approx(120)
    assert seen.numbers["NC1, spread within classes against between"] == pytest.approx(0, abs=1e-12)
    assert seen.each["degrees from its class"][0] == pytest.approx(0, abs=0.1)
    assert seen.each["degrees from its class"][1] > 60
    assert seen.each["nearest mean is that class"].tolist() == [1, 0]
    assert "120.0" in seen.notes[0]
    with pytest.raises(AssayError, match="labels"):
        collapse(View(model, shown, torch.tensor([0, 0]), None, corners, None, "table", ("a", "b", "c")))
    with pytest.raises(AssayError, match="several classes"):
        collapse(View(model, shown, torch.tensor([0, 0]), None, corners[[1, 1]], labels[[1, 1]], "table", ("a", "b", "c")))
    with pytest.raises(AssayError, match="linear"):
        collapse(View(nn.Flatten(), shown, torch.tensor([0, 0]), None, corners[labels], labels, "table", ("a", "b", "c")))
    with pytest.raises(AssayError, match="text"):
        collapse(View(model, shown, torch.tensor([0, 0]), None, corners, labels, "text", ("a", "b", "c")))


def test_gains_are_those_of_the_rarest_and_of_the_most_frequent_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four classes, the first the most frequent; each has two test examples."""
    labels = torch.arange(4).repeat_interleave(2)
    split = Split(torch.zeros(8, 1), labels)
    train = Split(torch.zeros(10, 1), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3]))
    data = Dataset("made", "classification", train, split, split, tuple("abcd"))

    def trained(right: list[int]) -> SimpleNamespace:
        said = torch.where(torch.tensor(right) == 1, labels, (labels + 1) % 4)
        return SimpleNamespace(recipe=SimpleNamespace(data=data), logits=lambda _: F.one_hot(said, 4).float(), cost=Cost())

    plain, better = trained([1, 1, 1, 1, 1, 0, 0, 0]), trained([1, 0, 1, 1, 1, 1, 1, 1])
    monkeypatch.setattr(paper, "_chosen", lambda _: {"cross-entropy": plain, "cross-entropy, regularised": better})
    found = rare_classes_gain(Lab(scale="smoke"))
    assert found["cross-entropy"].y == [1, 1, 0.5, 0]
    assert found["cross-entropy"].x == [4, 3, 2, 1]
    assert found["cross-entropy"].number == 0.625
    assert found["gain of the rarest classes"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert found["gain of the most frequent classes"] == pytest.approx((-0.5 + 0 + 0.5) / 3)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    found = restores_equal_angles(lab)
    assert len(found) == 12
    angles = found["regularised"]
    assert len(angles.y) == 45
    assert angles.number == min(angles.y)
    assert found["regularised"].y != found["cross-entropy"].y
    assert set(rare_classes_gain(lab)) > set(adds_to_balanced_classes(lab))
    assert list(adds_to_balanced_classes(lab)) == [
        "cross-entropy",
        "cross-entropy, regularised",
        "classes balanced",
        "classes balanced, regularised",
    ]


def test_claim_on_photos_at_smoke_scale(home: object) -> None:
    assert len(restores_equal_angles_on_photos(Lab(scale="smoke"))) == 6
