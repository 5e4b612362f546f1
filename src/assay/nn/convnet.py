"""What convolutional networks are put together from: a convolution with its normalisation, stems, stages from a table."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn


class ConvNorm(nn.Sequential):
    """A convolution without bias, batch normalisation, and ReLU unless ``active`` is false: modules conv, norm, relu.

    Args:
        in_planes: planes of the input.
        planes: planes of the output.
        kernel: height and width of the filters, or one number for both.
        stride: of the convolution.
        padding: zeros around the input; ``None`` is half of the kernel, which keeps the size at stride 1.
        groups: into how many groups the planes are cut that do not see one another.
        eps: added to the variance; 1e-5 is torch's, some networks (Inception) were trained with 1e-3.
        active: whether ReLU follows.

    Shape: (B, in_planes, H, W) -> (B, planes, H / stride, W / stride).
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    def __init__(
        self,
        in_planes: int,
        planes: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        eps: float = 1e-5,
        active: bool = True,
    ) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        around = (height // 2, width // 2) if padding is None else padding
        parts = OrderedDict[str, nn.Module](
            conv=nn.Conv2d(in_planes, planes, (height, width), stride, around, groups=groups, bias=False),
            norm=nn.BatchNorm2d(planes, eps=eps),
        )
        if active:
            # Not in place: hooks on a module then see what it returned, and gradients can be taken with respect to it.
            parts["relu"] = nn.ReLU()
        super().__init__(parts)


def imagenet_stem(in_channels: int, planes: int) -> nn.Sequential:
    """The first layers of networks for large photographs: 7x7 with stride 2, 3x3 maximum with stride 2; a quarter remains.

    Shape: (B, in_channels, H, W) -> (B, planes, H / 4, W / 4).
    """
    return nn.Sequential(ConvNorm(in_channels, planes, 7, stride=2), nn.MaxPool2d(3, 2, padding=1))


@dataclass(frozen=True)
class Stage:
    """A row of the table that describes a network: blocks of one shape, the first of which may reduce the size.

    Args:
        planes: planes that every block of the stage returns.
        blocks: how many there are.
        stride: of the first block; the others have 1.
    """

    planes: int
    blocks: int
    stride: int = 1


def stages(block: Callable[[int, int, int], nn.Module], in_planes: int, table: Sequence[Stage]) -> nn.Sequential:
    """The body of a network, made row by row: ``net[stage][block]``.

    Args:
        block: ``block(in_planes, planes, stride)`` makes one.
        in_planes: planes of the input.
        table: the stages.

    Shape: (B, in_planes, H, W) -> (B, table[-1].planes, H / s, W / s), s being the product of the strides.
    """
    made: list[nn.Module] = []
    for row in table:
        parts = []
        for place in range(row.blocks):
            parts.append(block(in_planes, row.planes, row.stride if place == 0 else 1))
            in_planes = row.planes
        made.append(nn.Sequential(*parts))
    return nn.Sequential(*made)


def classifier(planes: int, num_classes: int) -> nn.Sequential:
    """Mean over the picture and one linear layer (its module is called fc): (B, planes, H, W) -> (B, num_classes)."""
    parts = OrderedDict[str, nn.Module](pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(planes, num_classes))
    return nn.Sequential(parts)


def plain_layers(words: str, in_channels: int, width: float = 1.0, batch_norm: bool = False, ceil: bool = False) -> nn.Sequential:
    """The layers of a plain network from its line in a table, e.g. ``"64 64 M 128k5 M"``.

    ``64`` is a 3x3 convolution to 64 planes with ReLU, ``64k5`` one of 5x5, ``M`` halves the picture by a 2x2 maximum, and
    ``LRN`` is the local response normalisation of Krizhevsky et al. 2012 (5 planes, k = 2, alpha = 1e-4, beta = 0.75).

    Args:
        words: the layers, separated by blanks.
        in_channels: channels of the input.
        width: factor of all planes.
        batch_norm: whether normalisation stands between a convolution and its ReLU.
        ceil: whether ``M`` rounds odd sizes up, so that pictures of any size get through; otherwise down.

    Raises:
        ValueError: a word means nothing.
    """
    layers: list[nn.Module] = []
    for word in words.split():
        planes, _, kernel = word.partition("k")
        if word == "M":
            layers.append(nn.MaxPool2d(2, ceil_mode=ceil))
        elif word == "LRN":
            layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))  # torch divides alpha by the 5 planes
        elif planes.isdecimal() and (kernel.isdecimal() or word == planes):
            side, wide = int(kernel or 3), max(1, round(int(planes) * width))
            layers.append(nn.Conv2d(in_channels, wide, side, padding=side // 2))
            layers += [nn.BatchNorm2d(wide), nn.ReLU()] if batch_norm else [nn.ReLU()]
            in_channels = wide
        else:
            raise ValueError(f"{word!r} is no layer: write planes (64), planes and kernel (64k5), M or LRN")
    return nn.Sequential(*layers)
