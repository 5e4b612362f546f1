"""ResNet-50, forward: assay (channels_last by itself) against torchvision and timm as they come."""

from __future__ import annotations

from collections.abc import Callable

import _resnet

ROUNDS = 5
JOB = "ResNet-50 forward, 32 x 3 x 64 x 64 and 4 x 3 x 224 x 224"
WANTED = {"torchvision": 1.0, "timm": 1.0}
agree = _resnet.agree


def ours() -> Callable[[], _resnet.Result]:
    return _resnet.forward(_resnet.ours(50))


def torchvision() -> Callable[[], _resnet.Result]:
    return _resnet.forward(_resnet.torchvision(50))


def timm() -> Callable[[], _resnet.Result]:
    return _resnet.forward(_resnet.timm(50))
