"""Distilled trees: the tree of Gini by another name, means in leaves, the teacher at full depth, the contract of scikit-learn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from assay.errors import AssayError
from assay.lab import Lab
from assay.lab.verdict import judge
from assay.nn import mlp
from assay.papers.interpretable import tree_distillation as paper
from assay.papers.interpretable.tree_distillation import DistilledTree, as_a_tree, at_depth, jitter, node_values
from assay.view import View

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def noise():
    """No two splits are equally good in it."""
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 8)).astype(np.float32)
    y = (x @ random.normal(size=(8, 4)) + random.normal(size=(600, 4))).argmax(axis=1)
    return x, y, x @ random.normal(size=(8, 4)).astype(np.float32)


def splits(tree):
    inner = tree.tree_.children_left >= 0
    return tree.tree_.feature[inner].tolist(), tree.tree_.threshold[inner].tolist()


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_labels_grow_the_tree_of_gini(noise, depth):
    x, y, _ = noise
    ours = DistilledTree(depth, random_state=0).fit(x, y)
    gini = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(x, y)
    assert splits(ours.tree_)[0] == splits(gini)[0]
    assert splits(ours.tree_)[1] == pytest.approx(splits(gini)[1])
    assert np.array_equal(ours.predict(x), gini.predict(x))


def test_leaves_hold_the_means_of_their_targets(noise):
    x, _, scores = noise
    tree = DistilledTree(4, random_state=0).fit(x, scores)
    centred = scores - scores.mean(axis=1, keepdims=True)
    leaf = tree.tree_.apply(x)
    for one in np.unique(leaf):
        np.testing.assert_allclose(tree.values(x[leaf == one][:1])[0], centred[leaf == one].mean(axis=0), atol=1e-5)


def test_the_first_split_reduces_the_variance_most(noise):
    x, _, scores = noise
    centred = scores - scores.mean(axis=1, keepdims=True)
    tree = DistilledTree(1, random_state=0).fit(x, scores)

    def left_over(feature: int, threshold: float) -> float:
        above = x[:, feature] > threshold
        return sum(((part - part.mean(axis=0)) ** 2).sum() for part in (centred[above], centred[~above]) if len(part))

    every = min(left_over(feature, at) for feature in range(8) for at in np.sort(x[:, feature])[:-1])
    assert left_over(tree.tree_.tree_.feature[0], tree.tree_.tree_.threshold[0]) == pytest.approx(every, rel=1e-6)


def test_a_deep_enough_tree_is_the_teacher_on_its_rows(noise):
    x, _, scores = noise
    assert np.array_equal(DistilledTree(None).fit(x, scores).predict(x), scores.argmax(axis=1))


def test_a_number_added_to_all_logits_of_a_row_changes_nothing(noise):
    x, _, scores = noise
    shifted = scores + np.random.default_rng(1).normal(size=(600, 1)) * 5
    assert (
        splits(DistilledTree(4, random_state=0).fit(x, scores).tree_)[0]
        == splits(DistilledTree(4, random_state=0).fit(x, shifted).tree_)[0]
    )


@pytest.mark.parametrize("kind", [DecisionTreeClassifier, DecisionTreeRegressor])
def test_a_stopped_tree_is_the_shallow_tree(noise, kind):
    x, y, scores = noise
    goal = y if kind is DecisionTreeClassifier else scores
    settings = {"random_state": 0, "min_samples_leaf": 15}  # among a handful of examples many splits are equally good
    deep = kind(max_depth=7, **settings).fit(x[:400], goal[:400])
    for depth in range(1, 4 if kind is DecisionTreeClassifier else 8):  # counts of labels are soon equally good
        shallow = kind(max_depth=depth, **settings).fit(x[:400], goal[:400])
        ours = node_values(deep)[at_depth(deep, deep.apply(x[400:]), depth)]
        np.testing.assert_allclose(ours, node_values(shallow)[shallow.apply(x[400:])], atol=1e-6)


def test_credit_adds_up_to_what_the_leaf_says_more_than_the_root(noise):
    x, _, scores = noise
    tree = DistilledTree(5, random_state=0).fit(x, scores)
    target = scores[:50].argmax(axis=1)
    credit = tree.credit(x[:50], target)
    root = node_values(tree.tree_)[0]
    expected = tree.values(x[:50])[np.arange(50), target] - root[target]
    np.testing.assert_allclose(credit.sum(axis=1), expected, atol=1e-9)
    for row, way in zip(credit, (tree.explain(one).way for one in x[:50]), strict=True):
        assert set(np.flatnonzero(row)) <= {split.feature for split in way}


def test_explanation_and_picture_of_one_wine():
    x, y = load_wine(return_X_y=True)
    teacher = MLPClassifier((16,), random_state=0, max_iter=2000).fit((x - x.mean(0)) / x.std(0), y)
    scores = np.log(teacher.predict_proba((x - x.mean(0)) / x.std(0)) + 1e-6)
    tree = DistilledTree(3, random_state=0).fit(x, scores)
    why = tree.explain(x[0])
    names = load_wine().feature_names
    assert all((float(np.float32(x[0, split.feature])) > split.threshold) == split.above for split in why.way)
    assert why.said == tree.predict(x[:1])[0] == why.values.argmax()
    assert names[why.rule[0].feature] in why.words(names)
    root = ElementTree.fromstring(tree.picture(names, example=x[0]))
    assert sum(path.get("stroke") == "#d33" for path in root.iter(f"{SVG}path")) == len(why.way)


def test_jittered_digits_stay_in_their_place():
    images = torch.zeros(64, 1, 28, 28)
    images[:, :, 10:18, 10:18] = 1
    moved = jitter(images, torch.Generator().manual_seed(0))
    rows = torch.arange(28.0)
    centre = (moved.sum(dim=(1, 3)) * rows).sum(dim=1) / moved.sum(dim=(1, 2, 3))
    assert (centre - 13.5).abs().max() < 2.5  # two pixels and a little
    assert centre.std() > 0.5
    assert (moved.sum(dim=(1, 2, 3)) / 64 - 1).abs().max() < 0.3  # area: a tenth in each direction


def test_probe_says_how_often_the_tree_agrees():
    torch.manual_seed(0)
    model = mlp(6, 3, (16,)).eval()
    background, inputs = torch.randn(300, 6), torch.randn(8, 6)
    view = View(model, inputs, model(inputs).argmax(dim=1), None, background, None, "table", ("a", "b", "c"), tuple("uvwxyz"))
    seen = as_a_tree(view, depth=10)
    same = seen.each["tree says the network's class"]
    assert same.mean().item() == pytest.approx(seen.numbers["share of these examples of which the tree says the network's class"])
    assert seen.numbers["share of the examples that it was grown on"] > 0.9
    assert seen.attributions["credit along the tree's way"].shape == inputs.shape
    assert any(name in seen.notes[0] for name in "uvwxyz")
    with pytest.raises(AssayError, match="predicts a number"):
        as_a_tree(View(model, inputs, view.target, None, background, None, "table"))


@parametrize_with_checks([DistilledTree(random_state=0)])
def test_keeps_scikit_learns_contract(estimator, check):
    check(estimator)


def test_claims_measure_what_they_expect(home):
    lab = Lab(seed=0, scale="smoke")
    for claim in (paper.beats_the_tree_of_labels, paper.beats_it_on_a_table, paper.is_more_faithful, paper.with_more_rows):
        assert judge(claim.expect, {0: claim(lab)}).seeds == 1
