"""Agreement by enumerating the probability tree, certificates against bisection, the authors' theorem and attacks."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from assay.errors import AssayError
from assay.lab import Lab
from assay.lab.verdict import judge
from assay.nn import mlp
from assay.nn.prototypes import rbf
from assay.papers.interpretable import classification_by_components as paper
from assay.papers.interpretable.classification_by_components import (
    ClassificationByComponents,
    ComponentNet,
    Reasoning,
    certified_radius,
    classification_by_components,
    margin_loss,
    robustness_loss,
)
from assay.recipe import Recipe
from assay.train.loop import fit

SVG = "{http://www.w3.org/2000/svg}"


def some(seed: int = 0, rows: int = 6, components: int = 7, classes: int = 4):
    """Detections (B, K), r+ and r- (K, C) in double precision, far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    detections = torch.rand(rows, components, dtype=torch.float64, generator=generator)
    logits = 2 * torch.randn(2 * components, classes, dtype=torch.float64, generator=generator)
    positive, negative = logits.softmax(dim=0).chunk(2)
    return detections, positive, negative


def test_agreement_is_the_sum_over_the_probability_tree():
    torch.manual_seed(0)
    head = Reasoning(3, 2).double()
    torch.nn.init.normal_(head.logits)
    positive, negative = head.probabilities()
    torch.testing.assert_close((positive + negative).sum(dim=0), torch.ones(2).double())
    detections = torch.rand(5, 3, dtype=torch.float64)
    agreement = head(detections)
    for row, column in itertools.product(range(5), range(2)):
        total = 0.0
        # every branch: which component is looked at, what is wanted of it, whether it is detected
        for k, wanted, detected in itertools.product(range(3), (True, False), (True, False)):
            probability = (positive if wanted else negative)[k, column].item()
            probability *= detections[row, k].item() if detected else 1 - detections[row, k].item()
            total += probability * (wanted == detected)
        assert agreement[row, column].item() == pytest.approx(total, rel=1e-12)
    assert 0 <= agreement.min() <= agreement.max() <= 1


def test_presence_alone_is_a_convex_radial_basis_function_classifier():
    torch.manual_seed(0)
    net = ComponentNet(torch.randn(4, 3), 2, sigma=0.8, negative=False)
    x = torch.randn(6, 3)
    weights = net.reasoning.logits[0].softmax(dim=0)
    torch.testing.assert_close(net(x), rbf(x, net.components, 0.8) @ weights)
    assert net.reasoning.probabilities()[1].abs().max() == 0


@pytest.mark.parametrize("paired", [True, False])
def test_radius_is_the_root_found_by_bisection(paired):
    detections, positive, negative = some(rows=12)
    target = torch.arange(12) % 4
    found = certified_radius(detections, positive, negative, 1.7, target, paired)
    d, p, n = detections.numpy(), positive.numpy(), negative.numpy()
    for row, y in enumerate(target.tolist()):
        radii = []
        for c in set(range(4)) - {y}:
            if paired:
                terms = [(p[k, y] - n[k, y]) - (p[k, c] - n[k, c]) for k in range(7)]
            else:  # each reasoning probability by itself
                terms = [*(p[:, y]), *(-n[:, y]), *(-p[:, c]), *(n[:, c])]
            where = np.tile(d[row], 1 if paired else 4)

            def lead(eps, terms=terms, where=where, y=y, c=c):
                moved = [u * v * np.exp((-eps if u > 0 else eps) / 1.7) for u, v in zip(terms, where, strict=True)]
                return sum(moved) + n[:, y].sum() - n[:, c].sum()

            radii.append(brentq(lead, -40, 40, xtol=1e-12))
        assert found[row].item() == pytest.approx(min(radii), abs=1e-8)


def test_pairing_never_certifies_less_than_the_theorem():
    detections, positive, negative = some(rows=200, components=5)
    agreement = detections @ (positive - negative) + negative.sum(dim=0)
    said = agreement.argmax(dim=1)
    paired = certified_radius(detections, positive, negative, 1.0, said)
    theorem = certified_radius(detections, positive, negative, 1.0, said, paired=False)
    assert bool((theorem >= -1e-12).all())
    assert bool((paired >= theorem - 1e-12).all())
    assert (paired > theorem + 1e-3).double().mean() > 0.5
    other = certified_radius(detections, positive, negative, 1.0, (said + 1) % 4)
    assert bool((other < 0).all())  # not the winner: what is missing


def test_theorem_in_the_authors_form():
    """-(b + sqrt(b^2 + 4 a a^T)) / 2a and its logarithm times sigma, as their package writes it."""
    detections, positive, negative = some(rows=9)
    prior = positive + negative
    a = (detections @ (positive - prior))[:, :, None] - (detections @ positive)[:, None]  # (B, C, C)
    b = (prior - positive).sum(dim=0, keepdim=True)
    b = (b.T - b)[None]
    theirs = 1.3 * (-(b + (b**2 + 4 * a * a.transpose(1, 2)).sqrt()) / (2 * a)).log()
    target = torch.arange(9) % 4
    rows = theirs[torch.arange(9), target].scatter(1, target[:, None], torch.inf).amin(dim=1)
    torch.testing.assert_close(certified_radius(detections, positive, negative, 1.3, target, paired=False), rows)


def test_what_absence_alone_decides_is_certain_for_ever():
    one, none = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    # class 0 wants the component present, class 1 nothing at all that could be met
    radius = certified_radius(torch.tensor([[0.5]]), one, none, 1.0, torch.tensor([0]))
    assert radius.item() > 25
    wrong = certified_radius(torch.tensor([[0.5]]), one, none, 1.0, torch.tensor([1]))
    assert wrong.item() < -25


