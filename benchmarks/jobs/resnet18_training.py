"""ResNet-18, forward + backward: assay (channels_last by itself) against torchvision and timm as they come."""

from __future__ import annotations

from collections.abc import Callable

import _resnet

ROUNDS = 5
JOB = "ResNet-18 forward + backward, 32 x 3 x 64 x 64 and 4 x 3 x 224 x 224"
WANTED = {"torchvision": 1.0, "timm": 1.0}
agree = _resnet.agree


def ours() -> Callable[[], _resnet.Result]:
    return _resnet.forward_and_backward(_resnet.ours(18))


def torchvision() -> Callable[[], _resnet.Result]:
    return _resnet.forward_and_backward(_resnet.torchvision(18))


def timm() -> Callable[[], _resnet.Result]:
    return _resnet.forward_and_backward(_resnet.timm(18))
