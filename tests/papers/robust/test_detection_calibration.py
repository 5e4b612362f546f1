"""The kernel estimate against sums by hand with scipy's densities, closed forms, and the claims at smoke scale."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F

from assay.data import Dataset, Split
from assay.errors import AssayError
from assay.lab import Lab
from assay.nn import mlp
from assay.nn.detector import detection_loss
from assay.papers.labels.elr import elr
from assay.papers.robust import detection_calibration
from assay.papers.robust.detection_calibration import (
    BANDWIDTHS,
    calibrated,
    calibrated_cross_entropy,
    conditional_mean,
    detection_calibration_loss,
    detection_ece_binned,
    detection_targets,
    estimator_consistent,
    kde_calibration_error,
    loss_improves_calibration,
    select_bandwidth,
    temperature,
)
from assay.recipe import Recipe
from assay.train.loop import fit


def draw(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    return scores, (torch.rand(n, generator=generator, dtype=torch.float64) < scores**2).double()


def by_hand(scores: torch.Tensor, targets: torch.Tensor, h: float) -> list[float]:
    means = []
    for i, f in enumerate(scores.tolist()):
        weights = [stats.beta.pdf(f, c / h + 1, (1 - c) / h + 1) if j != i else 0.0 for j, c in enumerate(scores.tolist())]
        means.append(sum(w * y for w, y in zip(weights, targets.tolist(), strict=True)) / sum(weights))
    return means


@pytest.mark.parametrize("h", [0.02, 0.2])
def test_estimate_is_the_sum_written_out(h: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, targets = draw(25)
    expected = by_hand(scores, targets, h)
    np.testing.assert_allclose(conditional_mean(scores, targets, h), expected, rtol=1e-9)
    error = np.mean(np.abs(np.array(expected) - scores.numpy()))
    assert float(kde_calibration_error(scores, targets, h)) == pytest.approx(error, rel=1e-9)
    monkeypatch.setattr(detection_calibration, "_ROWS", 7)  # rows in parts change nothing
    np.testing.assert_allclose(conditional_mean(scores, targets, h), expected, rtol=1e-9)


def test_dirichlet_kernel_is_the_sum_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, 3, generator=generator, dtype=torch.float64).softmax(dim=1)
    labels = torch.randint(3, (12,), generator=generator)
    total = 0.0
    for i in range(12):
        weights = np.array([stats.dirichlet.pdf(scores[i], scores[j] / 0.3 + 1) if j != i else 0.0 for j in range(12)])
        total += np.abs(weights @ F.one_hot(labels, 3).numpy() / weights.sum() - scores[i].numpy()).sum() / 12
    assert float(kde_calibration_error(scores, labels, 0.3)) == pytest.approx(total, rel=1e-9)
    # Two classes are the one score twice.
    one, right = draw(20)
    both = torch.stack([one, 1 - one], dim=1)
    twice = kde_calibration_error(both, 1 - right.long(), 0.1)
    assert float(twice) == pytest.approx(2 * float(kde_calibration_error(one, right, 0.1)), rel=1e-9)


def test_bandwidth_is_the_most_likely() -> None:
    scores, _ = draw(40)
    scores = 0.45 + 0.1 * scores
    likelihood = []
    for h in BANDWIDTHS:
        f = scores.numpy()
        rows = stats.beta.pdf(f[:, None], f / h + 1, (1 - f) / h + 1)
        kernel = rows - np.diag(np.diag(rows))
        likelihood.append(np.log(kernel.sum(axis=1) / 39).sum())
    assert select_bandwidth(scores) == BANDWIDTHS[int(np.argmax(likelihood))]
    area = integrate.quad(lambda f: stats.beta.pdf(f, 0.3 / 0.05 + 1, 0.7 / 0.05 + 1), 0, 1)[0]
    assert area == pytest.approx(1)  # a density in f: no further factor belongs to it


def test_closed_forms() -> None:
    """One score for all: the others' mean; and what is right without exception has the error 1 - f."""
    _, targets = draw(50)
    constant = torch.full((50,), 0.3, dtype=torch.float64)
    others = (targets.sum() - targets) / 49
    assert float(kde_calibration_error(constant, targets, 0.1)) == pytest.approx(float((others - 0.3).abs().mean()))
    scores, _ = draw(50)
    assert float(kde_calibration_error(scores, torch.ones(50), 0.1)) == pytest.approx(float((1 - scores).mean()))
    assert float(kde_calibration_error(scores, torch.ones(50), 0.1, p=2)) == pytest.approx(float(((1 - scores) ** 2).mean()))


def test_it_goes_to_the_truth() -> None:
    """E[y | f] = f^2: the error is the mean of f - f^2; of what is calibrated it goes to 0."""
    scores, targets = draw(1000)
    assert float(kde_calibration_error(scores, targets)) == pytest.approx(float((scores - scores**2).mean()), abs=0.03)
    generator = torch.Generator().manual_seed(1)
    errors = []
    for n in (100, 1000):
        f = draw(n)[0]
        errors.append(float(kde_calibration_error(f, (torch.rand(n, generator=generator) < f).double())))
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < 0.05


