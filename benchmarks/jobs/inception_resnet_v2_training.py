"""Inception-ResNet-v2, forward + backward: assay (channels_last by itself) against timm as it comes."""

from __future__ import annotations

from collections.abc import Callable

import _inception
import _networks

JOB = "Inception-ResNet-v2 forward + backward, 8 x 3 x 139 x 139 and 2 x 3 x 299 x 299"
WANTED = {"timm": 1.0}
ROUNDS = 5
PROCESSOR_TIME = True
agree = _networks.agree


def ours() -> Callable[[], _networks.Result]:
    from assay.papers.architectures.inception_resnet import inception_resnet_v2, load_pretrained

    model = load_pretrained(inception_resnet_v2(dropout=0.0), _inception.weights("inception_resnet_v2"))
    return _networks.forward_and_backward(model, _inception.SHAPES)


def timm() -> Callable[[], _networks.Result]:
    return _networks.forward_and_backward(_inception.timm("inception_resnet_v2"), _inception.SHAPES)
