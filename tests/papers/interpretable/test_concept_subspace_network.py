"""Concept planes: projections, divergence and tree against other people's code and closed forms, invariances, fairness."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from assay.data import load
from assay.lab import Lab
from assay.lab.verdict import judge
from assay.nn.prototypes import orthonormal_basis
from assay.papers.interpretable import concept_subspace_network as paper
from assay.papers.interpretable.concept_subspace_network import (
    ConceptPlanes,
    ConceptSubspaceNetwork,
    alignment,
    containment,
    demographic_disparity,
    divergence,
    shortest_tree,
    without_column,
)

networkx = pytest.importorskip("networkx")


def test_alignment_of_known_planes():
    axes = torch.eye(4)
    assert alignment(axes[:, :2], axes[:, 2:]).item() == 0
    assert alignment(axes[:, :1], axes[:, :1]).item() == 1
    turned = torch.tensor([[math.cos(0.3), math.sin(0.3), 0, 0]]).T
    assert alignment(axes[:, :1], turned).item() == pytest.approx(math.cos(0.3) ** 2)
    assert containment(axes[:, :2], turned).item() == pytest.approx(1)
    assert containment(axes[:, :3], axes[:, 2:]).item() == pytest.approx(0.5)
    spun = torch.linalg.qr(torch.randn(2, 2)).Q  # another basis of the same plane
    assert containment(axes[:, :2] @ spun, turned).item() == pytest.approx(1, abs=1e-6)


def test_what_a_concept_says_does_not_change_off_its_plane():
    torch.manual_seed(0)
    net = ConceptPlanes(6, (3, 2), latent=5).double()
    z = torch.randn(7, 5).double()
    basis = orthonormal_basis(net.prototypes[0])
    step = torch.randn(7, 5).double()
    off = step - step @ basis @ basis.T
    assert not torch.allclose(net.squares(z, 1), net.squares(z + off, 1))
    torch.testing.assert_close(net.squares(z, 0), net.squares(z + off, 0))
    full = net.squares(z, 0, in_plane=False)
    torch.testing.assert_close(full, torch.cdist(z, net.prototypes[0]).square())
    # Pythagoras: what is off the plane is the same for all prototypes
    torch.testing.assert_close((full - net.squares(z, 0)).std(dim=1), torch.zeros(7).double())


def test_divergence_is_that_of_gaussians():
    torch.manual_seed(0)
    mean, spread = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    prototypes = torch.tensor([[0.0, 0, 0, 0], [30.0, 0, 0, 0], [0, 30.0, 0, 0]]).double()
    theirs = kl_divergence(Normal(mean, (spread / 2).exp()), Normal(0.0, 1.0))
    # whole space: around the nearest prototype, the origin
    torch.testing.assert_close(divergence(mean, spread, prototypes, in_plane=False), theirs.mean())
    # off the plane of the first two axes: there the mean counts as 0
    flat = mean.clone()
    flat[:, :2] = 0
    expected = kl_divergence(Normal(flat, (spread / 2).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(divergence(mean, spread, prototypes), expected)


def test_shortest_tree_is_networkxs():
    points = np.random.default_rng(0).normal(size=(9, 3))
    names = [f"p{i}" for i in range(9)]
    graph = networkx.Graph()
    for i in range(9):
        for j in range(i):
            graph.add_edge(names[i], names[j], weight=np.linalg.norm(points[i] - points[j]))
    theirs = sorted(tuple(sorted(edge)) for edge in networkx.minimum_spanning_tree(graph).edges)
    assert shortest_tree(names, points) == theirs


def test_demographic_disparity_is_fairlearns():
    rng = np.random.default_rng(0)
    said, group = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    metrics = pytest.importorskip("fairlearn.metrics", reason="fairlearn is compared with where it is installed")
    theirs = metrics.demographic_parity_difference(said, said, sensitive_features=group)
    assert demographic_disparity(torch.as_tensor(said), torch.as_tensor(group)).item() == pytest.approx(theirs)


def test_demographic_disparity_by_hand():
    said, group = torch.tensor([1, 1, 0, 1, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert demographic_disparity(said, group).item() == pytest.approx(1 / 3)
    assert demographic_disparity(said, 1 - group).item() == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def two():
    """Two concepts that depend on each other: the second agrees with the first in four of five examples."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 2, 800)
    second = np.where(rng.random(800) < 0.8, first, 1 - first)
    x = rng.normal(size=(800, 6)).astype(np.float32)
    x[:, 0] += 3 * first
    x[:, 1] += 3 * second
    return x, np.array(["no", "yes"])[first], second


def test_the_knob_makes_planes_orthogonal_or_parallel(two):
    x, first, second = two
    y = {"first": first, "second": second}
    angles = {}
    for weight in (1000.0, 0.0, -3.0):
        align = {("first", "second"): weight} if weight else None
        net = ConceptSubspaceNetwork(latent=3, align=align, epochs=12, random_state=0).fit(x, y)
        angles[weight] = net.alignment_matrix()[0, 1]
        if weight >= 0:
            assert net.score(x, y) > 0.75
    assert angles[1000.0] < 0.01 < angles[0.0] < angles[-3.0]
    assert angles[-3.0] > 0.9


