"""Surrogates: scikit-learn's permutation importance, planted columns, rules that are the tree, counterfactuals that flip it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from sklearn.inspection import permutation_importance as theirs
from sklearn.linear_model import LogisticRegression

from assay.errors import AssayError
from assay.lab import Lab
from assay.lab.verdict import judge
from assay.nn import mlp
from assay.papers.explain import topk_surrogate as paper
from assay.papers.explain.topk_surrogate import AttentiveAutoencoder, BlackBoxSurrogate, WithReconstruction
from assay.view import View


@pytest.fixture(scope="module")
def planted():
    """The class depends on 5 of 60 columns."""
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 60))
    columns = random.permutation(60)[:5]
    y = (x[:, columns] @ [3, -2.5, 2, 2, -2] > 0).astype(int)
    return x, y, columns, LogisticRegression(max_iter=500).fit(x, y)


@pytest.fixture(scope="module")
def grown(planted):
    x, _, _, model = planted
    return BlackBoxSurrogate(model.predict_proba, k=5, max_depth=5, random_state=0).fit(x[:400], x[400:])


def test_permutation_importance_is_scikit_learns(planted):
    x, y, _, model = planted
    ours = paper.permutation_importance(model.predict_proba, x, y, 20, np.random.RandomState(0))
    expected = theirs(model, x, y, n_repeats=20, random_state=1).importances_mean
    assert np.abs(ours - expected).max() < 0.012


def test_sensitivity_of_a_straight_line_is_weight_times_mean_deviation():
    x = np.random.default_rng(0).normal(size=(50, 3))
    weights = np.array([0.01, -0.03, 0.0])

    def line(rows: np.ndarray) -> np.ndarray:
        first = 0.5 + rows @ weights
        return np.stack([first, 1 - first], axis=1)

    expected = np.abs(weights) * np.abs(x - x.mean(axis=0)).mean(axis=0)
    np.testing.assert_allclose(paper.sensitivity(line, x), expected, atol=1e-12)


def test_planted_columns_are_found(planted, grown):
    assert set(grown.top_) == set(planted[2])


def test_fidelity_is_that_of_the_black_box_not_of_the_labels(planted, grown):
    x, _, _, model = planted
    found = grown.fidelity(x[400:])
    said, goal = grown.predict_proba(x[400:]), model.predict_proba(x[400:])
    assert found["agreement"] == pytest.approx((said.argmax(1) == model.predict(x[400:])).mean())
    assert found["r2"] == pytest.approx(1 - ((goal - said) ** 2).sum() / ((goal - goal.mean(0)) ** 2).sum())
    assert found["agreement"] > 0.75


def test_rules_are_the_tree(planted, grown):
    x, _, _, model = planted
    assert sum(rule.support for rule in grown.rules_) == pytest.approx(1)
    said, boxed = grown.predict(x), model.predict(x[:400])
    for row, answer in zip(x, said, strict=True):
        narrow = row.astype(np.float32).astype(float)  # as scikit-learn compares
        fires = [rule for rule in grown.rules_ if all((narrow[c.feature] > c.threshold) == c.above for c in rule.conditions)]
        assert fires == [grown.explain(row)]
        assert fires[0].said == answer
    rule = grown.explain(x[0])
    inside = [grown.explain(row) is rule for row in x[:400]]
    assert rule.support == pytest.approx(np.mean(inside))
    assert rule.confidence == pytest.approx((boxed[inside] == rule.said).mean())


def test_a_counterfactual_flips_the_tree_by_the_least_change(planted, grown):
    x, _, _, _ = planted
    for row in x[400:440]:
        moved = grown.counterfactual(row)
        assert grown.predict(moved[None])[0] != grown.predict(row[None])[0]
        assert set(np.flatnonzero(moved != row)) <= set(grown.top_)
        assert grown.counterfactual(row, target=int(1 - grown.predict(row[None])[0])) == pytest.approx(moved)
        price = (np.abs(moved - row)[grown.top_] / grown.scale_).sum()
        others = x[grown.predict(x) != grown.predict(row[None])[0]]  # any row of another class is at least as far
        assert price <= (np.abs(others - row)[:, grown.top_] / grown.scale_).sum(axis=1).min() + 1e-9
    constant = BlackBoxSurrogate(lambda rows: np.tile([0.9, 0.1], (len(rows), 1)), k=2, random_state=0).fit(x)
    with pytest.raises(ValueError, match="another class"):
        constant.counterfactual(x[0])


def test_picture_marks_the_rule(planted, grown):
    root = ElementTree.fromstring(grown.picture(example=planted[0][0], levels=9))
    way = [path for path in root.iter("{http://www.w3.org/2000/svg}path") if path.get("stroke") == "#d33"]
    assert len(way) >= len(grown.explain(planted[0][0]).conditions)


def test_attention_sums_to_one_and_reconstruction_enters_the_loss():
    torch.manual_seed(0)
    net, inputs, labels = AttentiveAutoencoder(12, 3, heads=2), torch.randn(6, 12), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(net.attention(inputs).sum(dim=1), torch.ones(6))
    logits, rebuilt = net(inputs), torch.zeros(6, 12)
    plain = torch.nn.functional.cross_entropy(logits, labels)
    loss = WithReconstruction(0.5)(logits, labels, inputs, {"decoder": rebuilt})
    torch.testing.assert_close(loss, plain + 0.5 * inputs.square().mean())


def test_probe_on_a_table():
    torch.manual_seed(0)
    model = mlp(6, 2, (16,)).eval()
    background, inputs = torch.randn(200, 6), torch.randn(5, 6)
    view = View(model, inputs, model(inputs).argmax(1), None, background, None, "table", ("no", "yes"), tuple("uvwxyz"))
    seen = paper.surrogate(view, k=3)
    assert 0 <= seen.numbers["share given the network's class"] <= 1
    moved = seen.inputs["counterfactual"]
    torch.testing.assert_close(moved - inputs, seen.attributions["change to the nearest leaf of another class"])
    flips = (model(moved).argmax(1) != model(inputs).argmax(1)).double()
    assert torch.equal(seen.each["counterfactual flips the network"], flips)
    with pytest.raises(AssayError, match="kind images"):
        paper.surrogate(View(model, inputs, view.target, None, background, None, "images", ("no", "yes")))


def test_claims_measure_what_they_expect(home):
    lab = Lab(seed=0, scale="smoke")
    for claim in (paper.few_columns_do, paper.embedding_beats_boosting):
        assert judge(claim.expect, {0: claim(lab)}).seeds == 1
