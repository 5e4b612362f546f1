"""Neural collapse against closed forms, scipy's generalised eigenvalues, and what must not change it."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from assay.nn import lenet, mlp
from assay.nn.collapse import centred_cosines, class_means, last_layer, neural_collapse


def simplex(classes: int, dim: int, seed: int = 0) -> torch.Tensor:
    """(classes, dim): the corners of a simplex around 0, turned at random."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dim, classes, generator=generator, dtype=torch.float64))[0]  # (dim, classes)
    return (turn @ (torch.eye(classes, dtype=torch.float64) - 1 / classes)).T


def clouds(seed: int = 0, counts: tuple[int, ...] = (30, 5, 60, 12), dim: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    means = torch.randn(len(counts), dim, generator=generator, dtype=torch.float64)
    return means[labels] + 0.5 * torch.randn(len(labels), dim, generator=generator, dtype=torch.float64), labels


@pytest.mark.parametrize(("classes", "dim"), [(2, 3), (4, 4), (10, 64)])
def test_a_collapsed_network_has_zeros_and_the_angle_of_a_simplex(classes: int, dim: int) -> None:
    corners = simplex(classes, dim)
    labels = torch.arange(classes).repeat(3)
    found = neural_collapse(
        5 * corners[labels] + 3.0, labels, weight=2 * corners, bias=-2 * corners @ torch.full((dim,), 3.0).double()
    )
    for number in (found.nc1, found.nc2, found.nc3, found.nc4, found.spread):
        assert number == pytest.approx(0, abs=1e-12)
    assert found.smallest_angle == pytest.approx(math.degrees(math.acos(-1 / (classes - 1))))


def test_nc1_equals_the_sum_of_generalised_eigenvalues() -> None:
    """With F = K - 1 dimensions S_B can be inverted, and tr(S_W S_B^-1) is the sum of the solutions of S_W v = l S_B v."""
    features, labels = clouds(dim=3)
    means = class_means(features, labels, 4)
    apart = (means - means.mean(0)).T.numpy()
    between = apart @ apart.T / 4
    within = np.mean([np.cov(features[labels == k].numpy().T, ddof=0) for k in range(4)], axis=0)
    wanted = scipy.linalg.eigh(within, between, eigvals_only=True).sum() / 4
    assert neural_collapse(features, labels).nc1 == pytest.approx(wanted)


def test_nc1_equals_the_trace_with_a_pseudo_inverse() -> None:
    features, labels = clouds(dim=40)
    means = class_means(features, labels, 4)
    apart = (means - means.mean(0)).T
    within = torch.stack([torch.cov(features[labels == k].T, correction=0) for k in range(4)]).mean(0)
    wanted = torch.trace(within @ torch.linalg.pinv(apart @ apart.T / 4, rtol=1e-10)) / 4
    assert neural_collapse(features, labels).nc1 == pytest.approx(wanted.item())


def test_turning_moving_and_scaling_change_nothing_and_the_order_neither() -> None:
    features, labels = clouds()
    turn = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))[0]
    first, second = neural_collapse(features, labels), neural_collapse(3 * features @ turn + 1, labels)
    order = torch.randperm(len(labels))
    third = neural_collapse(features[order], labels[order])
    for other in (second, third):
        assert (other.nc1, other.nc2) == pytest.approx((first.nc1, first.nc2))
        assert (other.smallest_angle, other.spread) == pytest.approx((first.smallest_angle, first.spread))


def test_a_class_counts_once_however_many_examples_it_has() -> None:
    features, labels = clouds()
    often = torch.cat([torch.arange(len(labels)), *[(labels == 2).nonzero().flatten()] * 9])
    first, second = neural_collapse(features, labels), neural_collapse(features[often], labels[often])
    assert (second.nc1, second.nc2, second.smallest_angle) == pytest.approx((first.nc1, first.nc2, first.smallest_angle))


def test_classes_without_examples_are_left_out_and_one_class_is_refused() -> None:
    features, labels = clouds()
    weight = torch.randn(8, 7, dtype=torch.float64)
    first, second = neural_collapse(features, labels), neural_collapse(features, 2 * labels, weight)
    assert second.nc2 == pytest.approx(first.nc2)
    assert math.isnan(first.nc3)
    assert second.nc3 == pytest.approx(neural_collapse(features, labels, weight[::2]).nc3)
    with pytest.raises(ValueError, match="several classes"):
        neural_collapse(features, torch.zeros_like(labels))


def test_nc4_counts_where_the_network_and_the_nearest_mean_differ() -> None:
    features = torch.tensor([[0.0, 0], [0, 0], [4, 0], [4, 0]])
    weight = torch.tensor([[0.0, 0], [1, 0]])  # says 1 wherever the first number is above 3 or 5
    labels = torch.tensor([0, 0, 1, 1])
    assert neural_collapse(features, labels, weight, torch.tensor([0.0, -3])).nc4 == 0
    assert neural_collapse(features, labels, weight, torch.tensor([0.0, -5])).nc4 == 0.5


def test_cosines_of_a_simplex_are_equal() -> None:
    cosines = centred_cosines(simplex(5, 9) + 2)
    off = cosines[~torch.eye(5, dtype=torch.bool)]
    torch.testing.assert_close(off, torch.full((20,), -0.25, dtype=torch.float64))


@pytest.mark.parametrize("make", [partial(lenet, 1, 3, 8), partial(mlp, 64, 3, (5,))])
def test_last_layer_repeats_the_network(make: partial[nn.Module]) -> None:
    model, images = make().train(), torch.randn(9, 1, 8, 8)
    seen = last_layer(model, images, chunk=4)
    assert model.training
    torch.testing.assert_close(seen.features @ seen.weight.T + seen.bias, model.eval()(images))
    with pytest.raises(ValueError, match="no linear layer"):
        last_layer(nn.Conv2d(1, 1, 1), images)
