"""Neighbour consistency against two loops by hand, its limits, and its claims at smoke scale."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from assay.data import Dataset
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.papers.labels.ncr import (
    NeighborConsistencyLoss,
    harmless_on_clean_labels,
    ncr,
    neighbour_targets,
    neighbours_make_the_difference,
    resists_wrong_labels,
)
from assay.recipe import Recipe
from assay.train.loop import fit


def batch(size: int = 12, classes: int = 4, width: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, classes, generator=generator, dtype=torch.float64)
    features = torch.randn(size, width, generator=generator, dtype=torch.float64)
    return logits, features, torch.randint(classes, (size,), generator=generator)


def by_hand(logits: np.ndarray, features: np.ndarray, k: int, temperature: float, gamma: float) -> np.ndarray:
    """Equation 4 in two loops, without torch."""
    probs = np.exp(logits / temperature)
    probs /= probs.sum(axis=1, keepdims=True)
    targets = np.zeros_like(probs)
    for i in range(len(logits)):
        similar = []
        for j in range(len(logits)):
            if j != i:
                cosine = features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j])
                similar.append((max(cosine, 1e-8), j))
        nearest = sorted(similar, reverse=True)[:k]
        weights = np.array([s**gamma for s, _ in nearest])
        targets[i] = (weights / weights.sum()) @ probs[[j for _, j in nearest]]
    return targets


@pytest.mark.parametrize(("k", "temperature", "gamma"), [(1, 1.0, 1.0), (3, 2.0, 1.0), (4, 2.0, 3.0)])
def test_agrees_with_two_loops(k: int, temperature: float, gamma: float) -> None:
    logits, features, labels = batch()
    expected = by_hand(logits.numpy(), features.numpy(), k, temperature, gamma)
    found = neighbour_targets(logits, features, k, temperature, gamma)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)
    torch.testing.assert_close(found.sum(1), torch.ones(12, dtype=torch.float64))
    own = (logits / temperature).softmax(1).numpy()
    divergence = (expected * np.log(expected / own)).sum(axis=1).mean()
    loss = NeighborConsistencyLoss(k, temperature, weight=0.7, gamma=gamma, start_epoch=2)
    whole = 0.3 * F.cross_entropy(logits, labels).item() + 0.7 * temperature**2 * divergence
    assert loss(logits, labels, features, 2).item() == pytest.approx(whole, abs=1e-7)


def test_equal_features_give_the_mean_of_all_others() -> None:
    logits, _, _ = batch()
    found = neighbour_targets(logits, torch.ones(12, 6, dtype=torch.float64), k=11, temperature=1.0)
    probs = logits.softmax(1)
    torch.testing.assert_close(found, (probs.sum(0) - probs) / 11)
    torch.testing.assert_close(neighbour_targets(logits, torch.zeros(12, 6, dtype=torch.float64), k=50, temperature=1.0), found)


def test_equal_predictions_have_no_divergence_and_no_gradient() -> None:
    _, features, labels = batch()
    logits = torch.tensor([[2.0, 0.5, -1.0, 0.0]], dtype=torch.float64).repeat(12, 1).requires_grad_()
    loss = NeighborConsistencyLoss(k=3, weight=1.0, start_epoch=0)(logits, labels, features, 0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max().item() < 1e-12


def test_gradients_flow_through_neighbours_unless_stopped() -> None:
    logits, features, labels = batch()
    logits.requires_grad_(), features.requires_grad_()
    found = [
        torch.autograd.grad(
            NeighborConsistencyLoss(3, weight=1.0, start_epoch=0, detach_neighbours=stop)(logits, labels, features, 0),
            (logits, features),
            allow_unused=True,
        )
        for stop in (False, True)
    ]
    assert not torch.allclose(found[0][0], found[1][0])
    assert found[0][1] is not None
    assert found[1][1] is None
    assert torch.autograd.gradcheck(
        lambda z, v: NeighborConsistencyLoss(3, weight=0.5, start_epoch=0)(z, labels, v, 0), (logits, features)
    )


def test_small_similarities_and_half_precision_stay_finite() -> None:
    features = torch.eye(6).float()
    features[:, 0] += 0.01  # nearly orthogonal
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for given in (logits, logits.half()):
        found = neighbour_targets(given, features.to(given.dtype), k=2, gamma=8.0)
        torch.testing.assert_close(found.sum(1), torch.ones(6), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no neighbours"):
        neighbour_targets(logits[:1], features[:1])


def test_before_it_starts_and_alone_it_is_cross_entropy() -> None:
    logits, features, labels = batch()
    loss = NeighborConsistencyLoss(start_epoch=5)
    assert torch.equal(loss(logits, labels, features, 4), F.cross_entropy(logits, labels))
    assert torch.equal(loss(logits[:1], labels[:1], features[:1], 9), F.cross_entropy(logits[:1], labels[:1]))
    for wrong in ({"k": 0}, {"weight": 1.5}, {"gamma": 0.0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            NeighborConsistencyLoss(**wrong)


def test_treatment_changes_the_loss_and_nothing_else(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=24, batch_size=32)
    treated = ncr(plain)
    assert treated.replace(loss=plain.loss) == plain
    assert treated.loss.build(table).start_epoch == 2
    assert fit(treated, 0).accuracy() > 0.75  # ten neighbours of 32 smooth a line away in part
    assert fit(treated, 0).history["train_loss"] != fit(plain, 0).history["train_loss"]
    assert ncr(plain.replace(epochs=10)).loss.build(table).start_epoch == 1  # never on features that were not trained at all
    with pytest.raises(AssayError, match="accumulate"):
        ncr(plain.replace(accumulate=2))


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    assert set(resists_wrong_labels(lab)) > {"cross-entropy", "label smoothing", "ELR", "NCR"}
    assert set(neighbours_make_the_difference(lab)) == {"NCR", "bootstrap", "random neighbours"}
    assert len(harmless_on_clean_labels(lab)) == 4
