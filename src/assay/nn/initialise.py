"""Initial weights that several papers use."""

from __future__ import annotations

from typing import Literal

from torch import nn


def he_normal(model: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_out") -> None:
    """Draw the filters of every 2-d convolution from N(0, 2 / fan), which keeps the variance through ReLU layers; biases 0.

    Batch normalisation starts as torch makes it (scale 1, shift 0), and linear layers stay as torch draws them.

    Args:
        model: its convolutions are changed in place.
        mode: whether the variance is kept forwards (``"fan_in"``) or backwards (``"fan_out"``).

    Source: He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", ICCV 2015, equations 10 and 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
