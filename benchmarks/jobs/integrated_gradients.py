"""Integrated gradients of 64 MNIST-sized images through a LeNet: assay against captum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from assay.nn import ConvNet, lenet

JOB = "integrated gradients, 50 Gauss-Legendre steps, LeNet, 64 x 1 x 28 x 28"
WANTED = {"captum": 1.6}


def _job() -> tuple[ConvNet, Tensor, Tensor]:
    """The same network, images and classes on every side."""
    torch.manual_seed(0)
    model = lenet().eval()
    images = torch.rand(64, 1, 28, 28)
    return model, images, torch.randint(10, (64,))


def ours() -> Callable[[], Tensor]:
    from assay.papers.explain.integrated_gradients import integrated_gradients

    model, images, target = _job()
    return lambda: integrated_gradients(model, images, target)


def captum() -> Callable[[], Tensor]:
    from captum.attr import IntegratedGradients

    model, images, target = _job()
    explain = IntegratedGradients(model)
    return lambda: explain.attribute(images, target=target)


def agree(ours: Tensor, peer: Tensor) -> None:
    torch.testing.assert_close(ours, peer, rtol=0, atol=1e-5)
