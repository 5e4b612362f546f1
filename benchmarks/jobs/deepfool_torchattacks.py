"""DeepFool on MNIST digits and a trained LeNet: assay against torchattacks.

torchattacks takes images one by one, so that its time grows with their number; 50 are enough to compare, and cost us most
of what a batch brings.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from assay.data import load
from assay.nn import ConvNet
from assay.recipes import lenet_on
from assay.train.loop import fit

JOB = "DeepFool (L2, all classes, clipped to [0, 1]), LeNet, 50 MNIST digits"
WANTED = {"torchattacks": 10.0}


@cache
def _job() -> tuple[ConvNet, Tensor]:
    """The same trained network and digits on every side, in the layout that torch gives them."""
    data = load("mnist5k")
    model = fit(lenet_on(data, epochs=4), seed=0).model
    assert isinstance(model, ConvNet)
    assert isinstance(data.test.inputs, Tensor)
    return model.to(memory_format=torch.contiguous_format), data.test.inputs[:50]  # type: ignore[call-overload]


def ours() -> Callable[[], Tensor]:
    from assay.papers.robust.deepfool import deepfool

    model, images = _job()
    return lambda: deepfool(model, images, clip=(0, 1)).adversarial


def torchattacks() -> Callable[[], Tensor]:
    from torchattacks import DeepFool

    model, images = _job()
    attack = DeepFool(model, steps=50, overshoot=0.02)

    def run() -> Tensor:
        with torch.no_grad():
            label = model(images).argmax(dim=1)
        return attack(images, label)

    return run


def agree(ours: Tensor, peer: Tensor) -> None:
    """Every image is fooled on our side, and the median perturbation is no larger than the peer's (1 % tolerance)."""
    model, images = _job()
    before = model(images).argmax(dim=1)
    assert bool((model(ours).argmax(dim=1) != before).all())
    norms = [(adversarial - images).flatten(1).norm(dim=1).median().item() for adversarial in (ours, peer)]
    assert norms[0] <= 1.01 * norms[1], norms
