"""ResNet-50, forward + backward: assay (channels_last by itself) against torchvision and timm as they come."""

from __future__ import annotations

from collections.abc import Callable

import _networks

JOB = "ResNet-50 forward + backward, 32 x 3 x 64 x 64 and 4 x 3 x 224 x 224"
WANTED = {"torchvision": 1.0, "timm": 1.0}
ROUNDS = 5
PROCESSOR_TIME = True
agree = _networks.agree


def ours() -> Callable[[], _networks.Result]:
    from assay.papers.architectures.resnet import load_pretrained, resnet

    return _networks.forward_and_backward(load_pretrained(resnet(50), _networks.weights("resnet50")))


def torchvision() -> Callable[[], _networks.Result]:
    return _networks.forward_and_backward(_networks.torchvision("resnet50"))


def timm() -> Callable[[], _networks.Result]:
    return _networks.forward_and_backward(_networks.timm("resnet50"))
