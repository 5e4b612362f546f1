"""What models of prototypes share: distances, detections, starting points, the plane of some prototypes, what they cover.

squares = squared_distances(features, prototypes)   # (B, K), differentiable, no cancellation far from the origin
detected = rbf(features, prototypes, sigma)         # (B, K) in [0, 1]
prototypes = kmeans_centres(features, 20, seed=0)   # a start
cover(squares), support(squares)                    # is every example near a prototype; every prototype near an example?
"""

from __future__ import annotations

from typing import Literal

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from assay.errors import AssayError

# Added to a squared distance below a root: the root's slope is infinite where an example stands on a prototype.
_NEAR = 1e-12


def squared_distances(points: Tensor, prototypes: Tensor) -> Tensor:
    """Squared Euclidean distances, by one matrix product.

    |x|^2 + |p|^2 - 2 x.p loses every digit where points and prototypes lie close together and far from the origin. So both
    are moved first, the mean of the prototypes to the origin, which changes no distance. What rounding leaves below zero is 0.

    Args:
        points: (B, D).
        prototypes: (K, D).

    Returns:
        (B, K), differentiable in both.
    """
    origin = prototypes.detach().mean(dim=0)
    points, prototypes = points - origin, prototypes - origin
    squares = points.square().sum(dim=1, keepdim=True) + prototypes.square().sum(dim=1)
    return (squares - 2 * points @ prototypes.T).clamp_min(0)


def distances(points: Tensor, prototypes: Tensor) -> Tensor:
    """Euclidean distances (B, K) whose gradient is finite where a point stands on a prototype (at most 1e-6 too long)."""
    return (squared_distances(points, prototypes) + _NEAR).sqrt()


def rbf(points: Tensor, prototypes: Tensor, sigma: Tensor | float, power: Literal[1, 2] = 1) -> Tensor:
    """How plainly every prototype is detected in every point: exp(-(distance / sigma)^power), in [0, 1].

    Args:
        points: (B, D).
        prototypes: (K, D).
        sigma: the distance at which 1/e is left; a number, or (K,) one for each prototype.
        power: 1 for the exponential of the distance, whose logarithm moves by at most 1/sigma for every unit that a point
            moves, or 2 for the bell of Gauss.

    Returns:
        (B, K).
    """
    if power == 1:
        return (-distances(points, prototypes) / sigma).exp()
    return (-squared_distances(points, prototypes) / sigma**2).exp()


def kmeans_centres(points: Tensor, count: int, seed: int, labels: Tensor | None = None) -> Tensor:
    """Centres of k-means (scikit-learn's, one start by k-means++) as a start for prototypes.

    Args:
        points: (N, D).
        count: centres; with ``labels`` for every class.
        seed: of k-means++.
        labels: (N,) int64; k-means then runs in each class by itself, classes in their order.

    Returns:
        (count, D), or (classes * count, D) with labels, on the device of the points.

    Raises:
        AssayError: there are fewer points (of a class) than centres.
    """
    if labels is not None:
        return torch.cat([kmeans_centres(points[labels == label], count, seed) for label in labels.unique()])
    if len(points) < count:
        raise AssayError(f"{count} prototypes cannot start from {len(points)} examples; take fewer prototypes.")
    found = KMeans(count, n_init=1, random_state=seed).fit(points.detach().cpu().double().numpy())
    return torch.as_tensor(found.cluster_centers_).to(points)


def orthonormal_basis(prototypes: Tensor) -> Tensor:
    """Orthonormal directions of the plane through some prototypes: of the span of p_j - p_0.

    It is differentiable as long as the prototypes are in general position (their differences linearly independent).

    Args:
        prototypes: (K, D), two or more.

    Returns:
        (D, K - 1) with orthonormal columns; where D < K - 1, the identity (D, D), since they then span all there is.

    Raises:
        AssayError: a single prototype spans nothing.
    """
    count, width = prototypes.shape
    if count < 2:
        raise AssayError("One prototype spans no plane; give each concept two or more.")
    if width <= count - 1:
        return torch.eye(width).to(prototypes)
    basis: Tensor = torch.linalg.qr((prototypes[1:] - prototypes[0]).T).Q
    return basis


def onto_plane(points: Tensor, prototypes: Tensor, basis: Tensor) -> Tensor:
    """Points (B, D), each at the nearest place of the plane through the prototypes (K, D) with this basis (D, r)."""
    return prototypes[0] + (points - prototypes[0]) @ basis @ basis.T


def cover(squares: Tensor) -> Tensor:
    """Mean squared distance of a point to its nearest prototype: (B, K) -> scalar. Small: every example is near a prototype."""
    return squares.amin(dim=1).mean()


def support(squares: Tensor) -> Tensor:
    """Mean squared distance of a prototype to the nearest point: (B, K) -> scalar. Small: every prototype is like an example."""
    return squares.amin(dim=0).mean()


def diversity(prototypes: Tensor) -> Tensor:
    """Mean distance of a prototype to the nearest other one, (K, D) -> scalar; 0 where every prototype stands twice."""
    squares = squared_distances(prototypes, prototypes)
    itself = torch.eye(len(prototypes), dtype=torch.bool, device=prototypes.device)
    return squares.masked_fill(itself, torch.inf).amin(dim=1).sqrt().mean()
