"""Adaptive gradient clipping of a ResNet-50's gradients, most of which are too long: assay against timm."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

JOB = "adaptive gradient clipping, ResNet-50 (25.6M weights), 5 times"
WANTED = {"timm": 1.0}
PROCESSOR_TIME = True


def _job(clip: Callable[[Iterable[Tensor], float], None]) -> Callable[[], list[Tensor]]:
    from assay.papers.architectures.resnet import resnet50

    torch.manual_seed(0)
    parameters = list(resnet50().parameters())
    for p in parameters:
        p.grad = torch.randn_like(p)

    def clipped() -> list[Tensor]:
        for bound in (1.0, 0.5, 0.1, 0.05, 0.01):
            clip(parameters, bound)
        return [p.grad for p in parameters if p.grad is not None]

    return clipped


def ours() -> Callable[[], list[Tensor]]:
    from assay.train.clip import adaptive_clip_

    return _job(adaptive_clip_)


def timm() -> Callable[[], list[Tensor]]:
    from timm.utils.agc import adaptive_clip_grad

    return _job(adaptive_clip_grad)


def agree(ours: list[Tensor], peer: list[Tensor]) -> None:
    """The same gradients."""
    for mine, theirs in zip(ours, peer, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-8)
