"""Training a LeNet on MNIST 5k: the same module in every loop."""

from __future__ import annotations

from collections.abc import Callable

import _training

from assay.data import load
from assay.nn import lenet

JOB = "training: LeNet, MNIST 5k, 2 epochs, batch 128"
WANTED = {"bare_loop": 1.5, "skorch": 1.8, "lightning": 1.8}
agree = _training.agree


def ours() -> Callable[[], float]:
    return _training.assay(load("mnist5k"), lenet)


def bare_loop() -> Callable[[], float]:
    return _training.by_hand(load("mnist5k"), lenet)


def skorch() -> Callable[[], float]:
    return _training.skorch(load("mnist5k"), lenet)


def lightning() -> Callable[[], float]:
    return _training.lightning(load("mnist5k"), lenet)
