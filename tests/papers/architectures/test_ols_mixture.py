"""Mixtures by least squares: scikit-learn's regression, scipy's, closed forms, optimality, and the claims at smoke scale."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import cross_val_predict
from sklearn.naive_bayes import GaussianNB
from torch import Tensor, nn
from torch.nn import functional as F

from assay.committee import average
from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.architectures import ols_mixture as paper
from assay.papers.architectures.ols_mixture import MixtureNet, OLSMixture, as_distribution, mixture, ols_weights
from assay.papers.labels.elr import elr
from assay.recipe import Recipe
from assay.train.loop import fit


def said(classes: int, members: int = 4, count: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Members of falling quality: probabilities (M, N, C) float64 and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(members, count, classes, generator=generator, dtype=torch.float64)
    signal = F.one_hot(labels, classes) * torch.linspace(3, 0.3, members, dtype=torch.float64)[:, None, None]
    return (signal + noise).softmax(dim=2), labels


def rows(probs: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The regression written out: (NK, M) and (NK,)."""
    if probs.shape[2] == 2:
        return probs[:, :, 1].T.numpy(), labels.double().numpy()
    return probs.flatten(1).T.numpy(), F.one_hot(labels, probs.shape[2]).flatten().double().numpy()


@pytest.mark.parametrize("classes", [2, 4])
def test_weights_are_those_of_scikit_learns_regressions(classes: int) -> None:
    probs, labels = said(classes)
    design, targets = rows(probs, labels)
    plain = LinearRegression(fit_intercept=False).fit(design, targets)
    assert np.allclose(ols_weights(probs, labels).members, plain.coef_, atol=1e-10)
    positive = LinearRegression(fit_intercept=False, positive=True).fit(design, targets)
    ours = ols_weights(probs, labels, nonneg=True).members
    assert np.allclose(ours, positive.coef_, atol=1e-8)
    assert (ours >= 0).all()
    ridge = Ridge(alpha=0.01 * len(design), fit_intercept=False, tol=1e-12).fit(design, targets)
    assert np.allclose(ols_weights(probs, labels, ridge=0.01).members, ridge.coef_, atol=1e-8)
    condition = np.linalg.cond(design)
    assert ols_weights(probs, labels).condition == pytest.approx(condition, rel=1e-6)


