"""DeepFool on MNIST digits and a trained LeNet: assay against torchattacks.

torchattacks takes images one by one, so that its time grows with their number; 50 are enough to compare, and cost us most
of what a batch brings.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _digits import network_and_digits
from torch import Tensor

JOB = "DeepFool (L2, all classes, clipped to [0, 1]), LeNet, 50 MNIST digits"
WANTED = {"torchattacks": 10.0}
ROUNDS = 3


def ours() -> Callable[[], Tensor]:
    from assay.papers.robust.deepfool import deepfool

    model, images = network_and_digits(50)
    return lambda: deepfool(model, images, clip=(0, 1)).adversarial


def torchattacks() -> Callable[[], Tensor]:
    from torchattacks import DeepFool

    model, images = network_and_digits(50)
    attack = DeepFool(model, steps=50, overshoot=0.02)

    def run() -> Tensor:
        with torch.no_grad():
            label = model(images).argmax(dim=1)
        return attack(images, label)

    return run


def agree(ours: Tensor, peer: Tensor) -> None:
    """Every image is fooled on our side, and the median perturbation is no larger than the peer's (1 % tolerance)."""
    model, images = network_and_digits(50)
    before = model(images).argmax(dim=1)
    assert bool((model(ours).argmax(dim=1) != before).all())
    norms = [(adversarial - images).flatten(1).norm(dim=1).median().item() for adversarial in (ours, peer)]
    assert norms[0] <= 1.01 * norms[1], norms
