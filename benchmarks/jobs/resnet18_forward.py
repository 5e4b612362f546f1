"""ResNet-18, forward: assay (channels_last by itself) against torchvision and timm as they come."""

from __future__ import annotations

from collections.abc import Callable

import _networks

JOB = "ResNet-18 forward, 32 x 3 x 64 x 64 and 4 x 3 x 224 x 224"
WANTED = {"torchvision": 1.0, "timm": 1.0}
ROUNDS = 5
PROCESSOR_TIME = True
agree = _networks.agree


def ours() -> Callable[[], _networks.Result]:
    from assay.papers.architectures.resnet import load_pretrained, resnet

    return _networks.forward(load_pretrained(resnet(18), _networks.weights("resnet18")))


def torchvision() -> Callable[[], _networks.Result]:
    return _networks.forward(_networks.torchvision("resnet18"))


def timm() -> Callable[[], _networks.Result]:
    return _networks.forward(_networks.timm("resnet18"))
