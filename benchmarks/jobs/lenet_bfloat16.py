"""The same training in bfloat16 against the bare loop in float32, at equal accuracy."""

from __future__ import annotations

from collections.abc import Callable

import _training

from assay.data import load
from assay.nn import lenet

JOB = "training in bfloat16: LeNet, MNIST 5k, 2 epochs, batch 128"
WANTED = {"bare_loop": 2.2}
agree = _training.agree


def ours() -> Callable[[], float]:
    return _training.assay(load("mnist5k"), lenet, precision="bfloat16")


def bare_loop() -> Callable[[], float]:
    return _training.by_hand(load("mnist5k"), lenet)
