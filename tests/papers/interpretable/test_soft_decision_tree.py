"""The soft decision tree against a recursive one, closed forms, the hard limit, and scikit-learn's contract."""

from __future__ import annotations

import base64
import math
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.nn import functional as F

from assay.lab import Lab
from assay.lab.verdict import judge
from assay.papers.interpretable import soft_decision_tree as paper
from assay.papers.interpretable.soft_decision_tree import BalancePenalty, SoftDecisionTree, SoftTree, smooth_labels

SVG = "{http://www.w3.org/2000/svg}"


def random_tree(depth: int = 4, beta: float = 1.0, num_classes: int = 3) -> SoftTree:
    torch.manual_seed(0)
    tree = SoftTree(5, num_classes, depth, beta).double()
    torch.nn.init.normal_(tree.filters.weight)
    torch.nn.init.normal_(tree.filters.bias)
    torch.nn.init.normal_(tree.leaves)
    return tree


def batch(size: int = 7) -> torch.Tensor:
    return torch.randn(size, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def descend(tree: SoftTree, x: torch.Tensor, node: int = 0, reach: float = 1.0) -> dict[int, float]:
    """Node -> probability of coming by it, one node and one example at a time."""
    here = {node: reach}
    if node < 2**tree.depth - 1:
        z = tree.beta * (x @ tree.filters.weight[node] + tree.filters.bias[node])
        right = 1 / (1 + math.exp(-z.item()))
        here |= descend(tree, x, 2 * node + 1, reach * (1 - right))
        here |= descend(tree, x, 2 * node + 2, reach * right)
    return here


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_visits_are_those_of_a_recursive_tree(beta):
    tree, x = random_tree(beta=beta), batch()
    visits = tree.visits(x)
    for row, example in zip(visits, x, strict=True):
        expected = descend(tree, example)
        assert row.tolist() == pytest.approx([expected[node] for node in range(31)], rel=1e-9)


def test_every_level_sums_to_one():
    visits = random_tree(depth=6).visits(batch())
    for level in range(7):
        torch.testing.assert_close(visits[:, 2**level - 1 : 2 ** (level + 1) - 1].sum(dim=1), torch.ones(7).double())


def test_forward_is_the_logarithm_of_the_leaves_mixture():
    tree, x = random_tree(), batch()
    leaves = tree.visits(x)[:, 15:]
    mixture = sum(leaves[:, leaf, None] * tree.leaves[leaf].softmax(dim=0) for leaf in range(16))
    torch.testing.assert_close(tree(x).exp(), mixture)
    torch.testing.assert_close(tree(x).exp().sum(dim=1), torch.ones(7).double())
    torch.testing.assert_close(tree(x.view(7, 5, 1)), tree(x))


def test_great_beta_makes_a_hard_oblique_tree():
    tree, x = random_tree(beta=1e6), batch(40)
    for row, example in zip(tree.visits(x)[:, 15:], x, strict=True):
        node = 0
        while node < 15:
            goes_right = (example @ tree.filters.weight[node] + tree.filters.bias[node]).item() > 0
            node = 2 * node + (2 if goes_right else 1)
        assert row.argmax().item() == node - 15
        assert row.max().item() == pytest.approx(1)


def test_depth_one_is_a_mixture_of_two_constants():
    tree, x = random_tree(depth=1, num_classes=2), batch()
    right = torch.sigmoid(x @ tree.filters.weight[0] + tree.filters.bias[0])
    first, second = tree.leaves.softmax(dim=1)
    torch.testing.assert_close(tree(x).exp(), torch.outer(1 - right, first) + torch.outer(right, second))


def test_loss_is_the_mean_cross_entropy_of_the_leaves():
    tree, x = random_tree(), batch()
    targets = torch.rand(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    targets /= targets.sum(dim=1, keepdim=True)
    visits = tree.visits(x)
    by_hand = 0.0
    for n in range(7):
        for leaf in range(16):
            by_hand -= (visits[n, 15 + leaf] * (targets[n] * tree.leaves[leaf].log_softmax(dim=0)).sum()).item() / 7
    assert tree.loss(visits, targets).item() == pytest.approx(by_hand)
    entropy = torch.special.entr(targets).sum(dim=1).mean().item()
    assert tree.loss(visits, targets).item() > entropy
    with torch.no_grad():  # leaves that all give the target reach the entropy and no less
        tree.leaves.copy_(targets[:1].log().expand(16, 3))
    assert tree.loss(visits, targets[:1].expand(7, 3)).item() == pytest.approx(torch.special.entr(targets[0]).sum().item())


def test_penalty_is_least_where_every_node_is_balanced():
    balanced = torch.cat([torch.full((4, 2**level), 0.5**level) for level in range(4)], dim=1)
    weights = sum(0.1 * 0.5**level * 2**level for level in range(3))  # lambda of a level times its nodes
    assert BalancePenalty(3).forward(balanced).item() == pytest.approx(weights * math.log(2), rel=1e-5)
    tree = random_tree(depth=3)
    assert BalancePenalty(3).double()(tree.visits(batch())).item() > weights * math.log(2)


def test_penalty_of_one_batch_is_the_papers_formula():
    tree, x = random_tree(depth=3), batch()
    right = torch.sigmoid(x @ tree.filters.weight.T + tree.filters.bias)  # (B, 7) p_i
    visits = tree.visits(x)
    alpha = (visits[:, :7] * right).sum(dim=0) / visits[:, :7].sum(dim=0)
    weights = 0.2 * torch.tensor([1, 0.3, 0.3, 0.09, 0.09, 0.09, 0.09]).double()
    expected = -(weights * 0.5 * (alpha.log() + (1 - alpha).log())).sum()
    actual = BalancePenalty(3, weight=0.2, decay=0.3, window=1).double()(visits)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    wanted = torch.autograd.grad(expected, tree.filters.weight, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(actual, tree.filters.weight)[0], wanted, rtol=1e-6, atol=1e-9)


def test_penaltys_window_doubles_with_depth():
    penalty = BalancePenalty(2, weight=1.0, decay=1.0)
    # (root, two children, four leaves), each batch going one way or the other at depth 1
    one_way = torch.tensor([[1.0, 0.4, 0.6, 0.4, 0.0, 0.6, 0.0]])
    other = torch.tensor([[1.0, 0.7, 0.3, 0.0, 0.7, 0.0, 0.3]])
    for _ in range(50):
        penalty(one_way)
    penalty(other)
    value = penalty(one_way).item()
    # the root knows the last batch only; at depth 1 the weights are 1/2, 1/4 and 1/4 for all before
    root = -0.5 * (math.log(0.4) + math.log(0.6))
    left, right = 0.175 / (0.75 * 0.4 + 0.175), 0.075 / (0.75 * 0.6 + 0.075)  # shares of the one batch that went right
    below = sum(-0.5 * (math.log(alpha) + math.log(1 - alpha)) for alpha in (left, right))
    assert value == pytest.approx(root + below, rel=1e-5)


def test_penalty_survives_nodes_that_nobody_reaches():
    visits = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]], requires_grad=True)
    value = BalancePenalty(2)(visits)
    value.backward()
    assert math.isfinite(value.item())
    assert bool(visits.grad.isfinite().all())


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    return x[:1200], y[:1200], x[1200:], y[1200:]