def test_a_wide_start_trains_under_a_heavy_knob(two):
    x, first, second = two
    y = {"first": first, "second": second}

    def fitted(start):
        align = {("first", "second"): 1000.0}
        return ConceptSubspaceNetwork(latent=2, align=align, kl=0.05, start=start, epochs=12, random_state=0).fit(x, y)

    # The seven steps of a pass, twelve times: prototypes that started close stay where Adam froze them.
    close, wide = fitted(0.05), fitted(2.0)
    assert max(np.abs(part).max() for part in close.prototypes_.values()) < 0.2
    assert wide.score(x, y) > close.score(x, y)
    assert wide.score(x, y) > 0.75


def test_explains_and_draws(two):
    x, first, second = two
    net = ConceptSubspaceNetwork(latent=3, kl=0.05, epochs=4, random_state=0).fit(x, {"a<b": first, "second": second})
    answers = net.explain(x[0])
    for name, answer in answers.items():
        shares = net.predict_proba(x[:1], name)[0]
        assert answer.value == net.predict(x[:1], name)[0]
        assert answer.probability == pytest.approx(shares.max(), rel=1e-5)
        far = np.array(list(answer.distances.values()))
        assert np.allclose(np.exp(-(far**2)) / np.exp(-(far**2)).sum(), shares, atol=1e-5)
    root = ElementTree.fromstring(net.picture(x[0]))
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 4
    assert len(net.tree()) == 4
    again = ConceptSubspaceNetwork(latent=3, kl=0.05, epochs=4, random_state=0).fit(x, {"a<b": first, "second": second})
    assert np.array_equal(again.encode(x), net.encode(x))


def test_a_hierarchy_multiplies_probabilities():
    rng = np.random.default_rng(1)
    fine = rng.integers(0, 4, 400)
    x = rng.normal(size=(400, 4)).astype(np.float32) + 3 * np.eye(4)[fine]
    y = {"coarse": fine // 2, "fine": fine}
    # From a start closer than that sixty steps end anywhere between 0.6 and 0.7, as rounding will have it; from here at 0.9.
    settings = {"in_plane": False, "hierarchy": ("coarse", "fine"), "decode": 1.0, "start": 1.0}
    net = ConceptSubspaceNetwork(latent=8, **settings, epochs=15, random_state=0)
    net.fit(x, y)
    assert net.parents_.tolist() == [0, 0, 1, 1]
    shares, above = net.predict_proba(x, "fine"), net.predict_proba(x, "coarse")
    assert np.allclose(shares[:, :2].sum(axis=1), above[:, 0], atol=1e-5)
    assert (net.predict(x, "fine") == fine).mean() > 0.8
    with pytest.raises(ValueError, match="no hierarchy"):
        net.fit(x, {"coarse": rng.integers(0, 2, 400), "fine": fine})
    with pytest.raises(ValueError, match="no labels for the concept 'coarse'"):
        net.fit(x, {"fine": fine})
    with pytest.raises(ValueError, match="needs 400 labels"):
        ConceptSubspaceNetwork().fit(x, {"fine": fine[:10]})


def test_examples_need_not_be_near_every_concepts_prototypes(two):
    x, first, second = two
    y = {"first": first, "second": second}

    def fitted(near):
        return ConceptSubspaceNetwork(latent=3, near=near, epochs=6, random_state=0).fit(x, y)

    def off(net, concept):
        squares = net.net_.squares(torch.as_tensor(net.encode(x, noise=0)), net.concepts_.index(concept))
        return squares.amin(dim=1).mean().item()

    one, parts, loose = fitted(1.0), fitted({"first": 1.0}), fitted({"first": 0.0})
    assert np.array_equal(one.encode(x), parts.encode(x))  # a concept that is not named has weight 1
    assert off(loose, "first") > 2 * off(one, "first")
    with pytest.raises(ValueError, match="no labels for the concept 'third'"):
        fitted({"third": 0.0})


def test_a_protected_column_goes_with_all_its_values():
    from assay.data import Dataset, Split

    inputs = torch.tensor([[1.0, 1, 0, 5], [2.0, 0, 1, 6], [3.0, 1, 0, 7]])
    split = Split(inputs, torch.tensor([0, 1, 0]))
    features = ("age", "sex = Female", "sex = Male", "hours")
    data = Dataset("people", "classification", split, split.take(torch.arange(0)), split, ("a", "b"), features=features)
    rest, values = without_column(data, "sex = Female")
    assert rest.features == ("age", "hours")
    assert rest.train.inputs.tolist() == [[1, 5], [2, 6], [3, 7]]
    assert values["test"].tolist() == [1, 0, 1]
    assert rest.fingerprint != data.fingerprint


def test_claims_measure_what_they_expect(home):
    import os

    lab = Lab(seed=0, scale="smoke")
    claims = [paper.prototypes_show_the_hierarchy, paper.errors_stay_in_the_group, paper.planes_show_dependence]
    if os.environ.get("ASSAY_MIRROR"):
        load("adult")
        claims += [paper.orthogonal_is_fair, paper.orthogonal_is_accurate, paper.orthogonal_hides_sex]
    for claim in claims:
        assert judge(claim.expect, {0: claim(lab)}).seeds == 1
