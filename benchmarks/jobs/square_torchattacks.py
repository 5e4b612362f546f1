"""Square Attack on 200 MNIST digits and a trained LeNet: assay against torchattacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _digits import network_and_digits
from torch import Tensor

JOB = "Square Attack (maximum norm 0.15, 500 queries), LeNet, 200 MNIST digits"
WANTED = {"torchattacks": 1.0}
PROCESSOR_TIME = True
ROUNDS = 3
EPS, QUERIES = 0.15, 500


def _said() -> tuple[torch.nn.Module, Tensor, Tensor]:
    model, images = network_and_digits(200)
    with torch.no_grad():
        return model, images, model(images).argmax(dim=1)


def ours() -> Callable[[], Tensor]:
    from assay.attack import square

    model, images, labels = _said()
    return lambda: square(
        model, images, labels, eps=EPS, queries=QUERIES, clip=(0, 1), generator=torch.Generator().manual_seed(0)
    )


def torchattacks() -> Callable[[], Tensor]:
    from torchattacks import Square

    model, images, labels = _said()
    attack = Square(model, norm="Linf", eps=EPS, n_queries=QUERIES, seed=0)
    return lambda: attack(images, labels)


def agree(ours: Tensor, peer: Tensor) -> None:
    """Both stay in the ball, and at most five in a hundred digits more withstand ours than the peer's: both are random."""
    model, images, labels = _said()
    for side in (ours, peer):
        assert (side - images).abs().max() <= EPS + 1e-6
    with torch.no_grad():
        stood = [(model(side).argmax(dim=1) == labels).double().mean().item() for side in (ours, peer)]
    assert stood[0] <= stood[1] + 0.05, stood