@pytest.fixture(scope="module")
def grown(digits):
    return SoftDecisionTree(depth=5, epochs=25, learning_rate=0.02, random_state=0).fit(digits[0], digits[1])


def test_learns_to_read_digits(digits, grown):
    assert grown.score(digits[2], digits[3]) > 0.8
    assert (grown.predict(digits[2], mode="mixture") == digits[3]).mean() > 0.8
    assert grown.loss_curve_[-1] < 0.5 < grown.loss_curve_[0]


def test_same_seed_same_tree(digits, grown):
    again = clone(grown).fit(digits[0], digits[1])
    assert np.array_equal(again.predict_proba(digits[2]), grown.predict_proba(digits[2]))
    other = clone(grown).set_params(random_state=1, epochs=1).fit(digits[0], digits[1])
    assert not np.array_equal(other.usage_, grown.usage_)


def test_one_hot_targets_grow_the_tree_of_the_labels(digits, grown):
    soft = clone(grown).fit(digits[0], np.eye(10)[digits[1]])
    assert np.array_equal(soft.predict(digits[2]), grown.predict(digits[2]))


def test_soft_targets_are_learned_as_they_are():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    targets = np.where(x[:, :1] > 0, [[0.7, 0.2, 0.1]], [[0.1, 0.3, 0.6]])
    tree = SoftDecisionTree(depth=1, epochs=150, learning_rate=0.05, penalty=0.0, random_state=0).fit(x, targets)
    assert tree.classes_.tolist() == [0, 1, 2]
    proba = tree.predict_proba(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert np.abs(proba - [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]).max() < 0.05
    with pytest.raises(ValueError, match="sum to 1"):
        tree.fit(x, 2 * targets)


def test_path_leads_to_the_leaf_that_answers(digits, grown):
    for x in digits[2][:20]:
        path = grown.path(x)
        assert len(path) == 5
        node, reach = 0, 1.0
        for step in path:
            assert step.node == node
            by_hand = 1 / (1 + math.exp(-(step.filter @ x + grown.tree_.filters.bias[node].item())))
            assert step.right == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
            reach *= step.right if step.taken == "right" else 1 - step.right
            node = 2 * node + (2 if step.taken == "right" else 1)
        leaves = grown._visits(x[None])[0, 31:]
        assert leaves.argmax() == node - 31
        assert reach == pytest.approx(leaves.max(), rel=1e-3)
        assert np.array_equal(grown.predict_proba(x[None])[0], grown.leaves_[node - 31])


def test_modes_differ_and_both_are_distributions(digits, grown):
    path, mixture = grown.predict_proba(digits[2]), grown.predict_proba(digits[2], mode="mixture")
    assert not np.allclose(path, mixture)
    assert np.allclose(path.sum(axis=1), 1, atol=1e-5)
    assert np.allclose(mixture.sum(axis=1), 1, atol=1e-5)
    log_mixture = grown.tree_(torch.as_tensor(digits[2])).detach().exp().numpy()
    assert np.allclose(mixture, log_mixture, atol=1e-5)


def test_picture_shows_the_filters_and_the_path(digits, grown):
    root = ElementTree.fromstring(grown.picture(shape=(8, 8), levels=3, example=digits[2][0]))
    images = root.findall(f"{SVG}image")
    assert len(images) == 7
    png = base64.b64decode(images[0].get("href").removeprefix("data:image/png;base64,"))
    start = png.index(b"IDAT")
    rows = np.frombuffer(zlib.decompress(png[start + 4 :]), np.uint8).reshape(8, 9)[:, 1:]
    weight = grown.tree_.filters.weight[0].detach().numpy().reshape(8, 8)
    assert np.corrcoef(rows.ravel(), weight.ravel())[0, 1] > 0.999
    paths = root.findall(f"{SVG}path")
    assert len(paths) == 14
    assert sum(path.get("stroke") == "#d33" for path in paths) == 3
    assert len(root.findall(f"{SVG}text")) == 8
    strips = ElementTree.fromstring(grown.picture())
    assert len(strips.findall(f"{SVG}image")) == 15


def test_labels_in_a_picture_are_escaped():
    x = np.array([[0.0], [1.0]] * 20)
    tree = SoftDecisionTree(depth=1, epochs=60, learning_rate=0.1, random_state=0).fit(x, np.array(["a<b", "c&d"] * 20))
    texts = [text.text for text in ElementTree.fromstring(tree.picture()).iter(f"{SVG}tspan")]
    assert sorted(texts) == ["a<b", "c&d"]


def test_long_names_stay_in_the_room_of_their_leaf():
    x = np.array([[0.0], [1.0]] * 20)
    tree = SoftDecisionTree(depth=1, epochs=60, learning_rate=0.1, random_state=0).fit(x, np.array(["malignant", "benign"] * 20))
    root = ElementTree.fromstring(tree.picture())
    assert sorted(text.text for text in root.iter(f"{SVG}tspan")) == ["benign", "malign…"]
    assert sorted(text.find(f"{SVG}title").text for text in root.iter(f"{SVG}text")) == ["benign", "malignant"]


@parametrize_with_checks([SoftDecisionTree(depth=2, epochs=20, learning_rate=0.1, random_state=0)])
def test_keeps_scikit_learns_contract(estimator, check):
    check(estimator)


def test_smoothed_labels_have_the_entropy_asked_for():
    labels = torch.tensor([0, 3, 9])
    smoothed = smooth_labels(labels, 10, entropy=0.3)
    torch.testing.assert_close(torch.special.entr(smoothed).sum(dim=1), torch.full((3,), 0.3), atol=1e-4, rtol=0)
    assert smoothed.argmax(dim=1).tolist() == labels.tolist()
    torch.testing.assert_close(smooth_labels(labels, 10, entropy=1e-9), F.one_hot(labels, 10).float(), atol=1e-6, rtol=0)


def test_claims_measure_what_they_expect(home):
    lab = Lab(seed=0, scale="smoke")
    claims = (paper.soft_targets_help, paper.network_labels_the_rest, paper.balance_penalty_needed, paper.balance_penalty_spreads)
    for claim in claims:
        assert judge(claim.expect, {0: claim(lab)}).seeds == 1
