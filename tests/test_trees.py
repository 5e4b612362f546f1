"""Scikit-learn's trees in our form, conditions and pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.tree import DecisionTreeClassifier

from assay.trees import Split, cart, picture, shortest

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def grown():
    x, y = load_wine(return_X_y=True)
    return DecisionTreeClassifier(max_depth=4, random_state=0).fit(x, y), x


def holds(split: Split, row: np.ndarray) -> bool:
    return (float(np.float32(row[split.feature])) > split.threshold) == split.above


def test_every_row_meets_the_conditions_of_its_leaf_alone(grown):
    tree, x = grown
    ours = cart(tree.tree_)
    ways = ours.ways()
    for row, number in zip(x, tree.apply(x), strict=True):
        fits = [leaf for leaf, way in enumerate(ways) if all(holds(split, row) for split in way)]
        assert [ours.leaves[leaf] for leaf in fits] == [number]
        assert [leaf for leaf, way in enumerate(ways) if all(holds(split, row) for split in shortest(way))] == fits


def test_nodes_are_those_of_scikit_learns_path(grown):
    tree, x = grown
    ours = cart(tree.tree_)
    inner = np.flatnonzero(tree.tree_.children_left >= 0)
    for row, number in zip(x[:20], tree.apply(x[:20]), strict=True):
        leaf = int(np.flatnonzero(ours.leaves == number)[0])
        theirs = [node for node in tree.decision_path(row[None]).indices if node != number]
        assert inner[ours.nodes(leaf)].tolist() == theirs


def test_implied_conditions_are_left_out():
    way = [Split(0, 1.0, True), Split(1, 5.0, False), Split(0, 2.0, True), Split(1, 7.0, False), Split(0, 9.0, False)]
    assert {split.words(("a", "b")) for split in shortest(way)} == {"a > 2", "b <= 5", "a <= 9"}


def test_a_tree_of_one_leaf_has_one_empty_way():
    tree = DecisionTreeClassifier().fit(np.zeros((3, 1)), [1, 1, 1])
    assert cart(tree.tree_).ways() == [[]]
    assert "only" in picture(cart(tree.tree_).children, [], ["only"])


def test_what_a_test_compares_with_is_never_cut():
    name = "worst concave points of all of them"
    root = ElementTree.fromstring(picture(np.array([[~0, ~1]]), [f"{name} > 0.1424"], ["no", "yes"]))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "> 0.1424" in texts
    assert any((text or "").startswith("worst concave") for text in texts)
    assert all(len(text or "") <= 20 for text in texts)


def test_picture_marks_the_way_and_counts_what_is_cut():
    # a comb: node k has the leaf k on the left
    children = np.array([[~k, k + 1] for k in range(7)] + [[~7, ~8]])
    tests, leaves = [f"a<{k}" for k in range(8)], [f"leaf {k}" for k in range(9)]
    root = ElementTree.fromstring(picture(children, tests, leaves, levels=3))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "… 6 leaves" in texts
    assert "a<0" in texts
    assert not any(path.get("stroke") == "#d33" for path in root.iter(f"{SVG}path"))
    whole = ElementTree.fromstring(picture(children, tests, leaves, way=range(6), leaf=5, levels=3))
    assert sum(path.get("stroke") == "#d33" for path in whole.iter(f"{SVG}path")) == 6
    assert "leaf 5" in [text.text for text in whole.iter(f"{SVG}text")]
