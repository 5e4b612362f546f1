"""Mixup and CutMix on batches of photographs: assay against timm's Mixup, which changes its batch in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

JOB = "mixup or CutMix, 40 batches of 128 images of 3 x 96 x 96"
WANTED = {"timm": 1.2}
PROCESSOR_TIME = True

_BATCHES, _CLASSES = 40, 10


def _batch() -> tuple[Tensor, Tensor]:
    """Every image is as bright as its label: what came from which shows in the mean."""
    labels = torch.arange(128) % _CLASSES
    return labels.float()[:, None, None, None].expand(128, 3, 96, 96).contiguous(), labels


def ours() -> Callable[[], list[Tensor]]:
    from assay.train.mixing import mixup_cutmix

    images, labels = _batch()
    generator = torch.Generator().manual_seed(0)

    def run() -> list[Tensor]:
        for _ in range(_BATCHES):
            found = mixup_cutmix(images.clone(), labels, _CLASSES, generator)  # the peer needs a copy, so both get one
        return list(found)

    return run


def timm() -> Callable[[], list[Tensor]]:
    import numpy as np
    from timm.data import Mixup

    np.random.seed(0)  # noqa: NPY002 - it draws from the global stream
    images, labels = _batch()
    mix = Mixup(mixup_alpha=0.1, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=_CLASSES)

    def run() -> list[Tensor]:
        for _ in range(_BATCHES):
            found = mix(images.clone(), labels)
        return list(found)

    return run


def agree(ours: list[Tensor], peer: list[Tensor]) -> None:
    """On both sides the targets hold what the images do."""
    for images, targets in (ours, peer):
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(128))
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), targets @ torch.arange(10.0), rtol=1e-3, atol=1e-3)
