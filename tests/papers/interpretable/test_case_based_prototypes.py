"""The prototype network: every term of its loss by hand, its layout by its size, what an explanation must add up to."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.nn import functional as F

from assay.errors import AssayError
from assay.lab import Lab
from assay.lab.verdict import judge
from assay.nn import mlp
from assay.papers.interpretable import case_based_prototypes as paper
from assay.papers.interpretable.case_based_prototypes import (
    CaseBasedLoss,
    PrototypeClassifier,
    PrototypeHead,
    case_based_loss,
    case_based_prototypes,
    prototype_network,
)
from assay.recipe import Recipe
from assay.train.loop import fit

SVG = "{http://www.w3.org/2000/svg}"


def test_layout_of_the_paper():
    net = prototype_network((1, 28, 28), 10)
    assert sum(part.numel() for part in net.parameters()) == 21_706 + 15 * 40 + 15 * 10 + 21_697
    sizes = []
    x = torch.rand(2, 1, 28, 28)
    for layer in net[0]:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            sizes.append(tuple(x.shape[1:]))
    assert sizes == [(32, 14, 14), (32, 7, 7), (32, 4, 4), (10, 2, 2)]
    assert net[1].drawn().shape == (15, 1, 28, 28)
    for shape in ((3, 32, 32), (1, 8, 8), (1, 30, 21), (7,)):
        other = prototype_network(shape, 3, 4)
        assert other(torch.rand(2, *shape)).shape == (2, 3)
        assert other[1].drawn().shape == (4, *shape)


def test_loss_is_the_sum_of_its_terms_by_hand():
    torch.manual_seed(0)
    head = PrototypeHead(2, 3, 2, nn.Linear(2, 4)).double()
    z, x, y = torch.rand(5, 2).double(), torch.rand(5, 4).double(), torch.tensor([0, 1, 2, 0, 1])
    logits = head(z)
    d = [[sum((z[i, k] - head.prototypes[j, k]).item() ** 2 for k in range(2)) for j in range(2)] for i in range(5)]
    for i in range(5):
        expected = [sum(d[i][j] * head.weights[j, c].item() for j in range(2)) for c in range(3)]
        assert logits[i].tolist() == pytest.approx(expected)
    r1 = sum(min(d[i][j] for i in range(5)) for j in range(2)) / 2
    r2 = sum(min(d[i]) for i in range(5)) / 5
    rebuilt = sum((head.decoder(z[i]) - x[i]).square().sum().item() for i in range(5)) / 5
    ce = F.cross_entropy(logits, y).item()
    each = [case_based_loss(head, z, logits, x, y, tuple(float(k == i) for k in range(4))).item() for i in range(4)]
    assert each == pytest.approx([ce, rebuilt, r1, r2])
    whole = case_based_loss(head, z, logits, x, y, (20, 1, 0.5, 2)).item()
    assert whole == pytest.approx(20 * ce + rebuilt + 0.5 * r1 + 2 * r2)


def test_one_prototype_a_class_and_no_encoder_is_the_nearest_centroid():
    x, y = load_wine(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    centroids = NearestCentroid().fit(x, y)
    head = PrototypeHead(13, 3, 3, nn.Identity()).double()
    with torch.no_grad():
        head.prototypes.copy_(torch.as_tensor(centroids.centroids_))
        head.weights.copy_(-torch.eye(3))
    assert np.array_equal(head(torch.as_tensor(x)).argmax(dim=1).numpy(), centroids.predict(x))
    assert head.stands_for().tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x[:800] / 16).astype(np.float32), y[:800], (x[800:1000] / 16).astype(np.float32), y[800:1000]


@pytest.fixture(scope="module")
def learnt(digits):
    model = PrototypeClassifier(12, shape=(1, 8, 8), epochs=12, batch_size=50, learning_rate=1e-2, random_state=0)
    return model.fit(digits[0], digits[1])


def test_learns_digits_draws_and_explains(digits, learnt):
    x, y = digits[2], digits[3]
    assert learnt.score(x, y) > 0.6
    assert learnt.loss_curve_[-1] < 0.5 * learnt.loss_curve_[0]
    drawn = learnt.decode_prototypes()
    assert drawn.shape == (12, 64)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    logits = np.sort(learnt.decision_function(x[:1])[0])
    cases = learnt.explain(x[0])
    first, second = np.argsort(-learnt.decision_function(x[:1])[0])[:2]
    weights = learnt.net_[1].weights.detach().numpy()
    usual = float(learnt.usual_ @ (weights[:, first] - weights[:, second]))  # the lead at the usual distances
    assert sum(case.lead for case in cases) + usual == pytest.approx(logits[-1] - logits[-2], rel=1e-3)
    assert [case.distance for case in cases] == sorted(case.distance for case in cases)
    assert [case.stands_for for case in cases] == [learnt.stands_for_[case.prototype] for case in cases]
    assert np.allclose(learnt.predict_proba(x).sum(axis=1), 1, atol=1e-5)
    root = ElementTree.fromstring(learnt.picture(x[0], most=5))
    assert len(root.findall(f"{SVG}image")) == 6


def test_bars_speak_for_the_class_whose_prototype_is_near(digits, learnt):
    """A prototype that stands for the class that won, nearer than it usually is, has its bar to the right."""
    said, near = learnt.predict(digits[2]), 0
    for row, label in zip(digits[2], said, strict=True):
        for case in learnt.explain(row):
            weight = learnt.net_[1].weights.detach().numpy()[case.prototype]
            if case.stands_for == label and case.distance < learnt.usual_[case.prototype] and weight.min() == weight[label]:
                assert case.lead > 0
                near += 1
    assert near > 100


def test_long_names_do_not_run_into_each_other(digits):
    names = np.array(["a class with <a long> name", "another class with a long name"])
    model = PrototypeClassifier(4, epochs=1, random_state=0).fit(digits[0], names[digits[1] % 2])
    root = ElementTree.fromstring(model.picture(digits[2][0]))
    captions = [text.text or "" for text in root.iter(f"{SVG}text")][1:]
    assert any(text.startswith("for a") for text in captions)
    assert max(map(len, captions)) <= 18


def test_same_seed_same_network_and_wrong_shapes(digits):
    one, two = (PrototypeClassifier(5, epochs=1, random_state=3).fit(digits[0], digits[1]) for _ in range(2))
    assert np.array_equal(one.prototypes_, two.prototypes_)
    with pytest.raises(ValueError, match="holds 81 numbers, and X has 64"):
        PrototypeClassifier(shape=(1, 9, 9)).fit(digits[0], digits[1])


@parametrize_with_checks([PrototypeClassifier(6, epochs=12, learning_rate=0.03, batch_size=50, random_state=0)])
def test_keeps_scikit_learns_contract(estimator, check):
    check(estimator)


def test_any_network_can_decide_by_prototypes(table):
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=10, batch_size=32)
    recipe = case_based_prototypes(plain)
    trained = fit(recipe, seed=0)
    (head,) = (module for module in trained.model.modules() if isinstance(module, PrototypeHead))
    assert head.drawn().shape == (4, 8)
    assert trained.accuracy() > 0.9
    far = fit(case_based_prototypes(plain, r1=0.0, r2=0.0), seed=0)

    def loose(one):
        (own,) = (module for module in one.model.modules() if isinstance(module, PrototypeHead))
        with torch.no_grad():
            z = one.model[:-1](table.test.inputs)
        return torch.cdist(z, own.prototypes).square().amin(dim=0).mean()

    assert loose(trained) < loose(far)
    with pytest.raises(AssayError, match="does not end in one"):
        case_based_prototypes(plain.replace(model=partial(nn.Conv1d, 1, 2, 3)))


def test_the_loss_owns_no_parameters():
    loss = CaseBasedLoss(prototype_network((4,), 2, 3))
    assert not list(loss.parameters())
    assert loss.watches == ("1.latent",)


def test_claims_measure_what_they_expect(home):
    lab = Lab(seed=0, scale="smoke")
    for claim in (paper.no_accuracy_price, paper.terms_make_pictures, paper.terms_cover_classes):
        assert judge(claim.expect, {0: claim(lab)}).seeds == 1
