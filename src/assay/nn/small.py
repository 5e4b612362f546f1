"""Small standard networks for experiments that finish in seconds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNet(nn.Module):
    """Two convolutions with pooling and one hidden layer: LeNet in today's dress (ReLU, max pooling).

    Args:
        in_channels: channels of the input.
        num_classes: number of logits.
        size: height and width of the input in pixels, a multiple of 4.
        channels: planes of the two convolutions (5x5, padding 2).
        hidden: units of the hidden layer.

    Shape: (B, in_channels, size, size) -> (B, num_classes).
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        size: int = 28,
        channels: tuple[int, int] = (16, 32),
        hidden: int = 128,
    ) -> None:
        super().__init__()
        if size % 4:
            raise ValueError(f"size must be a multiple of 4, not {size}")
        first, second = channels
        self.conv1 = nn.Conv2d(in_channels, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5, padding=2)
        self.pool1, self.pool2 = nn.MaxPool2d(2), nn.MaxPool2d(2)
        # One module for each ReLU: attribution rules that hook modules need to tell them apart.
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(second * (size // 4) ** 2, hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        # ReLU after pooling: the same function (max and ReLU commute) at a quarter of the work.
        x = self.relu1(self.pool1(self.conv1(images)))
        x = self.relu2(self.pool2(self.conv2(x)))
        logits: Tensor = self.head(self.relu3(self.hidden(self.flatten(x))))
        return logits


def lenet(in_channels: int = 1, num_classes: int = 10, size: int = 28) -> ConvNet:
    """A LeNet of 16 and 32 planes with 128 hidden units (216,394 parameters on 28x28)."""
    return ConvNet(in_channels, num_classes, size)


def mlp(in_features: int, num_classes: int, hidden: Sequence[int] = (256, 256)) -> nn.Sequential:
    """A multi-layer perceptron with ReLU; inputs of any shape are flattened to ``in_features``."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = in_features
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    layers.append(nn.Linear(width, num_classes))
    return nn.Sequential(*layers)


class ConvMax(nn.Module):
    """One convolution over a series of vectors, the largest response of each filter, one linear layer.

    Steps in which all channels are zero are padding: what is seen from them does not count, and they get no gradient.

    Args:
        in_channels: length of a vector.
        num_classes: number of logits.
        width: steps that a filter sees, an odd number.
        maps: filters.

    Shape: (B, in_channels, L) -> (B, num_classes).
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 3, maps: int = 64) -> None:
        super().__init__()
        self.filters = nn.Conv1d(in_channels, maps, width, padding=width // 2)
        self.head = nn.Linear(maps, num_classes)

    def forward(self, series: Tensor) -> Tensor:
        there = (series != 0).any(dim=1, keepdim=True)  # (B, 1, L)
        # Responses are at least 0, so that those in the padding are as good as left out of the maximum.
        seen = F.relu(self.filters(series * there)) * there
        logits: Tensor = self.head(seen.amax(dim=2))
        return logits
