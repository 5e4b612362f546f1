"""VGG-11 with batch normalisation, forward + backward: assay (channels_last by itself) against torchvision as it comes."""

from __future__ import annotations

from collections.abc import Callable

import _networks
from torch import nn

JOB = "VGG-11-BN forward + backward without dropout, 8 x 3 x 64 x 64 and 1 x 3 x 224 x 224"
WANTED = {"torchvision": 1.0}
ROUNDS = 5
PROCESSOR_TIME = True
SHAPES = ((8, 3, 64, 64), (1, 3, 224, 224))
agree = _networks.agree


def _without_dropout(model: nn.Module) -> Callable[[], _networks.Result]:
    """Its draws depend on the layout in memory, so that the sides could not be compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return _networks.forward_and_backward(model, SHAPES)


def ours() -> Callable[[], _networks.Result]:
    from assay.papers.architectures.vgg import vgg

    model = vgg("A", batch_norm=True)
    model.load_state_dict(_networks.weights("vgg11_bn"))
    return _without_dropout(model)


def torchvision() -> Callable[[], _networks.Result]:
    return _without_dropout(_networks.torchvision("vgg11_bn"))