def test_the_intercept_is_scikit_learns_for_two_classes_and_one_for_each_class_of_more() -> None:
    probs, labels = said(2)
    design, targets = rows(probs, labels)
    theirs = LinearRegression().fit(design, targets)
    ours = ols_weights(probs, labels, intercept=True)
    assert np.allclose(ours.members, theirs.coef_, atol=1e-10)
    assert ours.intercept.item() == pytest.approx(theirs.intercept_)
    probs, labels = said(3)
    dummies = np.tile(np.eye(3), (300, 1))  # a constant for each class is a column that is 1 in its rows
    theirs = LinearRegression(fit_intercept=False).fit(np.hstack([rows(probs, labels)[0], dummies]), rows(probs, labels)[1])
    ours = ols_weights(probs, labels, intercept=True)
    assert np.allclose(torch.cat([ours.members, ours.intercept]), theirs.coef_, atol=1e-9)
    assert np.allclose(mixture(probs, ours).flatten(), theirs.predict(np.hstack([rows(probs, labels)[0], dummies])), atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_perfect_member_gets_all_the_weight_and_copies_share_theirs(classes: int) -> None:
    probs, labels = said(classes)
    perfect = torch.cat([probs[:2], F.one_hot(labels, classes)[None].double(), probs[2:]])
    assert np.allclose(ols_weights(perfect, labels).members, [0, 0, 1, 0, 0], atol=1e-9)
    once, twice = ols_weights(probs, labels), ols_weights(torch.cat([probs, probs[:1]]), labels)
    assert np.allclose(twice.members[[0, 4]], once.members[0] / 2, atol=1e-8)
    assert torch.allclose(mixture(torch.cat([probs, probs[:1]]), twice), mixture(probs, once), atol=1e-8)
    assert twice.condition > 1e10 > once.condition


@pytest.mark.parametrize("classes", [2, 3])
def test_on_the_fitting_set_nothing_linear_is_nearer_to_the_targets(classes: int) -> None:
    probs, labels = said(classes)
    targets = F.one_hot(labels, classes).double()

    def squared(found: Tensor) -> float:
        return float((found - targets).square().mean())

    best = squared(mixture(probs, ols_weights(probs, labels)))
    assert best < squared(average(probs))
    assert all(best < squared(one) for one in probs)
    assert squared(mixture(probs, ols_weights(probs, labels, intercept=True))) <= best + 1e-12
    assert squared(mixture(probs, ols_weights(probs, labels, nonneg=True))) >= best - 1e-12


def test_as_distribution_keeps_the_largest() -> None:
    found = torch.tensor([[0.2, 0.9], [-0.3, 1.3], [-0.2, -0.1], [0.0, 0.0], [-2.0, -1.5]], dtype=torch.float64)
    probs = as_distribution(found)
    assert torch.allclose(probs.sum(dim=1), torch.ones(5, dtype=torch.float64))
    assert (probs >= 0).all()
    assert torch.equal(probs.argmax(dim=1), found.argmax(dim=1))
    assert probs[1].tolist() == [0, 1]


# --------------------------------------------------------------------------------------------------- estimator


def clouds(names: tuple[str, ...], count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    labels = random.randint(len(names), size=count)
    return random.normal(size=(count, 5)) + 1.2 * np.eye(len(names), 5)[labels], np.array(names)[labels]


@pytest.mark.parametrize("names", [("no", "yes"), ("a", "b", "c")])
def test_trained_models_are_mixed(names: tuple[str, ...]) -> None:
    X, y = clouds(names)
    models = [LogisticRegression().fit(X[:150], y[:150]), GaussianNB().fit(X[:20], y[:20])]
    ours = OLSMixture(models).fit(X[150:300], y[150:300])
    probs = torch.from_numpy(np.stack([model.predict_proba(X[150:300]) for model in models]))
    codes = torch.from_numpy(np.unique(y, return_inverse=True)[1])[150:300]
    assert np.allclose(ours.weights_, ols_weights(probs, codes).members)
    assert (ours.classes_ == names).all()
    test = X[300:]
    found = ours.decision_function(test)
    if len(names) == 2:
        assert np.allclose(found, sum(w * m.predict_proba(test)[:, 1] for w, m in zip(ours.weights_, models, strict=True)))
        assert (ours.predict(test) == np.where(found > 0.5, "yes", "no")).all()
    assert (ours.classes_[ours.predict_proba(test).argmax(axis=1)] == ours.predict(test)).all()
    assert ours.score(test, y[300:]) > 1.5 / len(names)


def test_models_are_trained_out_of_fold() -> None:
    X, y = clouds(("a", "b", "c"))
    models = [RandomForestClassifier(10, random_state=0), LogisticRegression()]
    ours = OLSMixture(models, cv=3).fit(X, y)
    folds = np.stack([cross_val_predict(clone(model), X, y, cv=3, method="predict_proba") for model in models])
    codes = torch.from_numpy(np.unique(y, return_inverse=True)[1])
    assert np.allclose(ours.weights_, ols_weights(torch.from_numpy(folds), codes).members)
    assert not hasattr(models[0], "classes_")  # what was given stays as it was
    assert (ours.models_[1].predict_proba(X) == LogisticRegression().fit(X, y).predict_proba(X)).all()
    by_heart = OLSMixture([model.fit(X, y) for model in models]).fit(X, y)  # the forest has its training data by heart
    assert by_heart.weights_[0] > ours.weights_[0] + 0.3
    assert clone(ours).get_params()["cv"] == 3


def test_networks_can_be_members() -> None:
    X, y = clouds(("no", "yes"))
    labels = (y == "yes").astype(int)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 2), nn.Dropout(0.5))
    forest = RandomForestClassifier(10, random_state=0).fit(X[:200], labels[:200])
    ours = OLSMixture([net, forest]).fit(X[200:], labels[200:])
    assert (ours.predict(X) == ours.predict(X)).all()  # dropout is off
    assert ours.score(X[200:], labels[200:]) > 0.7
    lacking = OLSMixture([mlp(5, 3, (4,)), mlp(5, 3, (4,))]).fit(X, labels)  # a class that y lacks
    assert lacking.classes_.tolist() == [0, 1, 2]
    assert lacking.predict_proba(X).shape == (400, 3)


