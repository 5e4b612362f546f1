"""DeepFool on 500 MNIST digits and a trained LeNet: assay against foolbox."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _digits import network_and_digits
from torch import Tensor

JOB = "DeepFool (L2, 10 classes, clipped to [0, 1]), LeNet, 500 MNIST digits"
WANTED = {"foolbox": 2.0}


def ours() -> Callable[[], Tensor]:
    from assay.papers.robust.deepfool import deepfool

    model, images = network_and_digits(500)
    return lambda: deepfool(model, images, clip=(0, 1)).adversarial


def foolbox() -> Callable[[], Tensor]:
    from foolbox import PyTorchModel
    from foolbox.attacks import L2DeepFoolAttack

    model, images = network_and_digits(500)
    wrapped = PyTorchModel(model, bounds=(0, 1))
    attack = L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02, loss="logits")

    def run() -> Tensor:
        with torch.no_grad():
            label = model(images).argmax(dim=1)
        return attack(wrapped, images, label, epsilons=None)[1]

    return run


def agree(ours: Tensor, peer: Tensor) -> None:
    """Every image is fooled on both sides, and the median perturbation is no larger than the peer's (1 % tolerance)."""
    model, images = network_and_digits(500)
    before = model(images).argmax(dim=1)
    norms = {}
    for side, adversarial in {"ours": ours, "peer": peer}.items():
        assert bool((model(adversarial).argmax(dim=1) != before).all()), side
        norms[side] = (adversarial - images).flatten(1).norm(dim=1).median().item()
    assert norms["ours"] <= 1.01 * norms["peer"], norms
