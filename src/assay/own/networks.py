"""The networks of the baselines that are nobody's paper here: a small one for series, and an output in the target's units."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class SeriesNet(nn.Module):
    """A fully convolutional network for series: three convolutions with batch normalisation, the mean over time, one layer.

    It is the network of Wang, Yan and Oates 2017 ("Time series classification from scratch") with half of its planes
    and a first width of 7 instead of 8, which is centred.

    Args:
        in_channels: channels of the series.
        num_classes: number of logits.

    Shape: (B, in_channels, L) -> (B, num_classes).
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        planes = in_channels
        for wide, width in ((64, 7), (128, 5), (64, 3)):
            layers += [nn.Conv1d(planes, wide, width, padding="same", bias=False), nn.BatchNorm1d(wide), nn.ReLU()]
            planes = wide
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(planes, num_classes)

    def forward(self, series: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(series).mean(dim=2))
        return logits


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
