"""A network for regression: any other whose output is brought into the target's units."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class InUnits(nn.Module):
    """A network whose output, about 0 and 1 large, is brought into the units of the target: ``mean + std * output``."""

    def __init__(self, net: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, mean, std

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.net(inputs)
        return self.mean + self.std * output


def in_units(make: Callable[[], nn.Module], mean: float, std: float) -> InUnits:
    """The network that ``make`` makes, with its output in the units of the target."""
    return InUnits(make(), mean, std)


def squared_error(outputs: Tensor, labels: Tensor, std: float = 1.0) -> Tensor:
    """Mean squared error in units of ``std``: outputs (B, 1), labels (B,) -> scalar."""
    return ((outputs.squeeze(1) - labels) / std).square().mean()