def test_gradients() -> None:
    scores, targets = draw(8)
    assert torch.autograd.gradcheck(lambda f: kde_calibration_error(f, targets, 0.2, p=2), scores.requires_grad_())
    ends = torch.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    kde_calibration_error(ends, torch.tensor([0.0, 1.0, 1.0, 0.0]), 0.01).backward()
    assert ends.grad is not None
    assert ends.grad.isfinite().all()
    with pytest.raises(ValueError, match="two pairs"):
        kde_calibration_error(torch.rand(1), torch.rand(1))


def test_bins() -> None:
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    scores, targets = draw(300)
    for bins in (5, 15):
        theirs = metrics.binary_calibration_error(scores.float(), targets.long(), n_bins=bins)
        assert float(detection_ece_binned(scores, targets, bins)) == pytest.approx(float(theirs), abs=1e-5)
    order = scores.argsort()
    direct = sum(abs(float((targets - scores)[part].sum())) for part in order.chunk(10)) / 300
    assert float(detection_ece_binned(scores, targets, 10, equal_mass=True)) == pytest.approx(direct)


def test_targets_of_detections() -> None:
    """Two objects; a good box, a second one for the same object, one of the wrong class, one in the void, and none."""
    objects = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]]])
    boxes = torch.tensor([[[0.0, 0, 10, 9], [0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [0, 0, 0, 0]]])
    scores = torch.tensor([[0.6, 0.9, 0.8, 0.7, 0.0]])
    labels, truth = torch.tensor([[1, 1, 0, 1, -1]]), torch.tensor([[1, 2]])
    assert detection_targets(boxes, scores, labels, objects, truth).tolist() == [[0, 1, 0, 0, 0]]
    scores[0, 0] = 0.95  # now the looser box chooses first
    overlap = detection_targets(boxes, scores, labels, objects, truth)
    assert overlap[0].tolist() == pytest.approx([0.9, 0, 0, 0, 0])
    assert detection_targets(boxes, scores, labels, objects, truth, link=0.5).tolist() == [[1, 0, 0, 0, 0]]
    assert detection_targets(boxes, scores, labels, objects, truth, link=0.95).tolist() == [[0, 1, 0, 0, 0]]


def test_loss_of_a_detector_moves_scores_and_no_boxes() -> None:
    targets = torch.tensor([[[1, 4, 4, 20, 24]], [[0, 10, 12, 30, 30]]], dtype=torch.float32)
    outputs = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    detection_calibration_loss(outputs, targets).backward()
    assert outputs.grad is not None
    assert float(outputs.grad[:, :4].abs().sum()) == 0
    assert float(outputs.grad[:, 4:].abs().sum()) > 0
    nothing = torch.full((2, 1, 5), -1.0)
    assert detection_calibration_loss(outputs, nothing).item() == 0


def test_temperature_finds_what_was_put_in() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(5000, generator=generator, dtype=torch.float64)
    assert temperature(logits.sigmoid(), (logits / 2.5).sigmoid()) == pytest.approx(2.5, rel=1e-3)


def test_treatment(table: Dataset) -> None:
    plain = Recipe(table, model=partial(mlp, 8, 2, (16,)), epochs=5, batch_size=32)
    assert fit(calibrated(plain, 0.5), 0).accuracy() > 0.8
    assert calibrated(plain, 0.5).replace(loss=plain.loss) == plain
    logits, labels = torch.randn(9, 3), torch.randint(3, (9,))
    torch.testing.assert_close(calibrated_cross_entropy(logits, labels, 0.0), F.cross_entropy(logits, labels))
    shares = F.one_hot(labels, 3).float()
    torch.testing.assert_close(calibrated_cross_entropy(logits, shares, 1.0), calibrated_cross_entropy(logits, labels, 1.0))


def precise() -> nn.Module:
    return mlp(8, 2, (16,)).double()


def test_composes_in_any_order(table: Dataset) -> None:
    """In double precision: else rounding decides on the sign of differences that are about nothing, and weights move by 1e-3."""
    parts = [Split(part.inputs.double(), part.labels) for part in (table.train, table.valid, table.test)]  # type: ignore[union-attr]
    plain = Recipe(Dataset("fine", "classification", *parts, table.classes), model=precise, epochs=1, batch_size=32)
    first, second, alone = (fit(made, 0).logits() for made in (elr(calibrated(plain)), calibrated(elr(plain)), elr(plain)))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, alone, atol=1e-4)


def test_claims_at_smoke_scale(home: object) -> None:
    lab = Lab(scale="smoke")
    try:
        lab.data("cbsd68")
    except AssayError:
        pytest.skip("the photos are not here")
    bias = estimator_consistent(lab)
    assert set(bias) == {"KDE", "10 bins", "15 bins", "15 equal bins", "KDE at 100", "KDE at 1,000"}
    arms = loss_improves_calibration(lab)
    assert all(math.isfinite(arms[name].number) for name in ("plain", "KDE loss", "temperature"))
    assert {"plain: AP", "KDE loss: 10 bins", "plain: right at IoU 0.5"} <= set(arms)
    assert detection_calibration._detector(lab).recipe.loss is detection_loss