def test_what_does_not_fit_is_said() -> None:
    X, y = clouds(("no", "yes"))
    other = LogisticRegression().fit(*clouds(("a", "b", "c")))
    mine = LogisticRegression().fit(X, y)
    with pytest.raises(AssayError, match="those of the same ones"):
        OLSMixture([mine, other]).fit(X, y)
    with pytest.raises(ValueError, match="do not know"):
        OLSMixture([mine]).fit(X, np.where(y == "no", "never", y))
    with pytest.raises(ValueError, match="for the classes"):
        OLSMixture([mine, LogisticRegression().fit(X, y == "yes")]).fit(X, y)
    with pytest.raises(ValueError, match="leave cv=None"):
        OLSMixture([mine, mlp(5, 2)], cv=3).fit(X, y)
    with pytest.raises(NotFittedError):
        OLSMixture([mine]).predict(X)
    with pytest.raises(AssayError, match="members, examples, classes"):
        ols_weights(torch.rand(3, 2), torch.zeros(3, dtype=torch.int64))


# --------------------------------------------------------------------------------------------------- treatment


def recipe(table: Dataset) -> Recipe:
    return Recipe(
        table.holdout(0.25, seed=0),
        model=partial(mlp, 8, 2, (16,)),
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        epochs=2,
        batch_size=32,
    )


def test_members_are_trained_as_if_alone(table: Dataset) -> None:
    trained = fit(paper.ols_mixture(recipe(table), members=3), seed=0)
    net = trained.model
    assert isinstance(net, MixtureNet)
    torch.manual_seed(0)  # the first member starts where a network alone does, and sees the same batches
    alone = fit(recipe(table), seed=0).model
    for ours, theirs in zip(net.members[0].parameters(), alone.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    held = trained.recipe.data.valid
    probs = torch.stack([member(held.inputs).softmax(dim=1) for member in net.members]).detach()
    expected = ols_weights(probs, held.labels, ridge=1e-4)
    assert torch.allclose(net.weights.double(), expected.members, atol=1e-5)
    found = mixture(probs, expected)
    assert torch.allclose(trained.logits("valid").softmax(dim=1).double(), as_distribution(found), atol=1e-4)
    assert trained.accuracy() > 0.8


def test_the_treatment_composes_and_refuses(table: Dataset) -> None:
    plain = recipe(table)
    one, other = fit(elr(paper.ols_mixture(plain)), seed=0), fit(paper.ols_mixture(elr(plain)), seed=0)
    assert torch.allclose(one.logits(), other.logits(), atol=1e-5)
    assert not torch.allclose(one.logits(), fit(paper.ols_mixture(plain), seed=0).logits(), atol=1e-3)
    with pytest.raises(AssayError, match="holdout"):
        paper.ols_mixture(plain.replace(data=table))
    with pytest.raises(AssayError, match="a mixture already"):
        paper.ols_mixture(paper.ols_mixture(plain))
    for wrong in ({"members": 0}, {"ridge": -0.1}):
        with pytest.raises(AssayError, match="1 or more, and 0 or more"):
            paper.ols_mixture(plain, **wrong)  # type: ignore[arg-type]
    with pytest.raises(AssayError, match="put it last"):
        fit(paper.ols_mixture(plain).replace(model=plain.model, loss=F.cross_entropy), seed=0)


def test_networks_of_the_claims() -> None:
    for words in paper.LAYERS:
        net = paper.filter_net(words, 14)
        assert net(torch.zeros(2, 1, 14, 14)).shape == (2, 2)
        assert 3 <= sum(isinstance(layer, nn.Conv2d) for layer in net.modules()) <= 5


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    measured = paper.ols_beats_average(lab)
    assert {"average, unequal", "OLS, unequal", "average, equal", "OLS, equal"} <= set(measured)
    assert len(measured["OLS, unequal"].y) == 5
    spent = paper.worth_its_held_out_images(lab)
    assert spent["OLS"] == measured["OLS, unequal"].number
    assert spent["average"] == measured["average, unequal"].number
    assert len(paper.training_set_weights_overfit(lab)["weights, fitted on training images"].y) == 6
