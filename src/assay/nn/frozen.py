"""Looking at a network without touching it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """For as long as the block lasts: evaluation mode, no gradients for parameters, gradients for inputs.

    Dropout and batch statistics must not move while a model is looked at, and a graph that parameters have no part in is
    smaller. Every module's mode and every parameter's ``requires_grad`` are put back afterwards, also after an error.
    Gradients are switched on, so that a caller inside ``torch.no_grad()`` gets them too.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
