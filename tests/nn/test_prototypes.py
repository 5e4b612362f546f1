"""Distances against SciPy, rounding far from the origin, planes by their definition, k-means by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel

from assay.errors import AssayError
from assay.nn.prototypes import (
    cover,
    distances,
    diversity,
    kmeans_centres,
    onto_plane,
    orthonormal_basis,
    rbf,
    squared_distances,
    support,
)


def points(count: int, width: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_distances_are_scipys():
    x, p = points(7), points(4, seed=1)
    expected = cdist(x.numpy(), p.numpy())
    assert np.allclose(squared_distances(x, p), expected**2, rtol=1e-12)
    assert np.allclose(distances(x, p), expected, rtol=1e-9)
    assert np.allclose(rbf(x, p, 0.7), np.exp(-expected / 0.7))
    assert np.allclose(rbf(x, p, 0.7, power=2), rbf_kernel(x.numpy(), p.numpy(), gamma=1 / 0.49))
    each = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    assert np.allclose(rbf(x, p, each), np.exp(-expected / each.numpy()))


def test_far_from_the_origin_no_digits_are_lost():
    x, p = points(6).float(), points(3, seed=1).float()
    far = 1000.0 * torch.ones(5)
    moved = squared_distances(x + far, p + far)
    assert torch.allclose(moved, squared_distances(x, p), rtol=1e-3)
    plain = (x + far).square().sum(1, keepdim=True) + (p + far).square().sum(1) - 2 * (x + far) @ (p + far).T
    assert not torch.allclose(plain, squared_distances(x, p), rtol=1e-1)  # what is guarded against


def test_gradients_are_right_and_finite_on_a_prototype():
    x, p = points(3).requires_grad_(), points(2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(squared_distances, (x, p))
    assert torch.autograd.gradcheck(distances, (x, p))
    here = points(1).requires_grad_()
    (gradient,) = torch.autograd.grad(distances(here, here.detach()).sum(), here)
    assert bool(gradient.isfinite().all())


def test_k_means_starts_in_the_clusters():
    true = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    labels = torch.arange(4).repeat(25)
    x = true[labels] + 0.1 * points(100, 2).float()
    found = kmeans_centres(x, 4, seed=0)
    assert squared_distances(true, found).amin(dim=1).max() < 0.01
    each = kmeans_centres(x, 1, seed=0, labels=labels)
    assert torch.allclose(each, torch.stack([x[labels == k].mean(dim=0) for k in range(4)]), atol=1e-5)
    with pytest.raises(AssayError, match="take fewer prototypes"):
        kmeans_centres(x[:3], 4, seed=0)


def test_a_basis_spans_the_differences_and_no_more():
    p = points(4, 6)
    basis = orthonormal_basis(p)
    assert basis.shape == (6, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3, dtype=torch.float64))
    differences = p[1:] - p[0]
    torch.testing.assert_close(differences @ basis @ basis.T, differences)
    x = points(9, 6, seed=2)
    there = onto_plane(x, p, basis)
    torch.testing.assert_close(onto_plane(there, p, basis), there)
    torch.testing.assert_close(((x - there) @ basis), torch.zeros(9, 3, dtype=torch.float64))
    torch.testing.assert_close(onto_plane(p, p, basis), p)
    assert orthonormal_basis(points(5, 3)).equal(torch.eye(3, dtype=torch.float64))
    with pytest.raises(AssayError, match="spans no plane"):
        orthonormal_basis(points(1))


def test_cover_and_support_by_hand():
    x, p = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [7.0]])
    squares = squared_distances(x, p)
    assert cover(squares).item() == pytest.approx((0 + 1 + 4) / 3)
    assert support(squares).item() == pytest.approx((0 + 4) / 2)
    assert diversity(torch.tensor([[0.0], [1.0], [4.0]])).item() == pytest.approx((1 + 1 + 3) / 3)
    assert diversity(p.repeat(2, 1)).item() == 0
