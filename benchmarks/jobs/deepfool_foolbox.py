"""DeepFool on 500 MNIST digits and a trained LeNet: assay against foolbox."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from assay.data import load
from assay.nn import ConvNet
from assay.recipes import lenet_on
from assay.train.loop import fit

JOB = "DeepFool (L2, 10 classes, clipped to [0, 1]), LeNet, 500 MNIST digits"
WANTED = {"foolbox": 2.0}


@cache
def _job() -> tuple[ConvNet, Tensor]:
    """The same trained network and digits on every side, in the layout that torch gives them."""
    data = load("mnist5k")
    model = fit(lenet_on(data, epochs=4), seed=0).model
    assert isinstance(model, ConvNet)
    assert isinstance(data.test.inputs, Tensor)
    return model.to(memory_format=torch.contiguous_format), data.test.inputs[:500]  # type: ignore[call-overload]


def ours() -> Callable[[], Tensor]:
    from assay.papers.robust.deepfool import deepfool

    model, images = _job()
    return lambda: deepfool(model, images, clip=(0, 1)).adversarial


def foolbox() -> Callable[[], Tensor]:
    from foolbox import PyTorchModel
    from foolbox.attacks import L2DeepFoolAttack

    model, images = _job()
    wrapped = PyTorchModel(model, bounds=(0, 1))
    attack = L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02, loss="logits")

    def run() -> Tensor:
        with torch.no_grad():
            label = model(images).argmax(dim=1)
        return attack(wrapped, images, label, epsilons=None)[1]

    return run


def agree(ours: Tensor, peer: Tensor) -> None:
    """Every image is fooled on both sides, and the median perturbation is no larger than the peer's (1 % tolerance)."""
    model, images = _job()
    before = model(images).argmax(dim=1)
    norms = {}
    for side, adversarial in {"ours": ours, "peer": peer}.items():
        assert bool((model(adversarial).argmax(dim=1) != before).all()), side
        norms[side] = (adversarial - images).flatten(1).norm(dim=1).median().item()
    assert norms["ours"] <= 1.01 * norms["peer"], norms
