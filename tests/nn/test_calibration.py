"""Calibration: by hand, and against a peer."""

from __future__ import annotations

import pytest
import torch

from assay.nn.calibration import reliability


def test_two_bins_by_hand() -> None:
    logits = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.45, 0.55]]).log()
    seen = reliability(logits, torch.tensor([0, 1, 1, 1]), bins=4)
    assert seen.confidence.tolist() == pytest.approx([0.575, 0.85])
    assert seen.accuracy.tolist() == [1.0, 0.5]
    assert seen.share.tolist() == [0.5, 0.5]
    assert seen.error == pytest.approx(0.5 * 0.425 + 0.5 * 0.35)


@pytest.mark.parametrize("bins", [10, 15])
def test_equals_torchmetrics(bins: int) -> None:
    peer = pytest.importorskip("torchmetrics.functional.classification")
    torch.manual_seed(0)
    logits = 2 * torch.randn(500, 7)
    labels = torch.where(torch.rand(500) < 0.6, logits.argmax(dim=1), torch.randint(0, 7, (500,)))
    expected = peer.multiclass_calibration_error(logits.softmax(dim=1), labels, 7, n_bins=bins)
    assert reliability(logits, labels, bins).error == pytest.approx(expected.item(), abs=1e-6)


def test_a_classifier_that_is_sure_and_right_has_no_error() -> None:
    logits, labels = 100.0 * torch.eye(5), torch.arange(5)
    assert reliability(logits, labels).error == pytest.approx(0.0, abs=1e-9)
    assert reliability(logits, (labels + 1) % 5).error == pytest.approx(1.0)
