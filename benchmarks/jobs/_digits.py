"""What attacks are timed on: the same trained network and digits on every side, in the layout that torch gives them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from assay.data import load
from assay.nn import ConvNet
from assay.recipes import lenet_on
from assay.train.loop import fit


@cache
def network_and_digits(count: int) -> tuple[ConvNet, Tensor]:
    """A LeNet trained for four epochs, and ``count`` test digits (count, 1, 28, 28)."""
    data = load("mnist5k")
    model = fit(lenet_on(data, epochs=4), seed=0).model
    assert isinstance(model, ConvNet)
    assert isinstance(data.test.inputs, Tensor)
    return model.to(memory_format=torch.contiguous_format), data.test.inputs[:count]  # type: ignore[call-overload]
