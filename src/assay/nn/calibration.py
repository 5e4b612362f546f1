"""Whether a classifier is right as often as it says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reliability:
    """Examples by how sure the classifier is of its answer, in bins of equal width that hold any.

    Attributes:
        confidence: (K,) float64, mean probability of the answer.
        accuracy: (K,) share of right answers.
        share: (K,) share of all examples, summing to 1.
    """

    confidence: Tensor
    accuracy: Tensor
    share: Tensor

    @property
    def error(self) -> float:
        """The expected calibration error: how far confidence and accuracy are apart, in the mean over examples."""
        return (self.share * (self.confidence - self.accuracy).abs()).sum().item()


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Compare confidence and accuracy.

    Args:
        logits: (N, C).
        labels: (N,) int64.
        bins: into how many parts [0, 1] is cut; 15 is usual.

    Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, equations 2, 3 and 5.
    """
    sure, answer = logits.double().softmax(dim=1).max(dim=1)
    # A confidence on the border of two bins belongs to the lower one.
    place = (sure * bins).ceil().long().sub(1).clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    there = count > 0
    means = [
        torch.bincount(place, weights=values, minlength=bins)[there] / count[there]
        for values in (sure, (answer == labels).double())
    ]
    return Reliability(means[0], means[1], count[there] / len(labels))


__all__ = ["Reliability", "reliability"]
