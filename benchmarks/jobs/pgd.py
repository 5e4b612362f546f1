"""Projected gradient ascent on 500 MNIST digits and a trained LeNet: assay against foolbox and torchattacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _digits import network_and_digits
from torch import Tensor

JOB = "PGD (maximum norm 0.1, 40 steps), LeNet, 500 MNIST digits"
WANTED = {"foolbox": 1.0, "torchattacks": 1.0}
PROCESSOR_TIME = True
EPS, STEPS = 0.1, 40


def _said() -> tuple[torch.nn.Module, Tensor, Tensor]:
    model, images = network_and_digits(500)
    with torch.no_grad():
        return model, images, model(images).argmax(dim=1)


def ours() -> Callable[[], Tensor]:
    from assay.attack import pgd

    model, images, labels = _said()
    return lambda: pgd(model, images, labels, eps=EPS, steps=STEPS, random_start=False, clip=(0, 1))


def foolbox() -> Callable[[], Tensor]:
    from foolbox import PyTorchModel
    from foolbox.attacks import LinfPGD

    model, images, labels = _said()
    wrapped = PyTorchModel(model, bounds=(0, 1))
    attack = LinfPGD(steps=STEPS, abs_stepsize=2.5 * EPS / STEPS, random_start=False)
    return lambda: attack(wrapped, images, labels, epsilons=EPS)[1]


def torchattacks() -> Callable[[], Tensor]:
    from torchattacks import PGD

    model, images, labels = _said()
    attack = PGD(model, eps=EPS, alpha=2.5 * EPS / STEPS, steps=STEPS, random_start=False)
    return lambda: attack(images, labels)


def agree(ours: Tensor, peer: Tensor) -> None:
    """Both stay in the ball, and no more digits withstand ours than the peer's."""
    model, images, labels = _said()
    for side in (ours, peer):
        assert (side - images).abs().max() <= EPS + 1e-6
    with torch.no_grad():
        stood = [(model(side).argmax(dim=1) == labels).sum().item() for side in (ours, peer)]
    assert stood[0] <= stood[1], stood
