"""Sparsemax forward and backward, on attention scores and on many classes: assay against entmax."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

JOB = "sparsemax forward + backward: attention scores (64 x 8 x 64, 64) and classes (512, 10,000)"
WANTED = {"entmax": 1.2, "entmax_sorting": 1.2}

Result = list[tuple[Tensor, Tensor]]


def _job(function: Callable[[Tensor], Tensor]) -> Callable[[], Result]:
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for shape in ((64 * 8 * 64, 64), (512, 10_000))
    ]

    def both() -> Result:
        found = []
        for scores, gradient in pairs:
            leaf = scores.detach().requires_grad_()
            probs = function(leaf)
            probs.backward(gradient)
            assert leaf.grad is not None
            found.append((probs.detach(), leaf.grad))
        return found

    return both


def ours() -> Callable[[], Result]:
    from assay.papers.sequence.sparsemax import sparsemax

    return _job(sparsemax)


def entmax() -> Callable[[], Result]:
    """With its partial sort, k somewhat above the size of the support (3 and 5 here), as its documentation advises."""
    from entmax import sparsemax

    return _job(lambda scores: sparsemax(scores, dim=-1, k=16))


def entmax_sorting() -> Callable[[], Result]:
    """As it comes."""
    from entmax import sparsemax

    return _job(lambda scores: sparsemax(scores, dim=-1))


def agree(ours: Result, peer: Result) -> None:
    for (probs, gradient), (their_probs, their_gradient) in zip(ours, peer, strict=True):
        torch.testing.assert_close(probs, their_probs, rtol=0, atol=1e-6)
        torch.testing.assert_close(gradient, their_gradient, rtol=0, atol=1e-6)
