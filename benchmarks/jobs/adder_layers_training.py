"""Adder layers of a ResNet-20 (one of each shape), forward and backward: assay against all differences at once."""

from __future__ import annotations

from collections.abc import Callable

import adder_layers

JOB = "adder layers of a ResNet-20, forward and backward, 8 examples of 32 x 32"
WANTED = {"all_at_once": 5.0}
PROCESSOR_TIME = True
ROUNDS = 5
agree = adder_layers.agree


def ours() -> Callable[[], adder_layers.Result]:
    from assay.papers.compress.addernet import adder2d

    return adder_layers.forward_and_backward(adder2d)


def all_at_once() -> Callable[[], adder_layers.Result]:
    return adder_layers.forward_and_backward(adder_layers.layer_all_at_once)