def test_losses_by_hand_and_their_gradients():
    agreement = torch.tensor([[0.9, 0.5, 0.1], [0.3, 0.2, 0.25]])
    assert margin_loss(agreement, torch.tensor([0, 1]), 0.3).item() == pytest.approx((0 + 0.4) / 2)
    shares = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    assert margin_loss(agreement, shares, 0.3).item() == pytest.approx((0 + 0.5 * 0.4 + 0.5 * 0.35) / 2)
    assert robustness_loss(torch.tensor([2.0, 0.4, -1.0]), 1.0).item() == pytest.approx((0 + 0.6 + 2) / 3)
    detections, positive, negative = (part.requires_grad_() for part in some(rows=3, components=3, classes=3))
    sigma = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    radius = partial(certified_radius, target=torch.tensor([0, 1, 2]))
    assert torch.autograd.gradcheck(radius, (detections, positive, negative, sigma))


def test_gradients_are_finite_where_components_stand_on_examples():
    x = torch.randn(5, 3)
    net = ComponentNet(x, 2, 0.5)
    loss = robustness_loss(net.certified_radius(x, torch.tensor([0, 1, 0, 1, 0])))
    loss.backward()
    assert all(bool(part.grad.isfinite().all()) for part in net.parameters())


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x[:900] / 16).astype(np.float32), y[:900], (x[900:1200] / 16).astype(np.float32), y[900:1200]


@pytest.fixture(scope="module")
def robust(digits):
    model = ClassificationByComponents(40, loss="robust", margin=1.0, epochs=14, batch_size=32, random_state=0)
    return model.fit(digits[0], digits[1])


def test_certificates_hold_against_attacks(digits, robust):
    """On digits and on measurements of tumours; with the squared distance in the same formula attacks get through."""
    x, y = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x).astype(np.float32)
    tumours = ClassificationByComponents(20, epochs=25, batch_size=32, random_state=0).fit(x[:400], y[:400])
    assert tumours.score(x[400:], y[400:]) > 0.9
    for model, examples in ((robust, digits[2][:60]), (tumours, x[400:460])):
        inputs = torch.as_tensor(examples).double()
        certified = torch.as_tensor(model.certified_radius(examples))
        assert certified.median() > 0.1
        found = paper._smallest_attack(model._exact, inputs, certified)
        assert bool((found > certified).all())
        assert (certified / found).median() > 0.25


def test_a_certificate_for_the_wrong_detection_is_broken(digits, robust):
    """The formula belongs to exp(-distance / sigma): on the bell of Gauss attacks get through, and are seen to."""

    class Bell(ComponentNet):
        def detections(self, inputs):
            return rbf(inputs.flatten(1), self.components, self.log_sigma.exp(), power=2)

    torch.manual_seed(0)
    bell = Bell(robust.net_.components.detach().double(), 10, 0.3).double()
    bell.load_state_dict(robust.net_.state_dict())
    bell.log_sigma.data -= 1.5
    images = torch.as_tensor(digits[2][:40]).double()
    with torch.no_grad():
        certified = bell.certified_radius(images, bell(images).argmax(dim=1))
    assert bool((paper._smallest_attack(bell, images, certified) < certified).any())


def test_learns_digits_and_explains_them(digits, robust):
    x, y = digits[2], digits[3]
    assert robust.score(x, y) > 0.85
    scores = robust.agreement(x)
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert np.allclose(robust.predict_proba(x).sum(axis=1), 1)
    for label in (None, 3):
        votes = robust.explain(x[0], label)
        column = scores[0].argmax() if label is None else 3
        assert sum(vote.share for vote in votes) == pytest.approx(scores[0, column])
        assert [vote.share for vote in votes] == sorted((vote.share for vote in votes), reverse=True)
    root = ElementTree.fromstring(robust.picture(x[0], shape=(8, 8), most=3))
    assert len(root.findall(f"{SVG}image")) == 8
    text = " ".join(part.text for part in root.iter(f"{SVG}text"))
    assert f"certain within a distance of {robust.certified_radius(x[:1])[0]:.2f}" in text


def test_same_seed_same_network_and_wrong_settings(digits):
    x, y = digits[0][:100], digits[1][:100]
    one, two = (ClassificationByComponents(10, epochs=2, random_state=3).fit(x, y) for _ in range(2))
    assert np.array_equal(one.agreement(x), two.agreement(x))
    with pytest.raises(ValueError, match="take fewer components"):
        ClassificationByComponents(200).fit(x, y)
    with pytest.raises(ValueError, match="'margin' or 'robust'"):
        ClassificationByComponents(5, loss="hinge").fit(x, y)


@parametrize_with_checks([ClassificationByComponents(4, epochs=10, learning_rate=0.05, random_state=0)])
def test_keeps_scikit_learns_contract(estimator, check):
    check(estimator)


def test_any_network_can_end_in_components(table):
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=15, batch_size=32)
    trained = fit(classification_by_components(plain), seed=0)
    heads = [module for module in trained.model.modules() if isinstance(module, ComponentNet)]
    assert len(heads) == 1
    assert heads[0].components.shape == (10, 16)
    outputs = trained.logits("test")
    assert 0 <= outputs.min() <= outputs.max() <= 1
    assert trained.accuracy() > 0.85
    with pytest.raises(AssayError, match="does not end in one"):
        classification_by_components(plain.replace(model=partial(nn.Conv1d, 1, 2, 3)))


def test_claims_measure_what_they_expect(home):
    lab = Lab(seed=0, scale="smoke")
    for claim in (paper.certificates_hold, paper.robust_loss_certifies_more, paper.absence_helps):
        assert judge(claim.expect, {0: claim(lab)}).seeds == 1
