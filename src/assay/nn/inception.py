"""Inception blocks: branches of convolutions side by side, written as lines of a table.

    "64 | 48 64k5 | 64 96k3 96k3 | avg 32"

is a block of four branches, whose planes come one after the other. In a branch, ``64`` is a 1x1 convolution to 64 planes with
batch normalisation and ReLU, ``64k5`` one of 5x5 and ``128k1x7`` one of 1 row and 7 columns, each with zeros around so that the
size stays. Endings change that: ``96k3v`` has no zeros around, ``96k3/2`` none either and stride 2, ``64k1x7-`` no ReLU. In
``384k1x3+3x1`` two filters look at the same input, with 384 planes each. ``avg`` is the mean over 3x3 places, ``max`` the
maximum over 3x3 places with stride 2.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor, cat, nn

from assay.nn.convnet import ConvNorm

#: Planes, kernel, a second kernel beside it, ending.
_WORD = re.compile(r"(?P<planes>\d+)(k(?P<kernel>\d+(x\d+)?)(\+(?P<beside>\d+(x\d+)?))?)?(?P<ending>v|/2|-)?")


class Mixed(nn.ModuleList):
    """Branches that see the same input; what they return is put together plane after plane.

    Args:
        branches: modules that keep the batch, and agree in height and width.
        planes: of all branches together.

    Shape: (B, in_planes, H, W) -> (B, planes, h, w).
    """

    def __init__(self, branches: Iterable[nn.Module], planes: int) -> None:
        super().__init__(branches)
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        return cat([branch(x) for branch in self], dim=1)


def chain(
    words: str, in_planes: int, width: float = 1.0, eps: float = 1e-3, count_zeros: bool = True
) -> tuple[nn.Sequential, int]:
    """Layers one after the other, and the planes of the last: a branch of a block, or a stem.

    Args:
        words: the layers, separated by blanks; see the module.
        in_planes: planes of the input.
        width: factor of all planes.
        eps: added to the variance by batch normalisation; 1e-3 in all Inception networks.
        count_zeros: whether ``avg`` at the border divides by 9, zeros around the picture being counted, or by the places that
            there are.

    Raises:
        ValueError: a word means nothing.
    """
    layers: list[nn.Module] = []
    for word in words.split():
        if word == "avg":
            layers.append(nn.AvgPool2d(3, 1, padding=1, count_include_pad=count_zeros))
            continue
        if word == "max":
            layers.append(nn.MaxPool2d(3, 2))
            continue
        found = _WORD.fullmatch(word)
        if found is None:
            raise ValueError(f"{word!r} is no layer: write planes and kernel (64, 64k5, 64k1x7, 64k3/2, 64k1x3+3x1), avg or max")
        planes, ending = max(1, round(int(found["planes"]) * width)), found["ending"]
        convolutions = [
            ConvNorm(
                in_planes,
                planes,
                _sides(kernel),
                stride=2 if ending == "/2" else 1,
                padding=0 if ending in ("v", "/2") else None,
                eps=eps,
                active=ending != "-",
            )
            for kernel in (found["kernel"] or "1", found["beside"])
            if kernel is not None
        ]
        in_planes = planes * len(convolutions)
        layers.append(convolutions[0] if len(convolutions) == 1 else Mixed(convolutions, in_planes))
    return nn.Sequential(*layers), in_planes


def mixed(words: str, in_planes: int, width: float = 1.0, eps: float = 1e-3, count_zeros: bool = True) -> Mixed:
    """A block from its line in a table: :func:`chain` for each branch, the branches separated by ``|``."""
    made = [chain(branch, in_planes, width, eps, count_zeros) for branch in words.split("|")]
    return Mixed((branch for branch, _ in made), sum(planes for _, planes in made))


def factorize(words: str, linear: bool = False) -> str:
    """The line of a block with every n x n convolution beyond 1x1 as one of 1 x n followed by one of n x 1.

    The first of the two keeps the planes of its input, so that it needs a word before it in its branch; convolutions with an
    ending (``/2``, ``v``, ``-``) stay as they are. ``"8 16k7"`` becomes ``"8 8k1x7 16k7x1"``.

    Args:
        words: the line.
        linear: without ReLU between the two.

    Raises:
        ValueError: a branch begins with an n x n convolution.
    """
    return " | ".join(_factorized_branch(branch, linear) for branch in words.split("|"))


def _factorized_branch(words: str, linear: bool) -> str:
    given, found = words.split(), list[str]()
    for before, word in zip(["", *given], given, strict=False):
        square = re.fullmatch(r"(\d+)k(\d+)", word)
        if square is None:
            found.append(word)
            continue
        inner = re.match(r"\d+", before)
        if inner is None:
            raise ValueError(f"{word!r} is the first convolution of its branch: put one of 1x1 before it")
        planes, side = square.groups()
        found += [f"{inner[0]}k1x{side}{'-' if linear else ''}", f"{planes}k{side}x1"]
    return " ".join(found)


def dropped_classifier(planes: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Mean over the picture, dropout, one linear layer (its module is called fc): (B, planes, H, W) -> (B, num_classes)."""
    parts = OrderedDict[str, nn.Module](
        pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), dropout=nn.Dropout(dropout), fc=nn.Linear(planes, num_classes)
    )
    return nn.Sequential(parts)


def _sides(kernel: str) -> tuple[int, int]:
    height, _, width = kernel.partition("x")
    return int(height), int(width or height)


__all__ = ["Mixed", "chain", "dropped_classifier", "factorize", "mixed"]
